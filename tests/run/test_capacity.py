"""Seconds of an iteration: every number by hand, and every line says what it rests on."""

import argparse
import json

import pytest

from pirl_jax.envs import base
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import capacity, config

ENV = base.EnvSpec("probe_conditioned", ("go",), 50, 40, 16)
CHUNK = 5


@pytest.fixture(scope="module")
def settings():
    """Four episodes of at most eight decisions, in batches of two, learned from twice."""
    changes = {
        "model.action_chunk": CHUNK,
        "rollout.num_envs": 4,
        "rollout.num_groups": 2,
        "rollout.episodes_per_iteration": 4,
        "algorithm.minibatch_size": 16,
        "algorithm.microbatch_size": 8,
        "algorithm.update_epochs": 2,
        "num_iterations": 100,
    }
    page = recipe.get_config()
    page.num_iterations = changes.pop("num_iterations")
    return config.changed(config.settings(page), changes)


def _programs(**changes):
    times = {
        "rollout decision, 2 rows": 0.5,
        "evaluation decision, 2 rows": 99.0,
        "update microbatch, 8 rows": 0.25,
        "optimiser step": 0.125,
        "writing of kept prefixes, 2 rows": 0.1,
        "reading of kept prefixes, 8 rows": 0.05,
    }
    programs = {}
    for name, seconds in times.items():
        programs[name] = {"estimated_s": seconds, "roofline_s": seconds / 2, "exchange_s": 0.0}
    return {"programs": programs | changes, "choices": {"mesh": [1, 1]}, "hosts": 1}


def _iteration(settings, result, share=1.0, speed=8.0):
    simulators = capacity.Simulators(2, speed, "given")
    return capacity.iteration(settings, ENV, result, simulators, share, 0.25)


def test_an_iteration_by_hand(settings):
    made = _iteration(settings, _programs())
    play, decide, learn, step = (line["seconds"] for line in made["lines"])
    decisions = 4 * 8
    assert made["decisions"] == decisions
    assert play == pytest.approx(decisions * CHUNK / 16)
    assert decide == pytest.approx(decisions / 2 * (0.5 + 0.1))
    assert learn == pytest.approx(2 * decisions / 8 * (0.25 + 0.05))
    assert step == pytest.approx(2 * decisions / 16 * 0.125)
    assert made["rollout_s"] == max(play, decide)
    total = max(play, decide) + learn + step
    assert made["iteration_s"] == pytest.approx(total)
    assert made["devices_idle"] == pytest.approx(1 - (decide + learn + step) / total)
    assert made["days"] == pytest.approx(100 * total / 86400)


def test_every_host_decides_for_its_share_and_all_learn_together(settings):
    """Two hosts of one device: half the decisions each, and microbatches of both."""
    alone = _iteration(settings, _programs())
    made = _iteration(settings, _programs() | {"choices": {"mesh": [2, 1]}, "hosts": 2})
    seconds = [line["seconds"] for line in made["lines"]]
    play, decide, learn, step = (line["seconds"] for line in alone["lines"])
    assert seconds == [play, decide / 2, learn / 2, step], "cores are those of all hosts"
    # The loop event by event is that of one host, whose share of the cores is one.
    half = config.changed(
        settings, {"rollout.episodes_per_iteration": 2, "algorithm.minibatch_size": 8}
    )
    one = capacity.Simulators(1, 8.0, "given")
    of_one = capacity.iteration(half, ENV, _programs(), one, 1.0, 0.25)
    assert made["placements"] == of_one["placements"]


