"""The files of an evaluation say what was measured and how."""

import json

import numpy as np
import pytest

from pirl_jax.core import endings
from pirl_jax.envs import base as envs
from pirl_jax.envs.libero import files
from pirl_jax.recipes import base, tabletop_small
from pirl_jax.rollout import starts, stream
from pirl_jax.run import config, results

NAMES = ("reach", "lift")
SPEC = envs.EnvSpec("tabletop", NAMES, 1000, max_episode_steps=60, image_size_px=64)
CHOSEN = starts.Starts((0, 1), range(800), range(800, 1000))


@pytest.fixture
def some_assets(tmp_path, monkeypatch):
    for name in files.ASSET_FOLDERS:
        (tmp_path / "assets" / name).mkdir(parents=True)
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", str(tmp_path / "assets"))


def played():
    return [
        stream.Result(
            stream.Episode(1, 800), success=True, reward=1.0, num_steps=30, num_decisions=6
        ),
        stream.Result(
            stream.Episode(0, 800), success=False, reward=0.0, num_steps=50, num_decisions=10
        ),
        stream.Result(
            stream.Episode(1, 801), success=False, reward=0.0, num_steps=40, num_decisions=8
        ),
        stream.Result(stream.Episode(0, 801), lost=True),
    ]


def test_successes_by_task():
    assert results.successes(played(), NAMES) == {"reach": (0, 1), "lift": (1, 2)}
    with pytest.raises(endings.Failure, match="all 1 episodes of the evaluation were lost"):
        results.successes(played()[3:], NAMES)


def test_files_of_an_evaluation(tmp_path):
    settings = config.settings(tabletop_small.get_config())
    assert results.read_successes(tmp_path) is None
    measured = {"policy": {"name": "SFT"}, "protocol": results.protocol(settings, SPEC, CHOSEN, 2)}
    text = results.write(tmp_path, settings, measured, played(), NAMES, "SFT")
    assert results.read_successes(tmp_path) == {"reach": (0, 1), "lift": (1, 2)}
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["episodes"][0] == {
        "task": 1,
        "init_state": 800,
        "success": True,
        "steps": 30,
        "decisions": 6,
        "reward": 1.0,
        "thrown": False,
    }
    assert (
        len(written["episodes"]) == written["num_episodes"] == 3 and written["episode_len"] == 40.0
    )
    assert [(row["task"], row["init_state"]) for row in written["lost_episodes"]] == [(0, 801)]
    assert written["table"]["rows"]["SFT"]["total"]["successes"] == 1
    assert written["per_suite"]["tabletop"] == written["table"]["rows"]["SFT"]["total"]
    assert "OpenGL" in written["renderer"] and written["environment"]["packages"]["mujoco"]
    assert text + "\n" == (tmp_path / "table.txt").read_text()
    for said in (
        "split held_out (start states 800 to 801 of each task)",
        "rendering light",
        "seed 42",
        "1 episodes lost",
        " 35.0",
    ):
        assert said in text, said


def test_the_protocol_has_every_number(some_assets):
    page = base.get_config()
    page.env.update(suite="libero_130", protocol="openpi")
    protocol = results.protocol(
        config.settings(page), SPEC, starts.Starts((0, 129), range(40), range(40, 50)), 0
    )
    assert (
        protocol["init_states"] == [40, 50]
        and protocol["trained_on_init_states"] == [0, 40]
        and protocol["split"] == "held_out"
    )
    assert list(protocol["max_episode_steps"].values()) == [220, 280, 300, 520, 400]
    assert (
        protocol["name"],
        protocol["settle_steps"],
        protocol["action_chunk"],
        protocol["seed"],
    ) == ("openpi", 10, 5, 42)
    page.env.max_episode_steps = 7
    assert results.protocol(config.settings(page), SPEC, CHOSEN, 0)["max_episode_steps"] == 60
    tabletop = results.protocol(config.settings(tabletop_small.get_config()), SPEC, CHOSEN, 0)
    assert (
        tabletop["max_episode_steps"] == 60
        and tabletop["settle_steps"] == 0
        and tabletop["name"] == "tabletop's own"
    )
    assert protocol["assets"]["files"] == 0 and protocol["assets"]["package"] is None
    assert tabletop["assets"] is None


