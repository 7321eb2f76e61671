"""The benchmark command: names take turns, ratios point the right way, tiny runs fill every row."""

import argparse
import json

import pytest

from pirl_jax.bench import __main__ as bench
from pirl_jax.bench import asynchronous, end2end, env, interleaved, policy
from pirl_jax.bench import plan as bench_plan
from pirl_jax.models import variants
from pirl_jax.run import plan, recording


def test_names_take_turns_and_the_median_counts():
    values = {"a": [1.0, 9.0, 2.0], "b": [4.0, 4.0, 5.0]}
    calls = []

    def measure(name, repeat):
        calls.append((name, repeat))
        return values[name][repeat]

    assert interleaved.values(["a", "b"], measure, repeats=3) == values
    calls.clear()
    assert interleaved.medians(["a", "b"], measure, repeats=3) == {"a": 2.0, "b": 4.0}
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_ratios_above_one_mean_better():
    text = env.as_text(
        {
            "suite:0": {
                "reset, ms": {"stock": 200.0, "ours": 10.0},
                "2 workers, control steps per s": {"stock": 10.0, "ours": 50.0},
            }
        }
    )
    assert "ours 10 (20.0x)" in text and "ours 50 (5.0x)" in text


@pytest.mark.parametrize(
    "task", ["libero_object", "libero_object:10", "libero_40:0", "libero_object:x"]
)
def test_a_wrong_task_is_a_sentence(task, libero_assets):
    options = argparse.Namespace(
        tasks=task, assets=str(libero_assets), image_size=16, workers="", repeats=1
    )
    with pytest.raises(ValueError, match="write suite:task, for example libero_object:0"):
        env.run(options)


@pytest.mark.slow
def test_a_tiny_run(libero_assets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(env, "CHUNKS", (10,))
    monkeypatch.setattr(env, "CONTROL_STEPS", 5)
    file = tmp_path / "env.json"
    arguments = (
        f"env --tasks libero_object:0 --assets {libero_assets} --image-size 32 --workers 1 "
        f"--repeats 1 --output {file}"
    )
    bench.main(["bench", *arguments.split()])
    assert "libero_object:0" in capsys.readouterr().out
    written = json.loads(file.read_text())
    rows = written["result"]["libero_object:0"]
    assert written["environment"]["command"][:3] == ["python", "-m", "pirl_jax.bench"]
    assert list(rows) == [
        "control step, ms",
        "chunk of 10, ms",
        "reset, ms",
        "episode, chunks of 10, s",
        "memory per worker, MB",
        "first picture of a process, s",
        "1 workers, control steps per s, chunks of 10",
    ]
    for measured in rows.values():
        assert min(measured.values()) > 0
    step = rows["control step, ms"]
    assert step["mj_step alone"] < step["ours, no rendering"] < step["stock, no rendering"]
    first = rows["first picture of a process, s"]
    assert first["ours light"] < first["ours light, nothing kept"]
    episode = rows["episode, chunks of 10, s"]
    assert episode["ours"] < episode["stock"] / 3


@pytest.fixture
def tiny(monkeypatch):
    """The scaled model, smaller still."""
    small = {
        "paligemma": variants.GemmaConfig(64, 2, 256, 2, 1, 16),
        "expert": variants.GemmaConfig(32, 2, 64, 2, 1, 16),
        "siglip": variants.SiglipConfig(32, 2, 64, 2, 14),
        "image_size": (28, 28),
    }
    monkeypatch.setattr(policy, "SCALED", policy.SCALED | small)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, recipe", [("update", "libero_spatial_ppo_pi0"), ("latency", "libero_object_ppo_pi05")]
)
def test_the_policy_benchmarks_compare_what_computes_the_same(name, recipe, tiny, tmp_path, capsys):
    file = tmp_path / "out.json"
    page = f"configs/{recipe}.py"
    arguments = f"{name} --recipes {page} --batch 2 --repeats 2 --output {file}"
    bench.main(["bench", *arguments.split()])
    assert "times faster, with" in capsys.readouterr().out
    row = json.loads(file.read_text())["result"][page]
    assert row["rows"] == 2 and row["times less arithmetic, counted"] > 1
    faster = row["baseline"]["median, ms"] / row["ours"]["median, ms"]
    assert row["times faster, measured"] == pytest.approx(faster)
    for speed in (row["baseline"], row["ours"]):
        assert speed["slowest, ms"] >= speed["median, ms"] > 0
        assert speed["share of peak"] is None, "a CPU has no line in the table"
        tflop = 2e-3 * speed["model GFLOP per row"]
        assert speed["model TFLOP/s"] == pytest.approx(tflop / (1e-3 * speed["median, ms"]))
    if name == "update":
        for metric in row["the first step of both"].values():
            assert metric["ours"] == pytest.approx(metric["baseline"], rel=1e-4, abs=1e-5)
            assert metric["ours"] != 0
    else:
        assert row["largest difference of an action entry"] < 1e-4


