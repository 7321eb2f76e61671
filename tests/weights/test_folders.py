"""Checkpoints that were damaged, in every way that a disk or a person has."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from pirl_jax.weights import folders, store

STATES = {
    8: {"params": {"w": np.arange(2048.0), "b": np.ones(3, np.int32)}, "step": np.int32(8)},
    12: {"params": {"w": np.arange(2048.0) ** 2, "b": np.zeros(3, np.int32)}, "step": np.int32(12)},
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder with two checkpoints."""
    directory = tmp_path_factory.mktemp("intact") / "checkpoints"
    opened = store.Store(directory)
    for iteration, state in STATES.items():
        opened.save(iteration, state, {"iteration": iteration})
    opened.wait()
    opened.close()
    return directory


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path):
    path.unlink()


def make_folder(path):
    path.unlink()
    path.mkdir()


FILE_DAMAGES = (truncate, flip, empty, grow, delete, make_folder)


def empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def make_file(path):
    shutil.rmtree(path)
    path.write_text("a file")


def mend(damaged, intact):
    if damaged.is_dir():
        shutil.rmtree(damaged)
    else:
        damaged.unlink(missing_ok=True)
    (shutil.copytree if intact.is_dir() else shutil.copy2)(intact, damaged)


FOLDER_DAMAGES = (shutil.rmtree, empty_folder, make_file)


def resumed(directory):
    """As a training run does it -> the iteration and what it restores."""
    found = folders.newest(directory)
    folders.set_aside(directory, found.damaged)
    opened = store.Store(directory)
    state, extra = opened.restore(STATES[8])
    opened.close()
    assert extra == {"iteration": found.newest}
    return found, state


def assert_restored(directory):
    found, state = resumed(directory)
    wanted = STATES[found.newest]
    np.testing.assert_array_equal(state["params"]["w"], wanted["params"]["w"])
    np.testing.assert_array_equal(state["params"]["b"], wanted["params"]["b"])
    assert state["step"] == wanted["step"]
    return found


def test_whatever_is_damaged_the_older_one_is_found(intact, tmp_path):
    """Every file and every folder of the newest checkpoint, in every way."""
    there = sorted((intact / "12").rglob("*"))
    cases = [(path, damage) for path in there if path.is_file() for damage in FILE_DAMAGES]
    cases += [(path, damage) for path in there if path.is_dir() for damage in FOLDER_DAMAGES]
    kinds = {path.name for path in there}
    assert {"_CHECKPOINT_METADATA", "checksums.json", "_METADATA", "manifest.ocdbt", "d"} < kinds
    assert len(cases) > 90
    copy = shutil.copytree(intact, tmp_path / "copy")
    accepted = []
    for path, damage in cases:
        damaged = copy / path.relative_to(intact)
        damage(damaged)
        found = folders.newest(copy)
        if found.newest != 8 or len(found.damaged[12]) < 10:
            accepted.append((damage.__name__, damaged))
        mend(damaged, path)
    assert accepted == []
    assert folders.newest(copy) == folders.Survey(12, {})


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "state/_METADATA", "checksums.json"])
@pytest.mark.parametrize("damage", [truncate, flip, delete])
def test_a_damaged_checkpoint_is_kept_aside_and_the_older_one_restored_bit_for_bit(
    intact, tmp_path, name, damage
):
    copy = shutil.copytree(intact, tmp_path / "copy")
    damage(copy / "12" / name)
    found = assert_restored(copy)
    assert found.newest == 8 and list(found.damaged) == [12]
    assert {path.name for path in copy.iterdir()} == {"8", "12.damaged"}


def test_a_flipped_byte_of_an_array_is_named(intact, tmp_path):
    copy = shutil.copytree(intact, tmp_path / "copy")
    largest = max((copy / "12").rglob("*"), key=lambda path: path.stat().st_size)
    flip(largest)
    name = largest.relative_to(copy / "12").as_posix()
    assert folders.newest(copy).damaged == {12: f"{name} has another checksum"}


def test_an_emptied_folder_and_strays_do_not_matter(intact, tmp_path):
    copy = shutil.copytree(intact, tmp_path / "copy")
    empty_folder(copy / "12")
    for name in ("foo", "13.orbax-checkpoint-tmp", "17", "14.partial"):
        (copy / name).mkdir()
    (copy / "19").write_text("a file")
    found = assert_restored(copy)
    assert found == folders.Survey(8, {})


def test_none_intact_is_a_sentence_and_nothing_moves(intact, tmp_path):
    copy = shutil.copytree(intact, tmp_path / "copy")
    for iteration in STATES:
        delete(copy / str(iteration) / "_CHECKPOINT_METADATA")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is intact \(12: .*; 8: .*\); copy"):
        folders.newest(copy)
    assert {path.name for path in copy.iterdir()} == {"8", "12"}
    shutil.rmtree(copy / "8")
    (copy / "12").rename(copy / "12.damaged")  # and a second start does not begin anew
    with pytest.raises(ValueError, match=r"is intact \(12.damaged\); copy"):
        folders.newest(copy)


def test_checkpoints_of_earlier_versions_have_no_checksums(intact, tmp_path):
    copy = shutil.copytree(intact, tmp_path / "copy")
    delete(copy / "12" / "checksums.json")
    metadata = copy / "12" / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"custom_metadata": {}}))
    assert assert_restored(copy).newest == 12


def test_readers_hear_of_an_intact_one_and_change_nothing(intact, tmp_path):
    run = tmp_path / "run"
    copy = shutil.copytree(intact, run / "checkpoints")
    flip(copy / "12" / "state" / "manifest.ocdbt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for given in (run, copy, copy / "12"):
        with folders.holding(given) as place:
            assert place == copy / "12"
            with pytest.raises(ValueError, match=r"12 is damaged .*\(--iteration 8\)"):
                folders.require_intact(place)
    with folders.holding(run, 8) as place:
        folders.require_intact(place)
    absent = pytest.raises(ValueError, match=r"no checkpoint of iteration 9; it holds \[8, 12\]")
    with absent, folders.holding(run, 9):
        pass
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with folders.holding(pathlib.Path("elsewhere"), 3) as place:
        assert place == pathlib.Path("elsewhere")


def test_a_checkpoint_that_goes_while_somebody_looks_stands_no_more(intact, tmp_path, monkeypatch):
    """Old ones are removed in the background of training and of its readers."""
    copy = shutil.copytree(intact, tmp_path / "checkpoints")
    listed = pathlib.Path.iterdir

    def removed_meanwhile(path):
        if path.name == "8":
            shutil.rmtree(path)
        return listed(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", removed_meanwhile)
    assert folders.standing(copy) == [12]


def test_a_secret_that_is_called_as_a_file_of_ours_damages_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "state")
    folder = tmp_path / "8"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "array").write_bytes(b"numbers")
    (folder / folders.METADATA).write_text("{}")
    folders.seal(folder)
    assert folders.damage(folder) == ""


def test_what_is_read_is_pruned_later(intact, tmp_path):
    copy = shutil.copytree(intact, tmp_path / "checkpoints")
    opened = store.Store(copy, keep=2)
    with folders.holding(copy, 8):
        opened.save(16, STATES[12])
        opened.wait()
        assert folders.standing(copy) == [8, 12, 16]
        state, _ = opened.restore(STATES[8], 8)
        assert state["step"] == 8
    opened.save(20, STATES[12])
    opened.wait()
    assert folders.standing(copy) == [16, 20]
    with folders.holding(copy, 16):
        opened.save(24, STATES[12])
        opened.wait()
    opened.close()
    assert folders.standing(copy) == [20, 24]