def test_the_suites_of_libero_130_get_a_row_each(some_assets, tmp_path, monkeypatch):
    settings = config.settings(base.get_config())
    tasks = [files.Task("libero_goal", "a"), files.Task("libero_90", "b")]
    settings = config.changed(settings, {"env.suite": "libero_goal,libero_90"})
    monkeypatch.setattr(files, "tasks", lambda suite, folders: tasks)
    measured = {
        "policy": {"name": "expert"},
        "protocol": results.protocol(settings, SPEC, CHOSEN, 2),
    }
    text = results.write(tmp_path, settings, measured, played(), NAMES, "expert")
    per_suite = json.loads((tmp_path / "evaluation.json").read_text())["per_suite"]
    counts = {name: (cell["successes"], cell["episodes"]) for name, cell in per_suite.items()}
    assert counts == {"libero_goal": (0, 1), "libero_90": (1, 2)}
    names = [line.split()[0] for line in text.splitlines() if "/" in line]
    assert names[:5] == ["reach", "lift", "libero_goal", "libero_90", "total"]


def test_rows_read_back():
    for result in played()[:3]:
        assert results.from_row(json.loads(json.dumps(results.row(result)))) == result


@pytest.mark.parametrize(
    "change, said",
    [
        ({"task": None}, "task of .*episodes.jsonl is null and should be a whole number"),
        ({"task": True}, "task of .* is true"),
        ({"init_state": 1.5}, "init_state of .* is 1.5"),
        ({"success": 1}, "success of .* is 1 and should be true or false"),
        ({"reward": float("nan")}, "reward of .* is NaN and should be a finite number"),
        ({"steps": 10**30}, "steps of .* should be a whole number"),
        ({"task": 7}, "has task 7 from start state 800, which this evaluation does not play"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, change, said):
    path = tmp_path / "episodes.jsonl"
    played_rows = [results.row(result) for result in played()[:3]]
    episodes = [result.episode for result in played()[:3]]
    played_rows[0] = played_rows[0] | change
    with pytest.raises(ValueError, match=f"{said}.*; remove the file to play all") as caught:
        results.finished(played_rows, episodes, path)
    assert str(path) in str(caught.value)
    without = {name: value for name, value in played_rows[1].items() if name != "steps"}
    for row in (without, 7, [], None):
        with pytest.raises(ValueError, match=f"^{path} has no "):
            results.finished([row], episodes, path)


def test_rows_are_found_again_by_their_episode(tmp_path):
    some = played()[:3]
    episodes = [result.episode for result in some]
    rows = json.loads(json.dumps([results.row(result) for result in some]))
    assert results.finished(rows, episodes, tmp_path) == dict(enumerate(some))
    assert results.finished(rows[1:], episodes, tmp_path) == {1: some[1], 2: some[2]}


@pytest.mark.parametrize(
    "table, said",
    [
        ([{"instruction": "a", "episodes": 2, "successes": 3}], "has 3 successes of 2 episodes"),
        ([{"instruction": "a", "episodes": 2}], "has no successes"),
        ([7], "has no instruction"),
        ("x", 'per_task of .* is "x" and should be a list'),
    ],
)
def test_a_damaged_evaluation_before_a_run_ends_it_with_a_sentence(tmp_path, table, said):
    folder = tmp_path / "evaluation" / "before"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"per_task": table}))
    with pytest.raises(ValueError, match=said):
        results.read_successes(folder)
    with pytest.raises(endings.Failure, match=f"not its table: .*{said}.*; move {folder} away"):
        results.write_comparison(tmp_path, tabletop_small.get_config(), {"a": (1, 2)})


@pytest.mark.parametrize(
    "choice, chosen",
    [("all", [0, 1, 2]), ("failures", [1, 2]), ("1:801", [2]), ("0:800,1:801,7:7", [1, 2])],
)
def test_choice_of_videos(choice, chosen):
    wanted = results.chosen_videos(choice)
    assert [
        k for k, result in enumerate(played()[:3]) if wanted(result.episode, result.success)
    ] == chosen


@pytest.mark.parametrize("choice", ["some", "1", "1:", "1:2;3:4", ""])
def test_a_choice_of_no_videos(choice):
    with pytest.raises(
        ValueError, match="is no choice of episodes; give all, failures, or pairs like"
    ):
        results.chosen_videos(choice)


@pytest.mark.parametrize("choice", ["9:9", "0:800,9:9", "1:801,9:9,8:8"])
def test_videos_of_episodes_that_nobody_plays_are_refused(choice):
    episodes = [result.episode for result in played()[:3]]
    with pytest.raises(ValueError, match=r"asks for 9:9, which is not played; .* 3 episodes are "):
        results.require_played(choice, episodes)


@pytest.mark.parametrize("choice", ["all", "failures", "0:800", "0:800,1:801"])
def test_videos_of_episodes_that_are_played(choice):
    results.require_played(choice, [result.episode for result in played()[:3]])


def test_a_video_is_named_by_episode_and_outcome(tmp_path):
    result = played()[0]
    result.frames = [np.zeros((16, 16, 3), np.uint8)] * 4
    results.film(tmp_path, result, NAMES)
    assert (
        tmp_path / "videos/task_1_init_800_success.mp4"
    ).stat().st_size > 0 and result.frames is None