@pytest.mark.parametrize(
    "device, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_the_share_of_peak_is_of_the_device_at_hand(device, peak):
    assert policy._peak(device) == peak
    speed = policy._speed([2.0, 8.0, 4.0], flop_per_row=4e12, rows=3, peak=peak)
    assert speed["model TFLOP/s"] == pytest.approx(3.0)
    assert speed["share of peak"] == (peak and pytest.approx(3e12 / peak))


def test_a_result_is_of_medians(tiny):
    options = argparse.Namespace(batch=1, size="scaled")
    case = policy.prepare("configs/libero_spatial_ppo_pi0.py", options)
    times = {"baseline": [2.0, 8.0, 4.0], "ours": [1.0, 1.0, 1.0]}
    result = policy._result(case, times, {"baseline": 4e12, "ours": 2e12, "ratio": 2.0}, rows=3)
    assert result["times faster, measured"] == 4.0
    assert result["baseline"]["model TFLOP/s"] == pytest.approx(3.0)
    assert result["ours"]["model TFLOP/s"] == pytest.approx(6.0)


def test_the_plan_of_a_recipe_as_published_and_small(monkeypatch, capsys):
    """Which recipes it is asked for, and the tables; what a plan is made of: test_plan.py."""
    asked = []

    def measure(settings, on_mesh, prompt_tokens, env_spec, limit, thorough):
        asked.append((settings, env_spec.max_episode_steps, prompt_tokens, limit))
        big = 10**9 * settings.raw.algorithm.microbatch_size
        parts = {
            "frozen weights": 3 * 10**9,
            "weights that train, float32": 10**9,
            "optimiser": 2 * 10**9,
        }
        work = {"rollout": 0, "gradients, activations, microbatches": big, "optimiser step": 0}
        size = settings.raw.algorithm.microbatch_size
        return plan.Plan(parts, work, 7 * 10**9, limit, 10**9, size, "host", "full")

    monkeypatch.setattr(bench_plan.plan, "measure", measure)
    bench.main(["bench", "plan", "--recipes", "configs/libero_10_grpo_pi05.py", "--limit-gb", "40"])
    lines = capsys.readouterr().out.splitlines()
    published, small, arithmetic = (
        line.partition(" ")[2].split() for line in lines if line.startswith("libero_10_grpo_pi05")
    )
    assert " ".join(published) == "as published 4.0 2.0 0.0 128.0 0.0 134.0 no 7.0"
    assert " ".join(small) == "small 4.0 2.0 0.0 32.0 0.0 38.0 yes 7.0"
    assert " ".join(arithmetic) == "4667 / 2547 (1.83x) 4658 / 20 (228.02x)"
    assert [of_plan[1:] for of_plan in asked] == [(480, 32, 40 * 10**9)] * 2
    changed = asked[1][0]
    assert changed.raw.model.frozen_dtype == "bfloat16" and changed.raw.algorithm.group_size == 8
    with pytest.raises(SystemExit):
        bench.main(["bench", "plan", "--recipes", "configs/quickstart.py"])
    assert "is not LIBERO's; give LIBERO recipes" in capsys.readouterr().err


SMALL = (
    "rollout.num_envs=4",
    "rollout.episodes_per_iteration=4",
    "algorithm.minibatch_size=4",
    "algorithm.microbatch_size=4",
    "sft.demonstrations=0",
)


@pytest.mark.slow
def test_end_to_end_on_a_probe(monkeypatch):
    """A probe needs no simulator and no SFT."""
    monkeypatch.delenv("XLA_FLAGS")  # the virtual devices of the tests
    parser = argparse.ArgumentParser()
    end2end.add_arguments(parser)
    arguments = ["--recipe", "configs/probe.py", "--iterations", "2"]
    arguments += [f"--set={field}" for field in SMALL]
    options = parser.parse_args(arguments)
    options.repeats = 1
    result = end2end.run(options)
    assert {*result} == {"baseline", "ours"}
    assert result["baseline"]["iteration"] > 0 and result["ours"]["iteration"] > 0
    assert "times faster" in end2end.as_text(result)


def test_the_table_of_stale_iterations_has_what_either_has():
    rows = {
        "in turns": {"iteration": 10.0, "env": 6.0, "workers idle": 0.25},
        "stale by 1": {"iteration": 8.0, "env": 4.0, "gate_wait": 0.125, "workers idle": 0.03},
    }
    text = asynchronous.as_text({"quickstart": rows})
    assert "1.25 times faster" in text
    header, _, in_turns, stale = text.splitlines()[1:5]
    assert "gate_wait" in header and "-" in in_turns and "0.125" in stale


def test_one_recipe_is_recorded_at_a_time():
    parser = argparse.ArgumentParser()
    asynchronous.add_arguments(parser)
    with pytest.raises(ValueError, match="--record has one recipe, not --recipes=quickstart,lib"):
        asynchronous.run(parser.parse_args(["--record"]))


@pytest.mark.slow
def test_a_run_is_recorded_on_a_probe(monkeypatch, tmp_path):
    """Through the command, to a file that a model reads."""
    monkeypatch.delenv("XLA_FLAGS")  # the virtual devices of the tests
    file = tmp_path / "loop.json"
    arguments = ["async", "--record", "--recipes", "configs/probe.py", "--iterations", "4"]
    arguments += [f"--set={field}" for field in SMALL]
    bench.main(["bench", *arguments, "--output", str(file)])
    kept = recording.read(file)
    assert kept.schedule["slots"] == 4 and kept.schedule["microbatch_rows"] == 4
    assert len(kept.iterations) >= 2
    assert min(kept.chunk_s) >= 0 and min(kept.decisions) >= 1
    assert kept.decision_s > 0 and kept.update_s > 0
    assert recording.modelled(kept)["iteration"] > 0


@pytest.mark.slow
def test_stale_iterations_beside_those_in_turns_on_a_probe(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # the virtual devices of the tests
    parser = argparse.ArgumentParser()
    asynchronous.add_arguments(parser)
    arguments = ["--recipes", "configs/probe.py", "--iterations", "5"]
    options = parser.parse_args([*arguments, *(f"--set={field}" for field in SMALL)])
    options.repeats = 1
    result = asynchronous.run(options)["probe"]
    for row in result.values():
        assert row["iteration"] > 0 and 0 <= row["workers idle"] <= 1
    assert {"gate_wait", "learner_wait"} <= set(result["stale by 1"])
