"""The sheet of several runs: its numbers come from the runs' own files.

A missing evaluation is an error, the picture has every line.
"""

import json

import pytest

from pirl_jax import compare
from pirl_jax.core import atomic
from tests import run_folders


def _evaluated(folder, successes, episodes):
    played = {(0, start): (start < successes, 20) for start in range(episodes)}
    run_folders.evaluation(folder, played, tasks=["task"])


SAMPLER = {  # as before there was noise_steps
    "noise_method": "flow_sde",
    "noise_level": 0.8,
    "noise_anneal": False,
    "noise_logvar_range": [0.08, 0.16],
    "joint_logprob": False,
    "num_steps": 2,
}


def _run(path, checkpoint="", pi05=False, adv_type="gae", seed=0, rates=(0.2, 0.4), sampler=None):
    _evaluated(path / "evaluation" / "after", 9, 10)
    atomic.write_json(
        path / "config.json",
        {
            "seed": seed,
            "num_iterations": len(rates),
            "env": {"suite": "tabletop", "tasks": [0]},
            "rollout": {},
            "algorithm": {"adv_type": adv_type},
            "model": SAMPLER | {"pi05": pi05, "checkpoint": str(checkpoint)} | (sampler or {}),
        },
    )
    start = {
        "command": ["/somewhere/train.py", "--config", "c.py"],
        "git": "abc",
        "python": "3.11",
        "platform": "p",
        "cpu_cores": 2,
    }
    atomic.write_json(path / "environment.json", [start | {"devices": ["cpu:cpu"]}])
    rows = [{"iteration": 0, "eval/success_once": 0.9}]
    rows += [
        {"iteration": k, "env/success_once": r, "env/num_trajectories": 8, "time/iteration": 1.5}
        for k, r in enumerate(rates)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_list_of_tasks_is_all_of_them(tmp_path):
    run = _run(tmp_path / "a")
    settings = json.loads((run / "config.json").read_text())
    settings["env"]["tasks"] = []
    atomic.write_json(run / "config.json", settings)
    assert compare.summary(run)["panel"] == "tabletop all tasks, pi0"


def test_a_run_is_summed_up_from_its_own_files(tmp_path):
    run = _run(tmp_path / "a")
    _evaluated(run / "evaluation" / "before", 3, 10)
    result = compare.summary(run)
    assert result["panel"] == "tabletop [0], pi0" and result["variant"] == (
        "PPO, flow_sde 0.8 in one of 2 steps"
    )
    assert result["before"]["successes"] == 3 and result["after"]["successes"] == 9
    assert (
        result["success"] == [0.2, 0.4] and result["episodes"] == 16 and result["training_s"] == 3.0
    )
    assert result["command"] == ["python", "-m", "pirl_jax.train", "--config", "c.py"]


def test_the_start_may_be_the_last_evaluation_of_the_run_the_checkpoint_came_from(tmp_path):
    _evaluated(tmp_path / "sft" / "evaluation" / "after", 4, 10)
    assert (
        compare.summary(_run(tmp_path / "a", checkpoint=tmp_path / "sft"))["before"]["successes"]
        == 4
    )


def test_a_run_without_a_start_or_an_end_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"eval\.baseline=False needs the run its checkpoint came from"
    ):
        compare.summary(_run(tmp_path / "a", checkpoint=tmp_path / "gone"))
    with pytest.raises(ValueError, match="finished runs"):
        compare.summary(tmp_path / "gone")


