"""Downloads over real sockets from a local server that drops connections and changes bytes."""

import dataclasses
import time

import huggingface_hub
import numpy as np
import pytest

from pirl_jax.core import locks
from pirl_jax.weights import hubs, transfer
from tests import hub_server

RNG = np.random.default_rng(0)
FILES = {
    "model.safetensors": RNG.bytes(120_000),
    "physical-intelligence/libero/norm_stats.json": b'{"norm_stats": {}}',
    "empty": b"",
}
REPOSITORIES = {
    "huggingface": hubs.Repository("huggingface", "RLinf/x"),
    "modelscope": hubs.Repository("modelscope", "RLinf/x"),
    "google": hubs.Repository("google", "bucket/checkpoints/x/"),
}


@pytest.fixture(params=REPOSITORIES)
def hub(request, monkeypatch):
    """The server, as one hub after the other.

    `repository` says what to ask it for, `root` stands before the names of its files.
    """
    with serving(monkeypatch, request.param) as server:
        yield server


def serving(monkeypatch, name):
    root = "checkpoints/x/" if name == "google" else ""
    server = hub_server.HubServer(
        {root + file: data for file, data in FILES.items()}, large=["model.safetensors"]
    )
    server.repository = REPOSITORIES[name]
    server.root = root
    # Between attempts, ours and huggingface_hub's.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for variable in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, server.url)
    return server


def assert_whole(folder):
    for file, data in FILES.items():
        assert (folder / file).read_bytes() == data, file
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in kept if not name.startswith(".cache/")} == set(FILES)


def test_all_files_come_and_are_not_asked_for_again(hub, tmp_path):
    listed = hubs.fetch(hub.repository, tmp_path)
    assert {file.name: file.size for file in listed} == {
        name: len(data) for name, data in FILES.items()
    }
    assert all(file.checksum for file in listed)
    assert_whole(tmp_path)
    hub.ranges.clear()
    hubs.fetch(hub.repository, tmp_path)
    assert hub.ranges == []


def test_two_downloads_into_one_folder(monkeypatch, tmp_path):
    with serving(monkeypatch, "google") as hub:
        with locks.writing(tmp_path, ""):
            with pytest.raises(ValueError, match=r"in use by process .* wait until it is done"):
                hubs.fetch(hub.repository, tmp_path)
            assert [path.name for path in tmp_path.iterdir()] == [locks.NAME]
        hubs.fetch(hub.repository, tmp_path)
        with locks.writing(tmp_path, ""):
            hubs.fetch(hub.repository, tmp_path)  # whole: nothing is written


def test_a_dropped_connection_is_continued_where_it_ended(hub, tmp_path, monkeypatch):
    # Instead of 10 MB: it keeps whole chunks only.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    name = hub.root + "model.safetensors"
    hub.drops[name] = [40_000, 30_000]
    hubs.fetch(hub.repository, tmp_path)
    assert_whole(tmp_path)
    starts = [start for file, start in hub.ranges if file == name]
    assert starts == [0, 40_000, 70_000]


def test_what_arrives_damaged_is_fetched_once_more(hub, tmp_path):
    name = hub.root + "model.safetensors"
    hub.damages[name] = 1
    hubs.fetch(hub.repository, tmp_path)
    assert_whole(tmp_path)
    assert [file for file, _ in hub.ranges].count(name) == 2


@pytest.mark.parametrize(
    "file", ["model.safetensors", "physical-intelligence/libero/norm_stats.json"]
)
def test_what_arrives_damaged_twice_is_an_error(hub, tmp_path, file):
    hub.damages[hub.root + file] = 2
    with pytest.raises(
        ValueError, match=f"^{file} arrived damaged twice from .*; try another network"
    ):
        hubs.fetch(hub.repository, tmp_path)


