"""Bad input ends in one sentence with the value and the remedy, exit code 2, no traceback; before anything is written."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import base
from configs import quickstart
from pirl_jax import build
from pirl_jax import config
from pirl_jax import evaluate
from pirl_jax import train

ROOT = pathlib.Path(__file__).parents[1]
PROBE = f"--config={ROOT / 'configs/probe.py'}"
QUICKSTART = f"--config={ROOT / 'configs/quickstart.py'}"


@pytest.fixture
def sentence(monkeypatch, capsys, tmp_path):
    """sentence(command, *arguments) -> what a command says that refuses to start."""

    def call(command, *arguments):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as exit_:
            command.main([command.__name__, *arguments])
        assert exit_.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
        return said

    return call


# ---- the page ----------------------------------------------------------------------------------------------------------

WRONG = [
    ("env.suite", "libero_spatail", "choose one of: libero_spatial, libero_object"),
    ("env.render_quality", "nice", "choose one of: exact, light"),
    ("model.size", "huge", "choose one of: full, small, tiny"),
    ("model.noise_method", "flow_sdee", "choose one of: flow_ode, flow_sde, flow_noise, flow_cps, reinflow"),
    ("model.num_steps", 1, "leaves no stochastic step to model.noise_method='flow_cps'"),
    ("model.ignore_last", True, "has no meaning with model.joint_logprob=True"),
    ("model.noise_logvar_range", (0.2, 0.1), "must be (lowest, highest) std with 0 < lowest < highest"),
    ("model.noise_params", (0.7, 0.3, 0), "must be (first level, last level, iterations), all above 0"),
    ("model.value_vlm_mode", "max", "choose one of: mean_token, first_token, last_token"),
    ("model.frozen_dtype", "float16", "choose one of: float32, bfloat16"),
    ("model.lora_rank", 0, "must be at least 1"),
    ("algorithm.adv_type", "reinforce", "choose one of: gae, grpo, rloo, dr_grpo"),
    ("algorithm.logprob_type", "word", "choose one of: chunk, action, token"),
    ("algorithm.anchor", "l2", "choose one of: kl, velocity_mse"),
    ("algorithm.clip_ratio_c", 0.5, "must be above 1, or 0 for no dual clip"),
    ("algorithm.group_size", 7, "must be a multiple of algorithm.group_size=7"),
    ("model.norm_mode", "none", "choose one of: zscore, quantile"),
    ("model.dtype", "float16", "choose one of: float32, bfloat16"),
    ("model.gradient_checkpointing", "some", "choose one of: none"),
    ("model.image_size_px", 65, "must be a multiple of the patch of 16 px"),
    ("model.action_chunk", 11, "exceeds model.action_horizon=10; execute at most"),
    ("model.action_chunk", 0, "must be at least 1"),
    ("model.num_steps", 0, "must be at least 1"),
    ("model.action_dim", 7, "must hold the 8-D state"),
    ("rollout.num_envs", 15, "must be a multiple of rollout.num_groups=2"),
    ("rollout.num_groups", 0, "must be at least 1"),
    ("rollout.episodes_per_iteration", 0, "must be at least 1"),
    ("eval.num_envs", 3, "must be a multiple of rollout.num_groups=2"),
    ("algorithm.microbatch_size", 48, "must be a multiple of algorithm.microbatch_size=48"),
    ("algorithm.update_epochs", 0, "must be at least 1"),
    ("run.save_every", 0, "must be at least 1"),
    ("env.tasks", ("lift",), "must hold task indices"),
    ("env.train_init_states", (9, 9), "give (first, last) with 0 <= first < last"),
    ("eval.init_states", (0,), "give (first, last) with 0 <= first < last"),
    ("eval.episodes_per_task", 201, "exceeds the 200 start states in eval.init_states=(800, 1000)"),
    ("sft.demonstrations", 801, "exceeds the 800 start states in env.train_init_states=(0, 800)"),
    ("sft.steps", 0, "to be at least 1"),
    ("env.suite", "libero_goal", "has no scripted expert; set sft.demonstrations=0 and model.checkpoint"),
]


# What must be set besides for the value to be wrong.
NEEDED = {
    "model.num_steps": dict(noise_method="flow_cps"), "model.ignore_last": dict(joint_logprob=True),
    "model.noise_params": dict(noise_anneal=True),
}  # fmt: skip


def changed(page, name, value):
    section, _, field = name.rpartition(".")
    with page.ignore_type():
        page[section][field] = value
    return page


@pytest.mark.parametrize("name, value, remedy", WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_bad_value_is_named_with_its_remedy(name, value, remedy):
    page = quickstart.get_config()
    page.model.update(NEEDED.get(name, {}))
    with pytest.raises(ValueError) as error:
        config.settings(changed(page, name, value))
    assert remedy in str(error.value) and "\n" not in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize("fields, remedy", [
    (dict(adv_type="grpo", group_size=8), "has no critic; set model.add_value_head=False"),
    (dict(sft_loss_weight=0.1), "needs demonstrations; set sft.demonstrations (it is 0) to at least 1"),
    (dict(filter_rewards=True), "groups of at least 2 and the filter are for adv_type=grpo"),
])  # fmt: skip
def test_algorithm_and_critic_go_together(fields, remedy):
    page = quickstart.get_config()
    page.sft.demonstrations = 0
    page.algorithm.update(fields)
    with pytest.raises(ValueError) as error:
        config.check_training(config.settings(page).raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fields, remedy", [
    (dict(group_size=1), "groups of at least 2 and the filter are for adv_type=grpo"),
    (dict(critic_warmup_iterations=1), "needs a critic; set it to 0 with algorithm.adv_type='grpo'"),
])  # fmt: skip
def test_what_grpo_excludes(fields, remedy):
    page = quickstart.get_config()
    page.model.add_value_head = False
    page.algorithm.update(dict(adv_type="grpo", group_size=8, critic_warmup_iterations=0) | fields)
    with pytest.raises(ValueError) as error:
        config.check_training(config.settings(page).raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)


def test_users_names_reach_the_policy():
    page = quickstart.get_config()
    page.model.update(noise_method="reinflow", joint_logprob=True, is_lora=True, lora_rank=4, value_after_vlm=True)
    settings = config.settings(page)
    assert settings.policy.noise_method == "flow_noise" and settings.policy.joint_logprob
    assert settings.policy.model.paligemma.lora.attn_rank == 4 and settings.policy.value_after_vlm
    assert not settings.keep_prefix, "an adapter of the VLM changes the prefix with every update"


@pytest.mark.parametrize("name, value", [("model.noise_method", "flow_ode"), ("model.noise_level", 0.0)])
def test_a_policy_that_explores_nothing_is_evaluated_but_not_trained(name, value):
    settings = config.settings(changed(quickstart.get_config(), name, value))
    with pytest.raises(ValueError, match="nothing to learn; use flow_sde with a positive noise_level"):
        config.check_training(settings.raw)


@pytest.mark.parametrize("name, value", [("rollout.num_envs", 4), ("algorithm.microbatch_size", 4), ("sft.batch_size", 4)])
def test_batches_divide_over_the_devices(name, value):
    page = quickstart.get_config()
    config.check_batches(page, 8)
    with pytest.raises(ValueError, match="must be a multiple of the 8 devices of the mesh"):
        config.check_batches(changed(page, name, value), 8)


def test_tasks_and_start_states_are_checked_against_the_suite():
    page, spec = quickstart.get_config(), build.probes.make("action").spec
    with pytest.raises(ValueError, match="env.train_init_states ends at 800, but suite 'probe_action' has 1 start states"):
        config.tasks(page, spec)
    page.env.tasks = (4,)
    with pytest.raises(ValueError, match="env.tasks has 4; suite 'probe_action' has tasks 0 to 0"):
        config.tasks(page, spec)


RECIPES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_complete_and_right(path):
    page = config.load_recipe(path)
    assert set(config._flat_names(page)) == set(config._flat_names(base.get_config()))
    config.check_training(config.settings(page).raw)


def test_the_quickstart_is_evaluated_on_start_states_it_never_trains_on():
    page = config.load_recipe(ROOT / "configs" / "quickstart.py")
    assert page.env.train_init_states[1] <= page.eval.init_states[0]


# ---- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, remedy",
    [
        ("--config.modle.lr=1", "did you mean --config.optim.lr or --config.sft.lr?"),
        ("--config.model.noise_levl=1", "did you mean --config.model.noise_level?"),
        ("--config.modle.noise_level=1", "did you mean --config.model.noise_level?"),
        ("--config.num_iteration=1", "did you mean --config.num_iterations?"),
        ("--config.eval.xyz=1", "eval has: baseline, episodes_during_training, "),
        ("--config.xyz=1", "it has: algorithm, env, eval, "),
        ("--config.env=1", "env has: assets, image_size_px, "),
        ("--config.num_iterations=many", "--config.num_iterations=many"),
        ("--resume=always", "value should be one of <never|auto>"),
        ("--resum=auto", "Did you mean: resume ?"),
        ("more", "argument 'more' belongs to no option; write --name=value"),
    ],
)
def test_a_wrong_argument(sentence, argument, remedy):
    assert remedy in sentence(train, QUICKSTART, argument)


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config="]])
def test_no_recipe(sentence, arguments):
    assert "--config is missing; give a recipe, for example --config configs/quickstart.py" in sentence(train, *arguments)


def test_a_recipe_that_does_not_exist(sentence):
    said = sentence(train, f"--config={ROOT / 'configs/quickstrat.py'}")
    assert "quickstrat.py does not exist" in said and "quickstart.py" in said


def test_help_shows_what_the_command_is_for(capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main(["train", "--help"])
    assert exit_.value.code == 0
    assert "Fine-tune a policy" in (said := capsys.readouterr().out) and "--resume" in said


def test_overrides_reach_the_page():
    argv = ["train", QUICKSTART, "--config.env.tasks=0,2", "--config.optim.lr=0.5", "--noconfig.run.tensorboard", "--resume=auto"]
    values, page = config.parse(argv, train._flags)
    assert (page.env.tasks, page.optim.lr, page.run.tensorboard, values.resume) == ((0, 2), 0.5, False, "auto")


# ---- what only shows when the run is set up ----------------------------------------------------------------------------


@pytest.fixture
def one_device(monkeypatch):
    """A user's machine, not the eight virtual devices of the tests."""
    monkeypatch.setattr(build.meshes, "make_mesh", lambda *args, make=build.meshes.make_mesh: make(*args, build.jax.devices()[:1]))


