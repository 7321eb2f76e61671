"""Suites beside those that they perturb: which are played, and the table of what it costs."""

import itertools
import json

import pytest

from pirl_jax.core import page
from pirl_jax.envs import base as envs
from pirl_jax.envs.libero import files, plus
from pirl_jax.monitor import report
from pirl_jax.recipes import base
from pirl_jax.rollout import starts, stream
from pirl_jax.run import config, perturbations, results

LIST = "libero_goal,libero_goal_swap,libero_goal_task"


def env(**fields):
    return page.Env(**fields)


def test_all_perturbations_of_a_suite():
    fields = perturbations.with_pro(env(suite="libero_10", tasks=(3, 0)), "all")
    suites = fields["env.suite"].split(",")
    assert suites == ["libero_10", *(f"libero_10_{name}" for name in files.PRO_DIMENSIONS)]
    tasks = files.tasks(fields["env.suite"])
    chosen = [(tasks[task].suite, tasks[task].number) for task in fields["env.tasks"]]
    assert chosen == list(itertools.product(suites, (3, 0)))
    some = perturbations.with_pro(env(suite="libero_goal"), "task,lan")
    assert some == {"env.suite": "libero_goal,libero_goal_task,libero_goal_lan", "env.tasks": ()}


@pytest.mark.parametrize(
    "suite, dimensions, said",
    [
        ("libero_goal", "env", "--pro 'env' does not exist; choose one of: all, lan, object"),
        ("libero_goal", "lan,lan", "--pro 'lan,lan' does not exist"),
        (
            "libero_90",
            "all",
            "--pro of env.suite 'libero_90' does not exist; choose one of: libero_10",
        ),
        ("libero_goal_lan", "all", "--pro of env.suite 'libero_goal_lan'"),
        ("tabletop", "all", "--pro of env.suite 'tabletop'"),
    ],
)
def test_what_cannot_be_perturbed(suite, dimensions, said):
    with pytest.raises(ValueError) as error:
        perturbations.with_pro(env(suite=suite), dimensions)
    assert said in str(error.value)


def test_all_of_libero_plus_for_a_suite():
    fields = perturbations.with_plus(env(suite="libero_10"), "all")
    names = [f"libero_10_plus_{name}" for name in plus.DIMENSIONS]
    assert fields == {"env.suite": ",".join(names), "env.split": "published"}
    some = perturbations.with_plus(env(suite="libero_goal"), "noise,robot")
    assert some["env.suite"] == "libero_goal_plus_noise,libero_goal_plus_robot"


def test_with_its_own_assets_all_of_libero_plus_is_more(tmp_path):
    own = env(suite="libero_10", plus_assets=str(tmp_path))
    names = [f"libero_10_plus_{name}" for name in plus.DIMENSIONS + plus.NEED_ASSETS]
    assert perturbations.with_plus(own, "all")["env.suite"] == ",".join(names)
    some = perturbations.with_plus(own, "light,camera")
    assert some["env.suite"] == "libero_10_plus_light,libero_10_plus_camera"


@pytest.mark.parametrize(
    "fields, dimensions, said",
    [
        ({"suite": "libero_goal"}, "light", "--plus light needs LIBERO-Plus's own assets"),
        ({"suite": "libero_goal"}, "noise,distractors", "--plus distractors needs LIBERO-Plus's"),
        ({"suite": "libero_goal"}, "background", "set env.plus_assets or PIRL_LIBERO_PLUS_ASSETS"),
        ({"suite": "libero_goal"}, "mirror", "--plus 'mirror' does not exist; choose one of: all"),
        ({"suite": "tabletop"}, "all", "--plus of env.suite 'tabletop' does not exist"),
        ({"suite": "libero_goal", "tasks": (1,)}, "all", "env.tasks=(1,) are not LIBERO-Plus's"),
    ],
)
def test_what_libero_plus_cannot_perturb(fields, dimensions, said):
    with pytest.raises(ValueError) as error:
        perturbations.with_plus(env(**fields), dimensions)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "suite, said",
    [
        ("libero_goal,libero_goal", "must name none of them twice"),
        ("libero_130,libero_10", "names a suite twice"),
        ("libero_goal,tabletop", "mixes simulators"),
        ("libero_goal,libero_nine", "env.suite='libero_nine' does not exist"),
        ("libero_goal,libero_goal_plus_robot", "mixes tasks of 1 and 50 start states"),
    ],
)
def test_lists_of_suites_that_make_no_sense(suite, said):
    fields = base.get_config()
    fields.env.suite = suite
    with pytest.raises(ValueError) as error:
        config.settings(fields)
    assert said in str(error.value)