def test_a_file_that_changed_here_is_fetched_again(hub, tmp_path):
    hubs.fetch(hub.repository, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(len(FILES["model.safetensors"])))
    hub.ranges.clear()
    hubs.fetch(hub.repository, tmp_path)
    assert_whole(tmp_path)
    assert hub.ranges == [(hub.root + "model.safetensors", 0)]


def test_a_file_the_hub_refuses_ends_at_once(hub, tmp_path):
    hub.refused.add(hub.root + "model.safetensors")
    with pytest.raises(ConnectionError, match="404"):
        hubs.fetch(hub.repository, tmp_path)


def test_nobody_answers(hub, tmp_path):
    hub.__exit__()
    with pytest.raises(ConnectionError):
        hubs.fetch(hub.repository, tmp_path)


@pytest.fixture
def google(monkeypatch):
    with serving(monkeypatch, "google") as server:
        yield server


def test_an_interrupted_run_is_continued_by_the_next(google, tmp_path):
    name = google.root + "model.safetensors"
    google.drops[name] = [1000, *[0] * transfer.ATTEMPTS]
    with pytest.raises(ConnectionError, match="the connection ended after 1000 bytes"):
        hubs.fetch(google.repository, tmp_path)
    assert not (tmp_path / "model.safetensors").exists(), (
        "an unfinished file does not bear its name"
    )
    google.ranges.clear()
    hubs.fetch(google.repository, tmp_path)
    assert_whole(tmp_path)
    assert (name, 1000) in google.ranges and (name, 0) not in google.ranges


def test_only_attempts_without_progress_count(google, tmp_path):
    google.drops[google.root + "model.safetensors"] = [9_000] * 12
    hubs.fetch(google.repository, tmp_path)
    assert_whole(tmp_path)


def test_a_server_that_knows_no_ranges(google, tmp_path):
    google.keeps_ranges = False
    google.drops[google.root + "model.safetensors"] = [100_000]
    hubs.fetch(google.repository, tmp_path)
    assert_whole(tmp_path)


def test_a_longer_leftover_is_not_continued(google, tmp_path):
    (tmp_path / "model.safetensors.unfinished").write_bytes(bytes(400_000))
    hubs.fetch(google.repository, tmp_path)
    assert_whole(tmp_path)


