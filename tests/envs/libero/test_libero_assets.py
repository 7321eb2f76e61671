"""Which asset files the tasks need: against the complete folder, and with each kind of damage."""

import pathlib
import shutil

import pytest

from pirl_jax.envs.libero import assets as libero_assets


@pytest.fixture
def assets(libero_assets):
    return libero_assets


@pytest.fixture
def copy(assets, tmp_path):
    """Links to all files: each test breaks some."""
    shutil.copytree(
        assets, tmp_path / "assets", copy_function=lambda a, b: pathlib.Path(b).symlink_to(a)
    )
    return tmp_path / "assets"


def test_what_the_tasks_name():
    assert len(libero_assets.categories()) == 33
    assert {"akita_black_bowl", "flat_stove", "wooden_cabinet"} < libero_assets.categories()
    assert "kitchen_table" not in libero_assets.categories(), "part of the scene"
    scenes = dict(libero_assets.scenes())
    assert len(scenes) == 5
    assert (
        scenes["scenes/libero_kitchen_tabletop_base_style.xml"]["texplane"]
        == "gray_ceramic_tile.png"
    )


def test_the_complete_folder(assets):
    """All 130 tasks are known to build from it."""
    assert libero_assets.missing(assets) == []


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
    assert libero_assets.missing(copy) == [said or name]


def test_empty_files_and_lfs_pointers_are_absent(copy):
    names = ["textures/gray_ceramic_tile.png", "articulated_objects/meshes/microwave/micro.stl"]
    for name, text in zip(
        names, ("", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), strict=True
    ):
        (copy / name).unlink()
        (copy / name).write_text(text)
    assert libero_assets.missing(copy) == sorted(names)


def test_an_empty_folder_lacks_every_object_and_scene(tmp_path):
    assert len(libero_assets.missing(tmp_path)) == 33 + 5
