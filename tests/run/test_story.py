"""What the page tells: the numbers of the folders, pairs on equal start states, no secret."""

import json
import re

import pytest

from pirl_jax.run import records, story
from tests import run_folders


def told(*folders):
    return story.told([records.read(folder) for folder in folders])


def test_a_run(tmp_path):
    data = told(run_folders.run(tmp_path / "a", optim__lr=0.125))
    (source,) = data["sources"]
    run = source["run"]
    assert (source["name"], run["algorithm"], run["ended"]) == ("a", "PPO", True)
    assert (run["iterations"], run["total"]) == (4, 4) and data["pairs"] == []
    assert run["training"][0][:2] == [0, 0.25] and len(run["training"]) == 4
    low, high = run["training"][0][2:]
    assert low < 0.25 < high
    assert run["panels"]["actor/approx_kl3"][3] == [3, 0.03]
    assert run["panels"]["critic/explained_variance"] == [], "nan is no point"
    assert run["time"][0]["parts"]["env"] == 2.0 and run["time"][0]["whole"] == 3.5
    faults = {fault["what"]: fault for fault in run["faults"]}
    assert faults["simulators replaced"] == {
        "what": "simulators replaced",
        "count": 1.0,
        "where": [1],
    }
    assert run["against"] == "the recipe tabletop_small"
    changes = dict(run["changes"])
    assert changes["optim.lr"].endswith("-> 0.125") and changes["num_iterations"].endswith("-> 4")
    assert [one["name"] for one in source["evaluations"]] == ["before", "after"]
    total = source["change"]["total"]
    assert (total["pairs"], total["gained"], total["lost"]) == (20, 6, 0)
    assert {pair["gained"] for pair in source["change"]["tasks"].values()} == {3}


def test_a_run_that_still_trains(tmp_path):
    run_folders.run(tmp_path / "a", finished=False)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "env/succ')  # a row that is being written
    (source,) = told(tmp_path / "a")["sources"]
    assert not source["run"]["ended"] and source["run"]["iterations"] == 4
    assert "change" not in source


def test_a_run_that_goes_on_to_more_iterations_has_not_ended(tmp_path):
    folder = run_folders.run(tmp_path / "a")
    page = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(page | {"num_iterations": 9}))
    (source,) = told(folder)["sources"]
    assert not source["run"]["ended"] and source["run"]["total"] == 9


def test_a_run_before_its_first_row(tmp_path):
    run_folders.run(tmp_path / "a", iterations=0, finished=False)
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    (source,) = told(tmp_path / "a")["sources"]
    assert source["run"]["training"] == source["run"]["findings"] == source["run"]["time"] == []


@pytest.mark.parametrize("foreign", ["{}", "[1]", "no json"])
def test_an_evaluation_in_a_folder_with_a_foreign_configuration(tmp_path, foreign):
    run_folders.evaluation(tmp_path / "model", run_folders.outcomes(4))
    (tmp_path / "model" / "config.json").write_text(foreign)
    record = records.read(tmp_path / "model")
    assert not record.is_run and len(record.evaluations) == 1


def test_evaluations_in_the_order_they_were_played(tmp_path):
    run = run_folders.run(tmp_path / "a")
    for name in ("iteration_40", "iteration_8", "checkpoint_4"):
        run_folders.evaluation(run / "evaluation" / name, run_folders.outcomes(4))
    (source,) = told(run)["sources"]
    names = [one["name"] for one in source["evaluations"]]
    assert names == ["before", "iteration_8", "iteration_40", "after", "checkpoint_4"]
    assert (source["change"]["first"], source["change"]["second"]) == ("before", "after")


def test_several_are_compared_with_the_first_on_equal_start_states(tmp_path):
    first = run_folders.run(tmp_path / "x" / "a")
    second = run_folders.run(tmp_path / "y" / "a", after=8)
    only = tmp_path / "c"
    run_folders.evaluation(only, {(0, 3): (False, 50), (1, 99): (True, 9)}, seed=7)
    data = told(first, second, only)
    assert [source["name"] for source in data["sources"]][:2] == ["x/a", "y/a"]
    better, shared = data["pairs"]
    assert (better["total"]["gained"], better["total"]["pairs"]) == (4, 20)
    assert better["unlike"] == []
    assert (shared["total"]["pairs"], shared["total"]["lost"]) == (1, 1)
    assert shared["unlike"] == ["seed"]
    run_folders.evaluation(only, {(0, 3): (False, 50)}, suite="libero_goal")
    assert told(first, only)["pairs"][0]["total"] is None, "other tasks of the same numbers"


