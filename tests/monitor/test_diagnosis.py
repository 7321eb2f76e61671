"""Every question finds its fault in a run that has it, and none in a healthy one."""

import math
import re

import pytest

from pirl_jax.monitor import diagnosis

HEALTHY = {
    "env/num_trajectories": 256.0,
    "actor/nonfinite_updates": 0.0,
    "actor/first_ratio_max_dev": 2e-6,
    "actor/approx_kl3": 0.01,
    "actor/pg_clipfrac": 0.1,
    "critic/explained_variance": 0.5,
    "rollout/groups": 32.0,
    "rollout/groups_kept": 16.0,
    "rollout/moved": 0.25,
    "rollout/moved_step_0": 0.2,
    "rollout/moved_step_1": 0.3,
}
COUNT = 10


def rows(success=None, evaluated=(0.45, 0.85), **changes):
    """Iterations of a run that learns, with the changes, and its first and last evaluation."""
    made = [{"iteration": 0, "eval/success_once": evaluated[0]}]
    for iteration in range(COUNT):
        rate = 0.4 + 0.04 * iteration if success is None else success
        row = {"iteration": iteration, "env/success_once": rate} | HEALTHY
        row |= {name.replace("__", "/"): value for name, value in changes.items()}
        made.append({name: value for name, value in row.items() if value is not None})
    last = {"iteration": COUNT - 1, "eval/success_once": evaluated[1]}
    return [*made, last]


def test_nothing_is_found_in_a_healthy_run():
    answers = diagnosis.findings(rows())
    assert {answer.verdict for answer in answers} == {"ok"}
    assert diagnosis.first(answers) is None


SICK = {
    "Are the updates finite?": [
        (dict(actor__nonfinite_updates=2.0), "stop", "optim.lr"),
        (dict(actor__approx_kl3="nan"), "look", "optim.lr"),
    ],
    "Do sampling and learning compute the same probabilities?": [
        (dict(actor__first_ratio_max_dev=0.01), "unknown", "bfloat16"),
        (dict(actor__first_ratio_max_dev=0.6), "stop", "--config probe"),
        (dict(actor__first_ratio_max_dev=None), "unknown", ""),
        (
            dict(actor__first_ratio_max_dev=None, actor__first_delta_v=0.01),
            "unknown",
            "bfloat16",
        ),
        (dict(actor__first_ratio_max_dev=None, actor__first_delta_v=1e-6), "ok", ""),
    ],
    "Do some episodes succeed and others fail?": [
        (dict(success=0.02), "stop", "sft.demonstrations"),
        (dict(success=0.98), "stop", "env.max_episode_steps"),
        (dict(env__num_trajectories=0.0), "unknown", ""),
    ],
    "Does exploring cost as much as it should?": [
        (dict(rollout__exploration_gap=0.37, rollout__moved=0.46), "look", "level .* by 0.5 "),
        (
            dict(
                rollout__exploration_gap=0.37,
                rollout__moved_step_0=0.15,
                rollout__moved_step_1=0.64,
            ),
            "look",
            "costs 37 points: model.noise_steps=all",
        ),
        (dict(rollout__exploration_gap=0.3, rollout__moved=None), "look", "lower .* by a third"),
        (dict(rollout__exploration_gap=0.3, rollout__moved=0.1), "look", "lower .* by a third"),
        (
            dict(rollout__exploration_gap=0.3, rollout__moved=1e-7),
            "look",
            "not by noise.*ema_decay",
        ),
        (
            dict(success=0.5, rollout__exploration_gap=0.0, rollout__moved=0.046),
            "look",
            "too small .* by 5 ",
        ),
        (
            dict(success=0.5, rollout__exploration_gap=0.0, rollout__moved=1e-7),
            "look",
            "^nothing but the start noise explores: model.noise_method=flow_sde$",
        ),
    ],
    "Are the updates neither too small nor too large?": [
        (dict(actor__approx_kl3=1e-4, actor__pg_clipfrac=0.001), "look", "larger"),
        (dict(actor__approx_kl3=0.06), "look", "target_kl"),
        (dict(actor__pg_clipfrac=0.4), "look", "target_kl"),
        (dict(actor__pg_clipfrac=None), "unknown", ""),
    ],
    "Does the critic predict returns?": [
        (dict(critic__explained_variance=-0.2), "look", "critic_warmup"),
    ],
    "Do groups of one start differ in their outcome?": [
        (dict(rollout__groups_kept=4.0), "look", "max_episodes_per_iteration"),
    ],
    "Does exploring success rise?": [
        (dict(success=0.5), "look", "more episodes.*algorithm.loss=clone"),
        (dict(success=0.5, actor__approx_kl3=None), "look", "fewer decisions an episode$"),
        (dict(env__num_trajectories=64.0), "unknown", ""),
        (dict(success=0.84), "look", "more episodes"),
        (dict(success=0.86), "ok", ""),  # little is left to gain
    ],
    "Does the policy without noise rise, too?": [
        (dict(evaluated=(0.5, 0.5)), "look", "compensated"),
    ],
}


