"""Recipes on accelerators that are not here: rows come one by one, and the page shows the file."""

import json
import pathlib
import re

import pytest

from pirl_jax.bench import __main__ as bench
from pirl_jax.bench import results, targets
from pirl_jax.core import endings
from pirl_jax.run import accelerators, config, estimates, outlook, plan, recipes, topology

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / "docs" / "bench" / "targets.json"
MEMORY = {"arguments": 10**9, "outputs": 0, "donated": 0, "temporary": 10**9, "peak": 2 * 10**9}
PROGRAMS = ("rollout decision, 32 rows", "update microbatch, 128 rows", "optimiser step")


def _estimate(target):
    return estimates.Estimate(
        memory=plan.Memory(**MEMORY),
        flops=1e12,
        cycles=1.5e6 if target.platform == "tpu" else 0.0,
        collectives={"all-reduce": 5e6},
        calls={"all-reduce": 1},
        unknown_loops=0,
        not_counted=[],
        compile_s=60.0,
    )


@pytest.fixture
def compiling(monkeypatch):
    """Recipes on targets that were asked for, and programs that were compiled for them; the third
    recipe ends the process."""
    asked = []
    compiled = []

    def report(request):
        asked.append((request.settings.raw.env.suite, request.target.text))
        if len(asked) == 3:
            raise endings.Failure("the compiler ended without a word")
        programs = {}
        for name in PROGRAMS:
            key = f"{request.target.name}{name[:3]}"
            if estimates.read(request.folder, key) is None:
                compiled.append(key)
                kept = {"estimate": _estimate(request.target).as_dict()}
                estimates.write(request.folder, key, kept)
            programs[name] = {"digest": key}
        choices = {
            "algorithm.microbatch_size": 128,
            "rollout.prefix_cache": "host",
            "model.gradient_checkpointing": "none",
        }
        return {
            "target": request.target.text,
            "fits": True,
            "why": "",
            "changes": {},
            "plan": {"total": 3 * 10**9},
            "choices": choices,
            "programs": programs,
            "limit": request.target.chip.limit,
        }

    monkeypatch.setattr(outlook, "report", report)
    monkeypatch.setattr(topology, "require_wheel", lambda target: None)
    return asked, compiled


def _run(folder, *flags):
    arguments = [
        "--recipes=libero_spatial_ppo_pi0,libero_object_ppo_pi0",
        "--targets=cuda:h100:8,tpu:v5e:2x4",
        f"--output={folder / 'targets.json'}",
        f"--compiled={folder / 'kept'}",
    ]
    bench.main(["bench", "targets", *arguments, *flags])


def test_rows_come_one_by_one_and_are_gone_on_with(compiling, tmp_path, capsys):
    with pytest.raises((SystemExit, endings.Failure)):
        _run(tmp_path)
    result = results.read(tmp_path / "targets.json", "targets", "--output")
    assert [row["target"] for row in result["rows"]] == ["cuda:h100:8", "tpu:v5e:2x4"]
    _run(tmp_path, "--resume")
    result = results.read(tmp_path / "targets.json", "targets", "--output")
    assert [(row["recipe"], row["target"]) for row in result["rows"]] == [
        ("libero_spatial_ppo_pi0", "cuda:h100:8"),
        ("libero_spatial_ppo_pi0", "tpu:v5e:2x4"),
        ("libero_object_ppo_pi0", "cuda:h100:8"),
        ("libero_object_ppo_pi0", "tpu:v5e:2x4"),
    ]
    # The one that failed is the only one that was asked for twice.
    asked, _ = compiling
    assert len(asked) == 5 and len(set(asked)) == 4
    # Programs that two recipes share stand there once.
    assert len(result["programs"]) == 2 * len(PROGRAMS)
    shown = capsys.readouterr().out
    assert "libero_object_ppo_pi0 on tpu:v5e:2x4" in shown and "as published" in shown


def test_what_another_machine_compiled_is_not_compiled_again(compiling, tmp_path):
    """The file alone goes on: programs travel in it."""
    with pytest.raises((SystemExit, endings.Failure)):
        _run(tmp_path)
    for path in (tmp_path / "kept").iterdir():
        path.unlink()
    _run(tmp_path, "--resume")
    _, compiled = compiling
    assert len(compiled) == len(set(compiled)) == 2 * len(PROGRAMS)


