"""The benchmark command: names take turns, ratios point the right way, and a tiny real run fills every row."""

import argparse
import json

import pytest

from pirl_jax import bench
from pirl_jax import bench_env


def test_names_take_turns_and_the_median_counts():
    calls = []

    def once(name, repeat):
        calls.append((name, repeat))
        return {"a": [1.0, 9.0, 2.0], "b": [4.0, 4.0, 5.0]}[name][repeat]

    assert bench_env._interleaved(["a", "b"], once, repeats=3) == {"a": 2.0, "b": 4.0}
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_ratios_above_one_mean_better():
    text = bench_env.as_text({
        "suite:0": {"reset, ms": {"stock": 200.0, "ours": 10.0}, "2 workers, control steps per s": {"stock": 10.0, "ours": 50.0}}
    })
    assert "ours 10 (20.0x)" in text and "ours 50 (5.0x)" in text


@pytest.mark.parametrize("task", ["libero_object", "libero_object:10", "libero_40:0", "libero_object:x"])
def test_a_wrong_task_is_a_sentence(task, libero_assets):
    options = argparse.Namespace(tasks=task, assets=str(libero_assets), image_size=16, workers="", repeats=1)
    with pytest.raises(ValueError, match="write suite:task, for example libero_object:0"):
        bench_env.run(options)


@pytest.mark.slow
def test_a_tiny_run(libero_assets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_env, "CHUNKS", (10,))
    monkeypatch.setattr(bench_env, "CONTROL_STEPS", 5)
    file = tmp_path / "env.json"
    arguments = f"env --tasks libero_object:0 --assets {libero_assets} --image-size 32 --workers 1 --repeats 1 --output {file}"
    bench.main(["bench", *arguments.split()])
    assert "libero_object:0" in capsys.readouterr().out
    written = json.loads(file.read_text())
    rows = written["result"]["libero_object:0"]
    assert written["environment"]["command"][:3] == ["python", "-m", "pirl_jax.bench"]
    for name in ("control step, ms", "chunk of 10, ms", "reset, ms", "episode, chunks of 10, s", "memory per worker, MB"):
        assert min(rows[name].values()) > 0
    step = rows["control step, ms"]
    assert step["mj_step alone"] < step["ours, no rendering"] < step["stock, no rendering"]
    assert rows["episode, chunks of 10, s"]["ours"] < rows["episode, chunks of 10, s"]["stock"] / 3