def cases():
    for question, sick in SICK.items():
        for changes, verdict, change in sick:
            yield pytest.param(question, changes, verdict, change, id=f"{question} {changes}")


@pytest.mark.parametrize("question, changes, verdict, change", list(cases()))
def test_a_sick_run(question, changes, verdict, change):
    (answer,) = [a for a in diagnosis.findings(rows(**changes)) if a.question == question]
    assert answer.verdict == verdict
    assert re.search(change, answer.change), answer.change


def test_all_questions_have_a_case():
    assert {answer.question for answer in diagnosis.findings(rows())} == set(SICK)


def test_what_stops_everything_comes_first():
    answers = diagnosis.findings(rows(actor__approx_kl3=0.5, success=0.01))
    assert "sft.demonstrations" in diagnosis.first(answers).change


def test_a_gap_without_its_metric_joins_the_rows_of_an_iteration():
    history = diagnosis.History(rows(evaluated=(0.9, 0.9)))
    # The first evaluation lies before the window.
    assert history.gap()[0] == pytest.approx(0.9 - 0.76)


def evaluated_by(episodes):
    """The last iteration explores with 0.6 and is evaluated with 0.85."""
    made = rows(success=0.6)
    made[-1]["eval/num_trajectories"] = episodes
    return {a.question: a for a in diagnosis.findings(made)}[
        "Does exploring cost as much as it should?"
    ]


def test_a_gap_of_few_episodes_is_chance():
    """sqrt(.85 * .15 / 4 + .6 * .4 / 256) = .18, and of 100 .05."""
    few = evaluated_by(4.0)
    assert few.verdict == "unknown" and "25 points of success, standard error 18" in few.seen
    assert "eval.episodes_during_training" in few.change
    many = evaluated_by(100.0)
    assert many.verdict == "look" and "standard error 5" in many.seen


def test_a_slow_rise_is_one():
    """Half a point an iteration, as a run that went from 0.38 to 0.59 in 24 iterations."""
    made = []
    for iteration in range(24):
        rate = 0.45 + 0.008 * iteration
        made.append({"iteration": iteration, "env/success_once": rate} | HEALTHY)
    gain = {a.question: a for a in diagnosis.findings(made)}["Does exploring success rise?"]
    assert gain.verdict == "ok" and "+4.8 points within 3072 episodes" in gain.seen


def test_a_foreign_name_does_nothing_to_the_terminal():
    (answer, *_) = diagnosis.findings(rows(**{"\x1b[2J": "nan", "a" * 500: "inf"}))
    assert answer.seen.isprintable() and len(answer.seen) < 300


def test_what_is_undefined_is_no_fault():
    """The explained variance of equal returns, in one iteration of many."""
    made = rows()
    made[-3]["critic/explained_variance"] = "nan"
    assert {answer.verdict for answer in diagnosis.findings(made)} == {"ok"}


@pytest.mark.parametrize("count", ["nan", "inf", "-inf", -3.0])
def test_a_number_of_episodes_that_is_none_counts_for_none(count):
    answers = diagnosis.findings(rows(env__num_trajectories=count))
    assert "unknown" in {answer.verdict for answer in answers}


def test_the_window_holds_enough_episodes():
    assert len(diagnosis.History(rows()).window) == math.ceil(1500 / 256)
    assert len(diagnosis.History(rows(env__num_trajectories=10.0)).window) == COUNT


@pytest.mark.parametrize("value", [[1.0], "x", None, True, {}, 10**400])
def test_a_metric_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="metric 'actor/loss' that is no number"):
        diagnosis.findings([{"iteration": 0, "env/success_once": 0.5, "actor/loss": value}])


def test_without_an_iteration_there_is_nothing_to_say():
    with pytest.raises(ValueError, match="holds no iteration yet"):
        diagnosis.findings([{"iteration": 0, "eval/success_once": 0.5}])