def test_playable_tasks_of_a_list_are_known_by_suite():
    fields = base.get_config()
    fields.env.update(suite="libero_goal,libero_10_swap", tasks=(3, 14, 0))
    settings = config.settings(fields)
    spec = envs.EnvSpec("list", ("task",) * 20, 50, max_episode_steps=300, image_size_px=64)
    assert config.playable(settings.raw, spec).suites == ((3, 0), (14,))
    fields.env.suite = "libero_goal"
    fields.env.tasks = (3,)
    assert config.playable(config.settings(fields).raw, spec).suites == ()


def test_words_of_other_tasks_are_refused_with_the_configuration():
    fields = base.get_config()
    fields.env.update(suite="libero_goal,libero_goal_lan", wording="benchmark")
    with pytest.raises(ValueError, match="would give libero_goal_lan the instructions of"):
        config.settings(fields)


def test_thousands_of_tasks_are_no_table_for_a_terminal(tmp_path, monkeypatch):
    suite = "libero_goal_plus_camera"
    tasks = tuple(files.Task(suite, f"task {number}", number) for number in range(300))
    monkeypatch.setattr(files, "tasks", lambda suite, folders: tasks)
    monkeypatch.setattr(perturbations.perturbed_data, "identity", lambda suite, folders: {})
    fields = base.get_config()
    fields.env.update(suite=suite, split="published")
    settings = config.settings(fields)
    names = tuple(f"task {number}" for number in range(300))
    spec = envs.EnvSpec(suite, names, 1, max_episode_steps=300, image_size_px=64)
    chosen = starts.Starts(tuple(range(300)), range(1), range(1))
    done = [stream.Result(stream.Episode(task, 0), success=task < 30) for task in range(300)]
    measured = {"policy": {"name": "p"}, "protocol": results.protocol(settings, spec, chosen, 0)}
    text = results.write(tmp_path, settings, measured, done, names, "p")
    assert "10.0 % [" in text and "30/300" in text and "task 7" not in text
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(written["per_task"]) == 300 and len(written["table"]["rows"]["p"]["tasks"]) == 300
    assert written["per_suite"][suite]["successes"] == 30


def played(outcomes):
    """outcomes: {(place in LIST, task, start state): (success, thrown)}"""
    found = []
    for (place, task, state), (success, thrown) in outcomes.items():
        episode = stream.Episode(10 * place + task, state)
        found.append(stream.Result(episode, success=success, num_steps=9, thrown=thrown))
    return found


OUTCOMES = {
    (0, 0, 40): (True, False),
    (0, 0, 41): (True, False),
    (0, 1, 40): (False, False),
    (0, 1, 41): (True, False),
    (1, 0, 40): (False, True),
    (1, 0, 41): (True, False),
    (1, 1, 40): (True, True),
    (1, 1, 42): (False, False),  # its start state was not played unperturbed
    (2, 0, 40): (False, False),
}


