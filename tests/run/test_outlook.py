"""Plans for devices that are not there: the process that compiles, the table, the sentences."""

import argparse
import dataclasses
import multiprocessing
import pathlib
import pickle
import re

import jax
import pytest

from pirl_jax import train
from pirl_jax.bench import __main__ as bench
from pirl_jax.core import endings
from pirl_jax.core import mesh as meshes
from pirl_jax.learner import publish
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import (
    accelerators,
    capacity,
    config,
    devices,
    estimates,
    outlook,
    placed_outlook,
    program_table,
    recipes,
    shares,
    topology,
)

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture
def request_(tmp_path):
    settings = config.settings(recipe.get_config())
    target = accelerators.parse("tpu:v5e:1")
    return outlook.Request(settings, target, None, 16, tmp_path, limit_s=0.05)


@pytest.fixture
def ends():
    receive, send = multiprocessing.Pipe(duplex=False)
    yield receive, send
    receive.close()
    send.close()


def test_a_compiler_that_takes_too_long_is_given_up(ends, request_):
    receive, send = ends
    send.send(("begin", "some-key"))
    assert outlook._followed(receive, request_) is None
    assert estimates.read(request_.folder, "some-key")["given_up_s"] == request_.limit_s


def test_what_is_not_compiling_is_not_given_up(ends, request_):
    receive, send = ends
    for message in (("begin", "some-key"), ("end", "some-key")):
        send.send(message)
    with pytest.raises(endings.Failure, match="could not be prepared in 0 minutes"):
        outlook._followed(receive, request_)
    assert estimates.read(request_.folder, "some-key") is None


def test_a_compiler_that_dies_is_a_sentence(ends, request_):
    receive, send = ends
    send.close()
    with pytest.raises(endings.Failure, match="for tpu:v5e:1 ended without a word"):
        outlook._followed(receive, request_)


def test_errors_and_results_come_back(ends, request_, capsys):
    receive, send = ends
    send.send(("error", ValueError("mesh.fsdp=3 does not divide")))
    with pytest.raises(ValueError, match=r"mesh\.fsdp=3 does not divide"):
        outlook._followed(receive, request_)
    send.send(("say", "tpu:v5e:1: optimiser step"))
    send.send(("result", {"target": "tpu:v5e:1"}))
    assert outlook._followed(receive, request_) == {"target": "tpu:v5e:1"}
    assert capsys.readouterr().out == "tpu:v5e:1: optimiser step\n"


def test_a_request_travels_to_another_process(request_):
    assert pickle.loads(pickle.dumps(request_)) == request_


def test_what_libero_needs_is_known_without_a_simulator():
    settings = config.settings(recipes.load_recipe(str(CONFIGS / "libero_10_grpo_pi05.py")))
    spec = outlook.env_spec(settings)
    assert (spec.max_episode_steps, spec.suite) == (480, "libero_10")
    assert outlook.env_spec(config.settings(recipe.get_config())).suite.startswith("probe_")


def _result(**changes):
    row = {
        "memory": {"arguments": 2e9, "temporary": 1e9, "peak": 3e9, "donated": 0, "outputs": 0},
        "fits": True,
        "flops": 2e12,
        "estimated_s": 0.02,
        "roofline_s": 0.01,
        "exchange_s": 0.001,
        "share_of_peak": 0.5,
        "collectives": {"all-reduce": 5e8},
        "calls": {"all-reduce": 3},
        "unknown_loops": 0,
        "not_counted": [],
    }
    programs = {
        "optimiser step": row,
        "rollout decision, 4 rows": row
        | {"fits": False, "estimated_s": None, "share_of_peak": None},
        "update microbatch, 8 rows": {"refused": "RESOURCE_EXHAUSTED: too much"},
    }
    result = {
        "target": "tpu:v5e:2x4",
        "hosts": 1,
        "fits": True,
        "why": "",
        "changes": {},
        "plan": {"total": 4e9},
        "choices": {"algorithm.microbatch_size": 8, "mesh": [8, 1]},
        "programs": programs,
        "limit": 16e9,
        "notes": ["a note"],
    }
    return result | changes


def test_the_table_calls_an_estimate_an_estimate():
    lines = program_table.as_text(_result()).splitlines()
    assert lines[0] == "tpu:v5e:2x4, mesh (data x fsdp) 8 x 1, 16.00 GB per device"
    assert lines[1] == "fits: a run needs 4.00 GB at most, by the compiler's estimate"
    assert "algorithm.microbatch_size=8" in lines[2] and "mesh" not in lines[2]
    step = next(line for line in lines if line.startswith("optimiser step  "))
    assert step.split()[2:] == ["2", "1", "3", "0", "2", "20", "10", "1", "50%", "500"]
    decision = next(line for line in lines if line.startswith("rollout decision, 4 rows  "))
    assert "3 (too much)" in decision and " -  " in decision
    text = "\n".join(lines)
    assert "update microbatch, 8 rows: RESOURCE_EXHAUSTED: too much" in text
    assert "optimiser step exchanges all-reduce 500.0 MB in 3" in text
    assert "compiled, not run" in text and lines[-1] == "a note"