def test_one_object_of_a_bucket(google, tmp_path):
    google.files["tokenizer.model"] = b"words"
    hubs.fetch(hubs.Repository("google", "bucket/tokenizer.model"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_without_a_checksum_the_size_decides(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"123")
    assert hubs.is_whole(path, hubs.File("x", 3))
    assert not hubs.is_whole(path, hubs.File("x", 4))
    assert not hubs.is_whole(tmp_path / "absent", hubs.File("absent", 0))


def test_names_that_leave_the_folder(google, tmp_path):
    google.files["checkpoints/x/../../outside"] = b"x"
    with pytest.raises(ValueError, match=r"outside .*; nothing was fetched"):
        hubs.fetch(google.repository, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_empty_listing_is_an_error(google, tmp_path):
    with pytest.raises(ConnectionError, match=r"gs://bucket/absent/ .* lists no file"):
        hubs.fetch(hubs.Repository("google", "bucket/absent/"), tmp_path)


@pytest.mark.parametrize("content", [b"", b"123", b"12345"], ids=len)
def test_a_file_of_another_size_is_not_whole(tmp_path, content):
    """Also where the hub gives no checksum."""
    path = tmp_path / "file"
    assert not hubs.is_whole(path, hubs.File("file", 4))
    path.write_bytes(content)
    assert not hubs.is_whole(path, hubs.File("file", 4))
    path.write_bytes(b"1234")
    assert hubs.is_whole(path, hubs.File("file", 4))


def test_a_file_without_a_checksum_that_lies_there_cut_short_is_fetched(tmp_path, monkeypatch):
    """The listing gives sizes alone, as ModelScope does for some files."""
    fetched = []

    def copy(repository, files, folder):
        fetched.extend(file.name for file in files)
        (folder / "file").write_bytes(b"1234")

    def listing(repository):
        return [hubs.File("file", 4)]

    hub = dataclasses.replace(hubs.HUBS["modelscope"], listing=listing, copy=copy)
    monkeypatch.setitem(hubs.HUBS, "modelscope", hub)
    (tmp_path / "file").write_bytes(b"123")
    hubs.fetch(REPOSITORIES["modelscope"], tmp_path)
    assert fetched == ["file"]


# ---- hostile listings ----------------------------------------------------------------------------


def modelscope_file(**changes):
    entry = {"Path": "a.json", "Type": "blob", "Size": 3, "Sha256": "00"} | changes
    return {"Data": {"Files": [entry]}}


def google_file(**changes):
    item = {"name": "checkpoints/x/a.json", "size": "3", "crc32c": "AAAAAA=="} | changes
    return {"items": [item]}


STRANGE = ["../out", "/etc/out", "a/../b", "", ".", "a//b", "a/", "..\\out", "a\x1b[2Jb", "a\nb"]
LISTINGS = [
    *[("modelscope", modelscope_file(Path=name), "would lie outside") for name in STRANGE],
    ("modelscope", modelscope_file(Size=-1), "lists a.json without a size"),
    ("modelscope", modelscope_file(Size=1 << 50), "lists a.json without a size"),
    ("modelscope", modelscope_file(Size="3"), "Size of .* should be a whole number"),
    ("modelscope", modelscope_file(Sha256=7), "Sha256 of .* should be a text"),
    ("modelscope", modelscope_file(Path=None), "Path of .* should be a text"),
    ("modelscope", {"Data": None}, "has no Data.Files"),
    ("modelscope", {"Code": 500}, "has no Data.Files"),
    ("google", google_file(name="checkpoints/x/../../../out"), "would lie outside"),
    ("google", google_file(size="many"), "invalid literal"),
    ("google", google_file(size="9" * 5000), "limit"),
    ("google", google_file(crc32c="?"), "gs://bucket/checkpoints/x/.*: "),
    ("google", {"items": [7]}, "has no name"),
    ("google", {"items": 7}, "items of .* should be a list"),
    ("google", google_file() | {"nextPageToken": "again"}, "more than 1000 pages"),
    ("google", {"items": 2 * google_file()["items"]}, "lists a.json twice; nothing was fetched"),
]


@pytest.mark.parametrize("name, answer, said", LISTINGS)
def test_a_listing_that_no_hub_would_give_fetches_nothing(
    tmp_path, monkeypatch, name, answer, said
):
    monkeypatch.setattr(transfer, "read_json", lambda url: answer)
    with pytest.raises(ValueError, match=said) as caught:
        hubs.fetch(REPOSITORIES[name], tmp_path)
    assert str(REPOSITORIES[name].page) in str(caught.value) and str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b"<html>", "is no JSON"),
        (b"[" * 100_000, "is nested too deep"),
        (b"[]", "should be an object"),
        (b" " * (1 << 24) + b"{}", "answers with more than 16,777,216 bytes"),
    ],
    ids=["empty", "a page", "nests", "a list", "too long"],
)
def test_an_answer_that_is_no_listing_is_out_of_reach(google, tmp_path, content, said, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    google.files["listing"] = content
    monkeypatch.setattr(
        hubs, "_google_objects", lambda bucket: f"{google.url}/storage/v1/b/x/o/listing"
    )
    with pytest.raises(ConnectionError, match=said):
        hubs.fetch(google.repository, tmp_path)


def test_a_server_that_sends_without_end_fills_no_disk(google, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "BLOCK", 1000)
    name = google.root + "model.safetensors"
    listing = google.google

    def shorter(prefix, page):
        answer = listing(prefix, page)
        for item in answer["items"]:
            if item["name"] == name:
                item["size"] = "5000"
        return answer

    monkeypatch.setattr(google, "google", shorter)
    with pytest.raises(ValueError, match=r"^model.safetensors arrived damaged twice"):
        hubs.fetch(google.repository, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == 5000