def test_differences_are_of_the_same_tasks_and_start_states():
    lost = stream.Result(stream.Episode(21, 40), lost=True)
    table = perturbations.table(LIST, [*played(OUTCOMES), lost])
    assert list(table) == LIST.split(",")
    own, swap, task = table.values()
    assert (own["perturbs"], own["difference"], own["thrown"]) == (None, None, 0)
    assert (own["successes"], own["episodes"]) == (3, 4)
    assert (swap["successes"], swap["episodes"], swap["thrown"]) == (2, 4, 2)
    # Pairs: (lost, won), (won, won), (won, lost): as often better as worse.
    assert swap["difference"]["pairs"] == 3 and swap["difference"]["rate"] == 0.0
    assert task["difference"]["pairs"] == 1 and task["difference"]["rate"] == -1.0
    assert swap["perturbs"] == task["perturbs"] == "libero_goal"
    assert perturbations.table("libero_goal,libero_10_swap", played(OUTCOMES)[:8]) == {}
    assert perturbations.table("tabletop", played(OUTCOMES)) == {}
    assert list(perturbations.as_text({})) == []
    text = "\n".join(perturbations.as_text(table))
    for said in ("libero_goal_swap", " 50.0 % [", "3 pairs", "thrown", "-100.0 % ["):
        assert said in text, said


def test_an_evaluation_of_a_list_has_the_table_and_says_what_was_played(tmp_path, monkeypatch):
    monkeypatch.setattr(
        perturbations.perturbed_data, "identity", lambda suite, folders: {"source": suite}
    )
    fields = base.get_config()
    fields.env.update(suite=LIST, protocol="openpi")
    settings = config.settings(fields)
    names = tuple(f"task {number}" for number in range(30))
    spec = envs.EnvSpec(LIST, names, 50, max_episode_steps=300, image_size_px=64)
    chosen = starts.Starts((0, 1, 10, 11, 20), range(40), range(40, 50))
    protocol = results.protocol(settings, spec, chosen, 2)
    assert protocol["wording"] == {
        "libero_goal": "benchmark",
        "libero_goal_swap": "bddl",
        "libero_goal_task": "bddl",
    }
    assert set(protocol["data"]) == {"libero_goal_swap", "libero_goal_task"}
    assert protocol["max_episode_steps"] == dict.fromkeys(LIST.split(","), 300)
    measured = {"policy": {"name": "p"}, "protocol": protocol}
    text = results.write(tmp_path, settings, measured, played(OUTCOMES), names, "p")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["perturbations"] == perturbations.table(LIST, played(OUTCOMES))
    assert list(written["per_suite"]) == LIST.split(",")
    assert [row["thrown"] for row in written["episodes"]] == [False] * 4 + [True, False, True] + [
        False
    ] * 2
    assert "the start states of 2 episodes throw an object" in text


# ---- the interval -----------------------------------------------------------------------------


def counts(both, first, second, neither):
    return {
        (True, True): both,
        (True, False): first,
        (False, True): second,
        (False, False): neither,
    }


def test_a_difference_changes_its_sign_with_the_order():
    one = report.paired_difference(counts(20, 9, 3, 8))
    other = report.paired_difference(counts(20, 3, 9, 8))
    assert one["rate"] == pytest.approx(6 / 40) == -other["rate"]
    assert one["low"] == pytest.approx(-other["high"])
    assert one["low"] < one["rate"] < one["high"]


def test_equal_outcomes_leave_less_doubt_than_unrelated_ones():
    equal = report.paired_difference(counts(20, 0, 0, 20))
    unrelated = report.paired_difference(counts(10, 10, 10, 10))
    assert equal["high"] < 0.1 < unrelated["high"]


@pytest.mark.parametrize("cells", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 5, 0), (0, 0, 0, 7)])
def test_differences_at_the_edge_stay_within_reach(cells):
    found = report.paired_difference(counts(*cells))
    assert -1 <= found["low"] <= found["rate"] <= found["high"] <= 1
    assert found["low"] < found["high"]


def test_nineteen_of_twenty_intervals_hold_the_truth():
    """Over all outcomes of twelve pairs, weighed by their probability."""
    from scipy import stats

    chances = (0.5, 0.1, 0.25, 0.15)
    held = 0.0
    for both, first, second in itertools.product(range(13), repeat=3):
        neither = 12 - both - first - second
        if neither < 0:
            continue
        cells = (both, first, second, neither)
        found = report.paired_difference(counts(*cells))
        if found["low"] <= chances[1] - chances[2] <= found["high"]:
            held += stats.multinomial.pmf(cells, 12, chances)
    assert 0.93 < held < 0.99