def test_the_command_writes_numbers_and_a_picture_with_one_panel_per_model(tmp_path, capsys):
    _evaluated(tmp_path / "sft" / "evaluation" / "after", 4, 10)
    runs = [
        _run(tmp_path / f"{pi05}{adv}", tmp_path / "sft", pi05, adv)
        for pi05 in (False, True)
        for adv in ("gae", "grpo")
    ]
    compare.main(["compare", *map(str, runs), "--output", str(tmp_path / "out" / "sheet")])
    written = json.loads((tmp_path / "out" / "sheet.json").read_text())
    variants = [run["variant"].split(",")[0] for run in written["runs"]]
    assert variants == ["PPO", "GRPO"] * 2
    assert len({run["panel"] for run in written["runs"]}) == 2
    assert '"pairs":10' in (tmp_path / "out" / "sheet.html").read_text()
    assert (tmp_path / "out" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "90.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "sampler, name",
    [
        ({"joint_logprob": True}, "flow_sde 0.8 in all 2 steps"),
        ({"noise_steps": "last", "num_steps": 4}, "flow_sde 0.8 in the last of 4 steps"),
        ({"noise_method": "flow_noise", "noise_steps": "all"}, "0.08 to 0.16 in all 2 steps"),
        (
            {"noise_method": "reinflow", "noise_steps": "last", "noise_logvar_range": [0.4, 0.4]},
            "reinflow 0.4 in the last of 2 steps",
        ),
        ({"noise_anneal": True}, "flow_sde annealed in one of 2 steps"),
        ({"noise_method": "flow_ode"}, ", flow_ode"),
    ],
)
def test_samplers_have_names(tmp_path, sampler, name):
    run = _run(tmp_path / "a", sampler=sampler)
    _evaluated(run / "evaluation" / "before", 3, 10)
    assert compare.summary(run)["variant"].endswith(name)


def test_seeds_of_a_variant_share_a_line(tmp_path):
    summaries = []
    for seed, successes in enumerate((3, 5)):
        run = _run(tmp_path / str(seed), seed=seed, rates=[0.5] * 125)
        _evaluated(run / "evaluation" / "before", successes, 10)
        summaries.append(compare.summary(run))
    last = compare.as_text(summaries).splitlines()[-1].split()
    # From 40 % to 90 % in 1,000 episodes each.
    assert last[-6:] == ["2", "40.0%", "90.0%", "90.0%", "90.0%", "+50.0"]


@pytest.mark.parametrize(
    "section, fields, name",
    [
        ("algorithm", dict(loss="ppo", clone_coef=0.0), "PPO, "),
        ("algorithm", dict(loss="clone", adv_type="raw"), "filtered cloning, "),
        ("algorithm", dict(clone_coef=0.5), "PPO + 0.5 cloning, "),
        ("algorithm", {}, "PPO, "),
        ("rollout", dict(max_staleness=0), "PPO, "),
        ("rollout", dict(max_staleness=1), "PPO stale by 1, "),
    ],
)
def test_runs_that_learn_otherwise_are_no_seeds_of_one(section, fields, name, tmp_path):
    """Also beside runs of before there was the choice."""
    run = _run(tmp_path / "a")
    _evaluated(run / "evaluation" / "before", 3, 10)
    config = json.loads((run / "config.json").read_text())
    config[section] |= fields
    atomic.write_json(run / "config.json", config)
    assert compare.summary(run)["variant"] == name + "flow_sde 0.8 in one of 2 steps"


def test_runs_of_one_seed_that_differ_in_another_setting_have_their_folders_names(tmp_path, capsys):
    runs = []
    for name, seed in (("plain", 0), ("longer", 0), ("plain_1", 1)):
        runs.append(_run(tmp_path / name, seed=seed))
        _evaluated(tmp_path / name / "evaluation" / "before", 3, 10)
    runs.append(_run(tmp_path / "grouped", adv_type="grpo"))
    _evaluated(tmp_path / "grouped" / "evaluation" / "before", 3, 10)
    compare.main(["compare", *map(str, runs), "--output", str(tmp_path / "sheet")])
    written = json.loads((tmp_path / "sheet.json").read_text())
    variants = [run["variant"] for run in written["runs"]]
    sampler = "flow_sde 0.8 in one of 2 steps"
    assert variants == [
        f"PPO, {sampler} (plain)",
        f"PPO, {sampler} (longer)",
        f"PPO, {sampler} (plain_1)",
        f"GRPO, {sampler}",
    ]
    assert "(longer)" in capsys.readouterr().out