def test_lost_episodes_are_neither_failures_nor_pairs(tmp_path):
    folder = tmp_path / "a"
    run_folders.evaluation(folder, {(0, 0): (True, 5)}, lost=[(0, 1)])
    (source,) = told(folder)["sources"]
    (one,) = source["evaluations"]
    assert [episode[2] for episode in one["episodes"]] == [1, 2]
    assert one["total"]["episodes"] == 1 and one["tasks"][0]["lost"] == 1


def test_a_recipe_from_elsewhere_is_not_run(tmp_path):
    """A folder that was copied from somebody decides over no code."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "quickstart.py").write_text("raise SystemExit('ran')\n")
    for number, recipe in enumerate((tmp_path / "evil.py", tmp_path / "quickstart.py")):
        start = run_folders.START | {"command": ["train", f"--config={recipe}"]}
        (source,) = told(run_folders.run(tmp_path / str(number), start=start))["sources"]
        assert source["run"]["against"].startswith("the defaults")


def test_secrets_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hush-0123456789")
    start = run_folders.START | {"command": ["train", "--api-key=x", "hush-0123456789"]}
    run = run_folders.run(tmp_path / "run", start=start)
    (run / "environment.json").write_text(json.dumps([start]))  # as another program left it
    words = ("the key hush-0123456789", "ws://user:pass@host/x")
    run_folders.evaluation(run / "evaluation" / "after", {(0, 0): (True, 5)}, tasks=words)
    story.write(tmp_path / "page.html", [records.read(run)])
    page = (tmp_path / "page.html").read_text()
    assert "hush-0123456789" not in page and "user:pass" not in page and "***" in page


def test_long_runs_have_as_many_points_as_a_screen(tmp_path):
    run = run_folders.run(tmp_path / "a", iterations=1000)
    (source,) = told(run)["sources"]
    line = source["run"]["training"]
    assert len(line) <= story.MOST_POINTS and line[-1][0] == 999
    bars = source["run"]["time"]
    assert len(bars) <= story.MOST_BARS and sum(bar["count"] for bar in bars) == 1000


def test_videos_are_in_the_page_as_far_as_there_is_room(tmp_path):
    run = run_folders.run(tmp_path / "javascript:a")
    for name, size in (("before", 60), ("after", 50)):
        videos = run / "evaluation" / name / "videos"
        videos.mkdir()
        (videos / "task_0_init_3_success.mp4").write_bytes(bytes(size))
        (videos / "notes.mp4").write_bytes(b"")
    story.write(tmp_path / "page.html", [records.read(run)], most_video_bytes=100)
    page = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    before, after = (one["videos"] for one in data["sources"][0]["evaluations"])
    assert set(after) == {"0:3"} and set(after["0:3"]) == {"data"}, "the latest first"
    link = "./javascript%3Aa/evaluation/before/videos/task_0_init_3_success.mp4"
    assert before == {"0:3": {"link": link}}


def test_films_of_training_the_latest_first(tmp_path):
    run = run_folders.run(tmp_path / "a")
    folder = run / "video" / "train"
    folder.mkdir(parents=True)
    for iteration in range(0, 100, 2):
        (folder / f"iteration_{iteration}_episode_0.mp4").write_bytes(bytes(10))
    story.write(tmp_path / "page.html", [records.read(run)], most_video_bytes=15)
    page = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    films = data["sources"][0]["films"]
    assert len(films) == story.MOST_FILMS
    assert [set(one) for one in films[:2]] == [{"name", "data"}, {"name", "link"}]
    assert [one["name"] for one in films[:2]] == [
        "iteration_98_episode_0",
        "iteration_96_episode_0",
    ]


def test_films_that_lie_elsewhere_are_in_the_page(tmp_path):
    run = run_folders.run(tmp_path / "a", video__directory=str(tmp_path / "films"))
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "iteration_3_episode_0.mp4").write_bytes(bytes(10))
    assert [path.stem for path in records.read(run).films] == ["iteration_3_episode_0"]


PLACES = ("config.json", "environment.json", "metrics.jsonl", "evaluation/after/evaluation.json")
DAMAGES = ("", "{", "[]", "[1]", '{"a": 1}', '{"episodes": [1]}', '[{"iteration": true}]', "\0")
NEVER_WRONG = {
    ("environment.json", "[]"),
    ("environment.json", '[{"iteration": true}]'),
    ("metrics.jsonl", ""),
    ("metrics.jsonl", "{"),  # half a row, as a kill leaves it
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", DAMAGES)
def test_damaged_files_are_named(tmp_path, place, text, finished):
    run = run_folders.run(tmp_path / "a", finished=finished)
    path = run / place
    if not path.exists():
        return
    path.write_text(text + "\n" * (place == "metrics.jsonl" and text not in ("", "{")))
    if (place, text) in NEVER_WRONG:
        told(run)
        return
    with pytest.raises(ValueError, match=re.escape(str(path))):
        told(run)