def test_a_placement_stands_beside_shared_devices(settings):
    """The programs have their rows on eight devices; whoever decides on two takes four times as
    long."""
    simulators = capacity.Simulators(64, 8000.0, "given")  # nobody waits for them

    def made(**where):
        placed = config.changed(settings, {f"placement.{role}": at for role, at in where.items()})
        result = _programs() | {"choices": {"mesh": [8, 1]}}
        return capacity.iteration(placed, ENV, result, simulators, 1.0, 0.25)

    shared = made()
    assert list(shared["placements"]) == ["shared"] and not shared["remarks"]
    apart = made(rollout="0-1", actor="2-7")
    assert list(apart["placements"]) == ["separate 2 + 6", "shared"]
    assert apart["placements"]["shared"] == shared["placements"]["shared"]
    # 2 turns of 4 slots x 8 decisions, on two of eight devices and on all of them; 2 microbatches.
    slower = 16 * (0.5 + 0.1) * (8 / 2 - 1) + 2 * 2 * (0.25 + 0.05) * (8 / 6 - 1)
    longer = apart["placements"]["separate 2 + 6"] - shared["placements"]["shared"]
    assert longer == pytest.approx(slower, rel=0.01)
    stale = capacity.layout(config.changed(settings, {"rollout.max_staleness": 1}).raw, 8)
    assert stale.name == "shared, stale by 1"
    (remark,) = apart["remarks"]
    assert "a bad split: separate 2 + 6" in remark
    text = capacity.as_text(apart)
    assert "\nplacement: separate 2 + 6 " in text and f"\nwarning: {remark}" in text


def test_shorter_episodes_are_fewer_decisions(settings):
    assert _iteration(settings, _programs(), share=0.5)["decisions"] == 16


def test_one_group_waits_for_its_decisions(settings):
    alone = config.changed(settings, {"rollout.num_groups": 1})
    made = _iteration(alone, _programs())
    play, decide, *_ = (line["seconds"] for line in made["lines"])
    assert made["rollout_s"] == play + decide


def test_lines_say_what_they_rest_on(settings):
    made = _iteration(settings, _programs())
    rests_on = [line["rests_on"] for line in made["lines"]]
    assert rests_on[0].startswith("given: 8 control steps per s and core, 2 cores")
    assert all(text.startswith("modelled: the compiler's estimate") for text in rests_on[1:])
    text = capacity.as_text(made)
    for stage in ("simulators", "decisions", "gradients", "optimiser steps", "iteration"):
        assert f"\n{stage} " in text


def test_without_an_estimate_a_share_of_the_roofline_is_assumed(settings):
    gpu = {"estimated_s": None, "roofline_s": 0.5, "exchange_s": 0.25}
    made = _iteration(settings, _programs(**{"optimiser step": gpu}))
    step = made["lines"][3]
    assert step["seconds"] == pytest.approx(4 * (0.5 / 0.25 + 0.25))
    assert step["rests_on"].startswith("assumed: 25% of the roofline")


def test_what_is_not_known_is_not_guessed(settings):
    made = _iteration(settings, _programs(**{"optimiser step": {"refused": "too large"}}))
    assert made == {"why": "no time is known of optimiser step"}
    assert (
        capacity.as_text(made)
        == "time of an iteration: unknown, no time is known of optimiser step"
    )


@pytest.mark.parametrize("quality, speed", [("exact", 30.0), ("light", 100.0)])
def test_a_measured_speed_is_of_one_core_and_the_slowest_task(tmp_path, quality, speed):
    file = tmp_path / "env.json"
    fast = {"4 workers, control steps per s, chunks of 10": {"ours": 400.0, "ours light": 800.0}}
    slow = {
        "reset, ms": {"ours": 1.0, "ours light": 1.0},
        "1 workers, control steps per s, chunks of 10": {"ours": 25.0, "ours light": 100.0},
        "2 workers, control steps per s, chunks of 10": {"ours": 60.0, "ours light": 150.0},
    }
    file.write_text(json.dumps({"result": {"a:0": fast, "b:0": slow}}))
    assert capacity.measured_speed(file, quality) == speed
    file.write_text(json.dumps({"result": {"a": {}}}))
    with pytest.raises(ValueError, match="holds no speed of simulators; give a file of pirl bench"):
        capacity.measured_speed(file, quality)


@pytest.mark.parametrize(
    "arguments", ["--cores=4", "--steps-per-core=9", "--cores=4 --steps-per-core=9 --simulators=x"]
)
def test_half_a_question_is_a_sentence(arguments, settings):
    parser = argparse.ArgumentParser()
    capacity.add_arguments(parser)
    with pytest.raises(ValueError, match="need --cores and one of --steps-per-core, --simulators"):
        capacity.simulators(parser.parse_args(arguments.split()), settings)
    assert capacity.simulators(parser.parse_args([]), settings) is None
    given = capacity.simulators(parser.parse_args(["--cores=4", "--steps-per-core=9"]), settings)
    assert given.steps_per_s == 36