def test_what_does_not_fit_says_why():
    text = program_table.as_text(_result(fits=False, why="needs 20 GiB; this fits: x", plan=None))
    assert "does not fit: needs 20 GiB; this fits: x" in text


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--target=tpu:v5e:1"], "--target=tpu:v5e:1 is for --plan-only"),
        (["--plan-only", "--output=plan.json"], "plan.json has no effect without --target"),
        (["--cores=8"], "--cores=8 has no effect without --target; give one, too"),
        (["--programs=served"], "--programs=served has no effect without --target; give one"),
        (
            ["--plan-only", "--target=tpu:v5e:1", "--programs=served", "--cores=8"],
            "--programs=served compiles some programs, and --cores=8 needs all; drop one",
        ),
        (["--plan-only", "--target=rocm:mi300:1"], "does not exist; choose one of: tpu:v5e:2x4"),
        (["--plan-only", "--target=tpu:v5e:1"], 'not installed: pip install "pirl_jax[targets]"'),
    ],
)
def test_a_wrong_target_is_a_sentence_of_train(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(topology, "WHEELS", {"tpu": ("no_such",), "cuda": ("no_such",)})
    with pytest.raises(SystemExit) as ending:
        train.main(["train", "--config", str(CONFIGS / "probe.py"), *arguments])
    assert ending.value.code == 2 and sentence in capsys.readouterr().err


def test_a_plan_for_the_devices_here_shows_that_it_is_alive(monkeypatch, capsys):
    """At full size it compiles for minutes."""
    monkeypatch.setattr(outlook.plan, "choose", lambda settings, *_: (settings, "the table"))
    train.main(["train", "--config", str(CONFIGS / "probe.py"), "--plan-only"])
    said = capsys.readouterr().out
    assert re.fullmatch(r"compiling: [0-9.]+ s done\nthe table\n", said)


def test_the_benchmark_asks_for_any_recipe_with_its_changes(monkeypatch, capsys):
    asked = []

    def report(request):
        asked.append(request)
        return _result()

    monkeypatch.setattr(outlook, "report", report)
    monkeypatch.setattr(topology, "require_wheel", lambda target: None)
    page = str(CONFIGS / "probe.py")
    bench.main(["bench", "plan", "--target=cuda:h100:8", "--config", page, "--set=mesh.fsdp=8"])
    (request,) = asked
    assert request.settings.raw.mesh.fsdp == 8 and request.target.name == "h100"
    assert request.limit_s == 20 * 60
    assert "probe on tpu:v5e:2x4, mesh" in capsys.readouterr().out


@pytest.fixture
def one_program(request_, monkeypatch):
    """_report on a device that is here; the names of what is lowered."""
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    monkeypatch.setattr(topology, "mesh", lambda *_: mesh)
    monkeypatch.setattr(outlook.plan, "choose", None)  # it would compile
    monkeypatch.setattr(outlook, "_row", lambda estimator, lowered, chip: {"lowered": lowered})
    spec = outlook.env_spec(request_.settings)

    def asked(programs):
        request = dataclasses.replace(request_, programs=programs, env_spec=spec)
        return outlook._report(request, lambda *_: None)

    return asked


def test_some_programs_are_compiled_alone(one_program, monkeypatch):
    """A policy server's takes a minute, all of them an hour."""
    monkeypatch.setattr(outlook.shapes, "evaluation", lambda settings, mesh, args: args)
    found = one_program("served")
    ((name, row),) = found["programs"].items()
    _, _, decision_B, _ = row["lowered"]
    assert name == "served decision, 1 row, 1 device" and decision_B.shape == (1,)
    assert found["fits"] is None and found["plan"] is None
    text = program_table.as_text(_result(fits=None, plan=None))
    assert "whether a run fits was not asked" in text and "compiled with: " in text


def test_programs_that_nobody_has_are_named_with_those_there_are(one_program):
    said = r"--programs=saved begins no program's name; there are: rollout decision, .*; optimiser"
    with pytest.raises(ValueError, match=said):
        one_program("saved")


GB = 10**9
PLANNED = {
    "resident": {"frozen weights": 10 * GB, "optimiser": 3 * GB, shares.KEPT: GB},
    "work": {shares.ROLLOUT: 2 * GB, "optimiser step": GB},
    "limit": 16 * GB,
    "away": (),
}


@pytest.fixture
def answered(monkeypatch, tmp_path):
    """A function: the answer for eight devices with these roles and flags; what was compiled."""
    monkeypatch.setattr(topology, "require_wheel", lambda target: None)
    asked = []

    def report(request):
        asked.append(request)
        seconds = {"estimated_s": 2.0, "roofline_s": 1.0, "exchange_s": 0.0}
        names = ("rollout decision, 2 rows", "update microbatch, 8 rows", "optimiser step")
        choices = {"algorithm.microbatch_size": 8, "rollout.prefix_cache": "recompute"}
        return _result(programs=dict.fromkeys(names, seconds), plan=PLANNED) | {
            "choices": choices | {"mesh": [8, 1]},
            "notes": [],
        }

    monkeypatch.setattr(outlook, "report", report)
    parser = argparse.ArgumentParser()
    outlook.add_arguments(parser)
    given = ["--target", "tpu:v5e:2x4", "--compiled", str(tmp_path)]

    def answer(*flags, **fields):
        changes = {name.replace("__", "."): value for name, value in fields.items()}
        settings = config.changed(config.settings(recipe.get_config()), changes)
        return outlook.answer(parser.parse_args([*given, *flags]), settings)

    answer.asked = asked
    return answer


APART = dict(placement__rollout="0-3", placement__actor="7")


def test_a_placement_on_a_target_is_predicted(answered):
    """From the programs of all devices, in proportion: memory by role, and seconds beside shared
    devices, with a warning of a bad split."""
    result = answered("--cores", "8", "--steps-per-core", "50", **APART)
    (request,) = answered.asked
    section = request.settings.raw.placement
    assert (section.rollout, section.actor) == ("all", "all")
    assert list(result["capacity"]["placements"]) == ["separate 4 + 1", "shared"]
    assert "a bad split" in result["capacity"]["remarks"][0]
    learn, play = result["placement"]["devices"]
    assert (learn["roles"], learn["numbers"]) == ("learn", "7")
    assert (learn["resident"], learn["total"]) == (13 * GB, 14 * GB)
    # Twice as many rows, and a whole copy of the parameters.
    assert (play["roles"], play["numbers"]) == ("play", "0-3")
    copy = play["resident"] - 2 * GB
    assert 0 < copy < GB and play["total"] == copy + 2 * GB + 2 * 2 * GB
    assert "placement" not in answered() and "capacity" not in answered()


def test_without_cores_a_placement_has_the_seconds_of_its_devices(answered):
    """As if simulators took no time; no split is warned of."""
    placements = answered(**APART)["capacity"]["placements"]
    with_cores = answered("--cores", "8", "--steps-per-core", "50", **APART)
    for name, seconds in with_cores["capacity"]["placements"].items():
        assert 0 < placements[name] < seconds
    result = answered(**APART)
    assert not result["capacity"]["remarks"]
    text = program_table.as_text(_result() | {name: result[name] for name in ADDED})
    assert "placement: separate; GB of one device\n  learn (7): 13.00 stays, 14.00 at most" in text
    assert capacity.ALONE in text and placed_outlook.RESTS_ON in text
    assert "warning: devices 4-6 are in no role" in text


ADDED = ("placement", "capacity")


def test_what_a_placement_cannot_have_is_said(answered):
    """Before anything is compiled; of what fits nowhere nothing is claimed."""
    with pytest.raises(ValueError, match=r"placement.actor='8' names device 8, .* has 8 devices"):
        answered(placement__rollout="0-3", placement__actor="8")
    with pytest.raises(ValueError, match=r"multiple of the 3 devices of placement.rollout=0-2"):
        answered(placement__rollout="0-2", placement__actor="7")
    with pytest.raises(ValueError, match=r"mesh.fsdp=2 does not divide .* placement.actor=7"):
        answered(mesh__fsdp=2, **APART)
    assert not answered.asked


@pytest.mark.parametrize(
    "rollout, actor, fsdp, stale, copied",
    [
        ("0-3", "all", 1, 0, 0),
        ("0-3", "all", 1, 1, 4),  # what trains, which an update takes away
        ("0-3", "all", 4, 0, 0),
        ("0-3", "all", 8, 0, 14),
        ("all", "4-7", 1, 0, 14),
        ("0-3", "4-7", 4, 1, 14),
    ],
)
def test_copies_are_counted_where_they_are_made(rollout, actor, fsdp, stale, copied):
    """As learner/publish.py makes them."""
    changes = {
        "placement.rollout": rollout,
        "placement.actor": actor,
        "mesh.fsdp": fsdp,
        "rollout.max_staleness": stale,
    }
    raw = config.changed(config.settings(recipe.get_config()), changes).raw
    whole = placed_outlook.Whole(frozen=10, learned=4)
    where = placed_outlook.placed(raw, 8)
    assert placed_outlook._published(raw, where, whole) == copied
    mesh = devices.mesh(config.settings(raw.as_dict()))
    plays = devices.playing(config.settings(raw.as_dict()), mesh)
    assert publish.Publisher(lambda path: True, mesh, plays).copies == (copied == 14)


def test_too_much_for_a_role_is_a_warning(answered):
    raw = config.changed(
        config.settings(recipe.get_config()),
        {name.replace("__", "."): at for name, at in APART.items()},
    ).raw
    whole = placed_outlook.Whole(frozen=15 * GB, learned=GB)
    found = placed_outlook.memory(raw, PLANNED, whole, 8)
    assert found["remarks"][-1] == "devices 0-3 need at most 22.00 GB, and have 16.00"
    found = placed_outlook.memory(raw, None, whole, 8)
    assert not found["devices"] and "nothing fits in every role" in found["remarks"][-1]