NOTHING_CACHED = "--config.run.compilation_cache="


def test_assets_that_do_not_exist_are_told_from_inside_the_simulator_process(sentence, one_device, tmp_path, vectors):
    """The error rises in a child process; the parent says its sentence."""
    tiny = f"--config={ROOT / 'configs/libero_spatial_ppo_pi0_tiny.py'}"
    said = sentence(train, tiny, "--config.env.assets=/nonexistent", f"--config.run.directory={tmp_path / 'run'}", NOTHING_CACHED)
    assert "LIBERO assets are not in /nonexistent" in said and "pass assets=FOLDER or set PIRL_LIBERO_ASSETS" in said
    assert not (tmp_path / "run").exists(), "the corrected command can use the same directory"


def test_missing_gl_library(sentence, one_device, monkeypatch):
    monkeypatch.setitem(build.libero_files.GL_LIBRARIES, "egl", ("libAbsent.so.1", "libabsent1"))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert "libAbsent.so.1 is missing (MUJOCO_GL=egl); run: apt-get install -y libabsent1" in sentence(
        train, QUICKSTART, NOTHING_CACHED
    )


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        (["--config.env.train_init_states=0,3"], "env.train_init_states ends at 3, but suite 'probe_conditioned' has 2"),
        (["--config.env.tasks=1,"], "env.tasks has 1; suite 'probe_conditioned' has tasks 0 to 0"),
        (["--config.model.tokenizer="], "model.tokenizer is empty; set it to"),
        (["--config.model.max_token_len=5"], "set max_token_len to at least 17"),
        (["--config.model.norm_stats=nowhere.json"], "no normalisation statistics at nowhere.json; give"),
        (["--config.model.norm_stats="], "needs model.norm_stats"),
        (["--config.model.checkpoint=nowhere"], "nowhere/checkpoints does not exist; give the folder of a saved run"),
    ],
)
def test_what_does_not_fit_the_suite(sentence, one_device, arguments, remedy):
    assert remedy in sentence(train, PROBE, *arguments, NOTHING_CACHED)


def test_a_directory_that_holds_a_run(sentence, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"iteration": 0}) + "\n")
    said = sentence(train, PROBE, f"--config.run.directory={tmp_path}", NOTHING_CACHED)
    assert f"run directory {tmp_path} already holds a run; continue it with --resume auto" in said
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_evaluation_needs_a_checkpoint(sentence, one_device):
    assert "--checkpoint is missing" in sentence(evaluate, PROBE)
    said = sentence(evaluate, PROBE, "--checkpoint=nowhere", NOTHING_CACHED)
    assert "nowhere/checkpoints does not exist; give the folder of a saved run" in said


def test_a_real_process_ends_with_code_2_and_one_line():
    command = [sys.executable, "-m", "pirl_jax.train", "--config", "configs/probe.py", "--config.model.noise_levl=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --config.model.noise_levl is no field of the configuration; did you mean --config.model.noise_level?\n"
    )