def test_a_file_of_another_benchmark_is_refused(compiling, tmp_path, capsys):
    (tmp_path / "targets.json").write_text('{"benchmark": "env", "result": {}}')
    with pytest.raises(SystemExit) as ending:
        _run(tmp_path, "--resume")
    assert ending.value.code == 2 and "is of bench env; give another" in capsys.readouterr().err


def _row(**changes):
    row = {
        "recipe": "libero_goal_ppo_pi0",
        "target": "tpu:v5e:2x4",
        "fits": True,
        "changes": {},
        "plan": {"total": 3 * 10**9},
        "choices": {
            "algorithm.microbatch_size": 128,
            "rollout.prefix_cache": "host",
            "model.gradient_checkpointing": "dots",
        },
        "programs": {name: name[:3] for name in PROGRAMS},
        "limit": 16 * 10**9,
    }
    return row | changes


def test_a_row_tells_what_was_given_up_and_what_is_unknown():
    target = accelerators.parse("tpu:v5e:2x4")
    known = {"estimate": _estimate(target).as_dict()}
    programs = {
        "rol": known,
        "upd": {"given_up_s": 1200.0},
        "opt": {"refused": "RESOURCE_EXHAUSTED"},
    }
    changes = {"algorithm.microbatch_size": 0}
    rows = [_row(), _row(target="cuda:h100:1", fits=False, changes=changes)]
    text = targets.as_markdown({"rows": rows, "programs": programs})
    (goal,) = (line for line in text.splitlines() if line.startswith("| `libero_goal_ppo_pi0` | n"))
    assert goal.count("not compiled yet") == 4 and goal.endswith("| as published, 3.0 GB |")
    assert "with algorithm.microbatch_size=0, 3.0 GB" in goal
    line = next(line for line in text.splitlines() if "`tpu:v5e:2x4` | 128 | host" in line)
    assert "3.0 of 16.0 | 1 (5.08) | given up after 20 min | refused | - and -" in line
    assert targets.verdict(_row(fits=False)) == "no"


def test_the_published_recipes_are_all_there():
    named = [name for name in recipes.names() if re.fullmatch(r"libero_.*_(ppo|grpo)_pi05?", name)]
    assert sorted(targets.published()) == sorted(named) and len(named) == 16


def _written():
    return json.loads(FILE.read_text())["result"]


def test_the_page_shows_the_file():
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    remedy = "python -m pirl_jax.bench.targets docs/bench/targets.json > its tables"
    assert targets.as_markdown(_written()) in page, remedy


def test_the_file_holds_distinct_programs_alone():
    result = _written()
    used = {key for row in result["rows"] for key in row["programs"].values()}
    assert used == set(result["programs"])
    pairs = [(row["recipe"], row["target"]) for row in result["rows"]]
    assert len(set(pairs)) == len(pairs)
    for recipe, target in pairs:
        assert recipe in targets.published() and target in targets.TARGETS


def test_the_readme_quotes_the_file():
    """Memory of a device, of the recipe that everybody looks at first."""
    rows = {}
    for row in _written()["rows"]:
        if row["recipe"] == "libero_spatial_ppo_pi0":
            rows[row["target"]] = f"{row['plan']['total'] / 1e9:.1f} GB"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| you have |")[2].partition("\n\n")[0]
    quoted = re.findall(r"`((?:tpu|cuda):\S+)` ([\d.]+ GB)", table)
    assert quoted and quoted == [(target, rows[target]) for target, _ in quoted]


def test_a_v5e_chip_that_serves_is_what_the_page_says():
    served = results.read(ROOT / "docs" / "bench" / "served.json", "plan", "--output")
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert [name.rpartition("_")[2] for name in served] == ["pi0", "pi05"]
    for name, report in served.items():
        ((program, row),) = report["programs"].items()
        assert report["target"] == "tpu:v5e:1" and program.startswith("served decision, 1 row")
        settings = config.settings(recipes.load_recipe(name, "--recipes"))
        memory = row["memory"]
        limit = report["limit"] / targets.GB
        peak = f"{memory['peak'] / targets.GB:.2f} of {limit:.2f}"
        times = f"{1e3 * row['estimated_s']:.1f} ({1e3 * row['roofline_s']:.1f})"
        cells = (
            f"`{name}`",
            str(settings.policy.model.num_steps),
            f"{memory['arguments'] / targets.GB:.2f}",
            peak,
            times,
        )
        assert row["fits"] and f"| {' | '.join(cells)} |" in page
