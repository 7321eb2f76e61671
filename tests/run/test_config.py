"""Bad input ends in one sentence with the value and the remedy, exit code 2, no traceback.

All of it before anything is written or started.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import typing

import jax
import pytest

from pirl_jax import evaluate, serve, train
from pirl_jax.core import choices
from pirl_jax.core import mesh as meshes
from pirl_jax.core import page as pages
from pirl_jax.envs import base as envs
from pirl_jax.envs import probes
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import files
from pirl_jax.learner import optimizer
from pirl_jax.models import attention, heads, remat, variants
from pirl_jax.monitor import mirror as mirrors
from pirl_jax.policy import flow, mirror, noise, normalize
from pirl_jax.recipes import base, tabletop_small
from pirl_jax.rl import advantages, losses, nft
from pirl_jax.rollout import starts
from pirl_jax.run import command, config, demonstrated, learnable, own_data, recipes, reference
from pirl_jax.weights import presets

ROOT = pathlib.Path(__file__).parents[2]
PROBE = f"--config={ROOT / 'configs/probe.py'}"
RECIPE = f"--config={ROOT / 'configs/tabletop_small.py'}"
TABLETOP = envs.EnvSpec(
    "tabletop",
    ("lift", "lift green", "stack", "move"),
    1000,
    max_episode_steps=60,
    image_size_px=64,
)


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


# ---- the page --------------------------------------------------------------------------------

WRONG = [
    ("env.suite", "libero_spatail", "choose one of: libero_spatial, libero_object"),
    ("env.render_quality", "nice", "choose one of: exact, light"),
    ("model.size", "huge", "choose one of: full, small, tiny"),
    (
        "model.noise_method",
        "flow_sdee",
        "choose one of: flow_ode, flow_sde, flow_noise, flow_cps, reinflow",
    ),
    ("model.num_steps", 1, "leaves no stochastic step to model.noise_method='flow_cps'"),
    ("model.ignore_last", True, "has no meaning with model.noise_steps='all'"),
    ("model.noise_steps", "first", "choose one of: one, all, last"),
    ("model.noise_steps", "last", "leaves no stochastic step to model.noise_method='flow_cps'"),
    ("model.joint_logprob", True, "model.noise_steps='last' is not; drop one"),
    (
        "model.noise_logvar_range",
        (0.2, 0.1),
        "must be (lowest, highest) std with 0 < lowest <= highest",
    ),
    (
        "model.noise_params",
        (0.7, 0.3, 0),
        "must hold 3 numbers (first level, last level, iterations), each above 0",
    ),
    ("model.value_vlm_mode", "max", "choose one of: mean_token, first_token, last_token"),
    ("model.frozen_dtype", "float16", "choose one of: float32, bfloat16"),
    ("model.lora_rank", 0, "must be at least 1"),
    ("model.lora_init", "gaussian", "choose one of: zeros, openpi"),
    ("algorithm.adv_type", "reinforce", "choose one of: gae, grpo, rloo, dr_grpo"),
    ("algorithm.logprob_type", "word", "choose one of: chunk, action, token"),
    ("algorithm.anchor", "l2", "choose one of: kl, velocity_mse"),
    ("num_iterations", -5, "must be at least 0"),
    ("seed", 10**20, "must be at least 0 and at most 4294967295"),
    ("seed", 2**32, "must be at least 0 and at most 4294967295"),
    ("seed", -1, "must be at least 0 and at most 4294967295"),
    ("run.directory", "", "must be text and not empty"),
    ("env.tasks", (0, 0), "none of them twice"),
    ("rollout.num_envs", 1_000_000, "must be at least 1 and at most 65536"),
    ("algorithm.rewards_lower_bound", 0.95, "at most algorithm.rewards_upper_bound=0.9"),
    ("algorithm.gamma", 1.01, "must be at least 0 and at most 1"),
    ("algorithm.clip_ratio_low", -0.2, "must be at least 0"),
    ("algorithm.clip_ratio_high", -0.2, "must be at least 0"),
    ("algorithm.ema_decay", 1.0, "must be at least 0 and below 1"),
    ("optim.lr", -0.001, "must be at least 0"),
    ("optim.lr", float("nan"), "must be finite and at least 0"),
    ("optim.clip_grad", 0.0, "must be above 0"),
    ("optim.decay_steps", 0, "must exceed optim.warmup_steps=0 for optim.schedule='cosine'"),
    ("algorithm.clip_ratio_c", 0.5, "must be above 1, or 0"),
    ("algorithm.group_size", 7, "must be a multiple of algorithm.group_size=7"),
    ("model.norm_mode", "none", "choose one of: zscore, quantile"),
    ("model.dtype", "float16", "choose one of: float32, bfloat16"),
    ("model.gradient_checkpointing", "some", "choose one of: auto, none"),
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
    ("env.split", "all", "choose one of: held_out, published"),
    ("env.protocol", "libero", "choose one of: rlinf, openpi"),
    (
        "env.render_devices",
        (-1,),
        "must hold EGL devices, each at least 0",
    ),
    ("env.cached_tasks", 0, "must be at least 1"),
    ("env.restarts_per_hour", -1, "must be at least 0"),
    ("env.recycle_episodes", -1, "must be at least 0"),
    ("env.recycle_growth_gb", -0.5, "must be at least 0"),
    ("rollout.start_order", "random", "choose one of: uniform, ordered"),
    ("rollout.prefix_cache", "disk", "choose one of: auto, device, host, recompute"),
    ("algorithm.group_size", 0, "must be at least 1"),
    (
        "algorithm.group_size",
        3,
        "rollout.episodes_per_iteration=256 must be a multiple of algorithm.group_size=3",
    ),
    ("eval.episodes_per_task", -1, "must be at least 0"),
    ("eval.episodes_during_training", -1, "must be at least 0"),
    ("sft.steps", 0, "to be at least 1"),
    ("placement.rollout", "4-", "has '4-', which is no range; write ranges such as 0-3"),
    ("placement.actor", "3-1", "has the reversed range 3-1; write 1-3"),
    ("placement.offload", "all", "choose one of: off, optimizer, auto"),
    ("placement.env", "0-3:0", "here is one process per host; drop ':0' and write 0-3"),
    (
        "env.suite",
        "libero_90",
        "has no scripted expert; set sft.demonstrations=0 and model.checkpoint",
    ),
]


# What must be set besides for the value to be wrong.
NEEDED = {
    "model.num_steps": dict(noise_method="flow_cps"),
    "model.ignore_last": dict(noise_steps="all"),
    "model.noise_steps": dict(noise_method="flow_cps"),
    "model.joint_logprob": dict(noise_steps="last"),
}


def changed(page, name, value):
    section, _, field = name.rpartition(".")
    with page.ignore_type():
        (page[section] if section else page)[field] = value
    return page


@pytest.mark.parametrize(
    "name, value, remedy", WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG]
)
def test_a_bad_value_is_named_with_its_remedy(name, value, remedy):
    page = tabletop_small.get_config()
    page.optim.update(schedule="cosine", decay_steps=40)
    page.model.update(NEEDED.get(name, {}))
    with pytest.raises(ValueError) as error:
        learnable.check(config.settings(changed(page, name, value)).raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    "fields, remedy",
    [
        (
            dict(demonstrations=3),
            "sft.demonstrations=3 are two sources; drop one (sft.dataset='' or "
            "sft.demonstrations=0)",
        ),
        (dict(batch_size=0), "needs sft.batch_size=0 to be at least 1"),
        (dict(steps=0), "leaves a fresh model untaught; set sft.steps to at least 1, or model."),
        (
            dict(steps=0, dataset_statistics="computed", checkpoint="a"),
            "gives a policy other statistics than it learned with; set it to 'auto'",
        ),
        (
            dict(dataset_statistics="files", norm_stats="identity"),
            "model.norm_stats='identity' and sft.dataset_statistics='files' both say",
        ),
    ],
)
def test_somebodys_demonstrations_and_the_rest_of_the_page(fields, remedy):
    page = tabletop_small.get_config()
    page.sft.update(dict(demonstrations=0, dataset="a"))
    for name, value in fields.items():
        (page.model if name in page.model else page.sft)[name] = value
    with pytest.raises(ValueError) as error:
        learnable.check(config.settings(page).raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)


def test_somebodys_demonstrations_need_no_expert():
    page = tabletop_small.get_config()
    page.sft.update(dict(demonstrations=0, dataset="a"))
    page.env.suite = "libero_90"
    page.algorithm.sft_loss_weight = 0.1
    learnable.check(config.settings(page).raw)


def test_demonstrations_need_an_expert_for_every_task_played():
    page = tabletop_small.get_config()
    page.env.update(suite="libero_10,libero_goal", tasks=())
    remedy = "for tasks 3,9,13,15; play tasks that have one with --config.env.tasks=0,1,2,4,"
    with pytest.raises(ValueError, match=remedy):
        learnable.check(config.settings(page).raw)
    page.env.tasks = (12, 0)
    assert config.settings(page).raw.env.tasks == (12, 0)
    page.env.tasks = (12, 13)
    with pytest.raises(ValueError, match=r"for task 13; play .* --config.env.tasks=12, or set sft"):
        learnable.check(config.settings(page).raw)


def test_a_policy_that_was_taught_is_evaluated_where_no_expert_plays():
    page = tabletop_small.get_config()
    page.env.update(suite="libero_90", tasks=(), split="published")
    assert config.settings(page).raw.sft.demonstrations


@pytest.mark.parametrize(
    "fields, remedy",
    [
        (dict(adv_type="grpo", group_size=8), "has no critic; set model.add_value_head=False"),
        (
            dict(sft_loss_weight=0.1),
            "needs demonstrations; set sft.demonstrations (it is 0) to at least 1",
        ),
        (
            dict(max_episodes_per_iteration=1024),
            "replaces filtered groups: it needs algorithm.filter_rewards=True",
        ),
        (dict(filter_rewards=True), "groups of at least 2 and the filter are for adv_type=grpo"),
    ],
)
def test_algorithm_and_critic_go_together(fields, remedy):
    page = tabletop_small.get_config()
    page.sft.demonstrations = 0
    page.algorithm.update(fields)
    with pytest.raises(ValueError) as error:
        learnable.check(config.settings(page).raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, remedy",
    [
        (dict(group_size=1), "groups of at least 2 and the filter are for adv_type=grpo"),
        (
            dict(critic_warmup_iterations=1),
            "needs a critic; set it to 0 with algorithm.adv_type='grpo'",
        ),
    ],
)
def test_what_grpo_excludes(fields, remedy):
    page = tabletop_small.get_config()
    page.model.add_value_head = False
    page.algorithm.update(dict(adv_type="grpo", group_size=8, critic_warmup_iterations=0) | fields)
    with pytest.raises(ValueError) as error:
        learnable.check(config.settings(page).raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, remedy",
    [
        (dict(), ""),
        (dict(noise_method="flow_ode"), ""),
        (dict(clone_rollouts=0), ""),
        (dict(adv_type="gae"), "set algorithm.adv_type=raw and model.add_value_head=False"),
        (dict(adv_type="grpo", group_size=8), "set algorithm.adv_type=raw"),
        (dict(add_value_head=True), "has no critic; set model.add_value_head=False"),
        (dict(loss="ppo"), "needs a baseline, which algorithm.adv_type='raw' is not"),
        (dict(filter_rewards=True), "groups of at least 2"),
        (dict(filter_rewards=True, group_size=8), ""),
        (dict(clone_coef=0.1), "algorithm.clone_coef=0.1 has no meaning with algorithm.loss="),
        (dict(anchor_coef=0.1), "algorithm.anchor_coef=0.1 has no meaning with algorithm.loss="),
        (dict(entropy_bonus=0.1), "entropy_bonus=0.1 has no meaning with algorithm.loss="),
        (dict(target_kl=0.1), "algorithm.target_kl=0.1 has no meaning with algorithm.loss="),
        (dict(clone_rollouts=0, prefix_cache="host"), "set prefix_cache to 'recompute' or 'auto'"),
        (dict(noise_level=0.0), "explores nothing"),
    ],
)
def test_what_cloning_excludes(fields, remedy):
    page = tabletop_small.get_config()
    fields = (
        dict(
            loss="clone",
            adv_type="raw",
            add_value_head=False,
            critic_warmup_iterations=0,
        )
        | fields
    )
    for name, value in fields.items():
        section = next(page[s] for s in ("algorithm", "model", "rollout") if name in page[s])
        section[name] = value
    settings = config.settings(page)
    if not remedy:
        learnable.check(settings.raw)
        assert settings.keep_prefix == (settings.raw.algorithm.clone_rollouts == 1)
        return
    with pytest.raises(ValueError) as error:
        learnable.check(settings.raw)
    assert remedy in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_replayed_that_nothing_imitates():
    page = tabletop_small.get_config()
    page.algorithm.clone_rollouts = 0
    with pytest.raises(ValueError, match="replays what nothing imitates; set it to 1"):
        learnable.check(config.settings(page).raw)
    page.algorithm.clone_coef = 0.1
    learnable.check(config.settings(page).raw)


def test_users_names_reach_the_policy():
    page = tabletop_small.get_config()
    page.model.update(
        noise_method="reinflow", joint_logprob=True, is_lora=True, lora_rank=4, value_after_vlm=True
    )
    settings = config.settings(page)
    assert (
        settings.policy.model.noise_method == "flow_noise"
        and settings.policy.model.noise_steps == "all"
    )
    assert (
        settings.policy.network.paligemma.lora.attn_rank == 4
        and settings.policy.model.value_after_vlm
    )
    assert not settings.keep_prefix, "an adapter of the VLM changes the prefix with every update"


def test_adapters_under_openpis_names():
    page = base.get_config()
    page.model.update(
        paligemma_variant="gemma_2b", action_expert_variant="gemma_300m_lora", lora_init="openpi"
    )
    settings = config.settings(page)
    assert settings.policy.network.expert.lora == variants.LoraConfig(32, 32.0, 32, init="openpi")
    assert settings.policy.network.paligemma.lora is None and settings.keep_prefix, (
        "the expert's adapters leave the prefix alone"
    )
    page.model.paligemma_variant = "gemma_2b_lora"
    assert (
        config.settings(page).policy.network.paligemma.lora.attn_rank == 16
        and not config.settings(page).keep_prefix
    )
    page.model.is_lora = True
    with pytest.raises(ValueError, match="both say which adapters the VLM has; drop one"):
        config.settings(page)


@pytest.mark.parametrize(
    "is_lora, frozen, kept",
    [(False, True, "host"), (True, True, "recompute"), (False, False, "recompute")],
)
def test_a_prefix_is_kept_while_the_vlm_is_frozen(is_lora, frozen, kept):
    page = changed(
        changed(tabletop_small.get_config(), "model.is_lora", is_lora),
        "model.train_expert_only",
        frozen,
    )
    assert config.settings(page).prefix_cache == kept
    page = changed(page, "rollout.prefix_cache", "device")
    if kept == "host":
        assert config.settings(page).prefix_cache == "device"
    else:
        with pytest.raises(
            ValueError,
            match=r"prefix_cache='device' keeps what changes .* set it to 'recompute' or 'auto'",
        ):
            config.settings(page)


@pytest.mark.parametrize(
    "name, value", [("model.noise_method", "flow_ode"), ("model.noise_level", 0.0)]
)
def test_a_policy_that_explores_nothing_is_evaluated_but_not_trained(name, value):
    settings = config.settings(changed(tabletop_small.get_config(), name, value))
    with pytest.raises(
        ValueError, match="nothing to learn; use flow_sde with a positive noise_level"
    ):
        learnable.check(settings.raw)


@pytest.mark.parametrize(
    "name, value",
    [("rollout.num_envs", 4), ("algorithm.minibatch_size", 516), ("sft.batch_size", 4)],
)
def test_batches_divide_over_the_devices(name, value):
    page = changed(tabletop_small.get_config(), "algorithm.microbatch_size", 4)
    config.check_batches(config.settings(page).raw, 8)
    wrong = config.settings(changed(page, name, value)).raw
    with pytest.raises(ValueError, match="must be a multiple of the 8 devices of the mesh"):
        config.check_batches(wrong, 8)


def test_a_minibatch_divides_into_microbatches_of_all_devices():
    """One may be larger than a minibatch's part of a device."""
    for microbatch in (0, 64, 512):
        page = changed(tabletop_small.get_config(), "algorithm.microbatch_size", microbatch)
        config.check_batches(config.settings(page).raw, 8)
    page = changed(page, "algorithm.minibatch_size", 96)
    page = changed(page, "algorithm.microbatch_size", 8)
    with pytest.raises(ValueError, match=r"=96 must be .* times algorithm\.microbatch_size=8$"):
        config.check_batches(config.settings(page).raw, 8)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("rollout.num_envs", 18, "num_groups=9 must be a multiple of the 2 devices of a host"),
        (
            "rollout.episodes_per_iteration",
            255,
            "=255 must be a multiple of the 4 hosts times algorithm.group_size=1",
        ),
    ],
)
def test_batches_and_episodes_divide_over_hosts(name, value, message):
    page = tabletop_small.get_config()
    config.check_batches(config.settings(page).raw, 8, hosts=4)
    wrong = config.settings(changed(page, name, value)).raw
    with pytest.raises(ValueError, match=message):
        config.check_batches(wrong, 8, hosts=4)


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "rollout.num_envs",
            20,
            "=10 must be a multiple of the 4 devices of placement.rollout=0-3",
        ),
        ("algorithm.minibatch_size", 9, "=9 must be a multiple of the 2 devices of placement.act"),
        ("sft.batch_size", 9, "=9 must be a multiple of the 2 devices of placement.actor=6-7"),
    ],
)
def test_batches_divide_over_the_devices_of_a_role(name, value, message):
    page = tabletop_small.get_config()
    page.placement.update(rollout="0-3", actor="6-7")
    page.rollout.num_envs = 16
    page.algorithm.microbatch_size = 1
    config.check_batches(config.settings(page).raw, 2, playing=4)
    wrong = config.settings(changed(page, name, value)).raw
    with pytest.raises(ValueError, match=message):
        config.check_batches(wrong, 2, playing=4)


def test_prefixes_on_devices_that_play_leave_them_in_whole_batches():
    page = tabletop_small.get_config()
    page.placement.update(rollout="0-3", actor="6-7")
    page.algorithm.update(minibatch_size=10, microbatch_size=5)
    config.check_batches(config.settings(page).raw, 2, playing=4)
    page.rollout.prefix_cache = "device"
    message = "must be a multiple of the 4 devices of placement.rollout=0-3, which keep the prefix"
    with pytest.raises(ValueError, match=message):
        config.check_batches(config.settings(page).raw, 2, playing=4)


def test_separate_devices_offload_nothing():
    page = tabletop_small.get_config()
    page.placement.offload = "optimizer"
    config.settings(page)
    page.rollout.max_staleness = 1
    with pytest.raises(ValueError, match=r"takes away what the learner needs while episodes play"):
        config.settings(page)
    page.rollout.max_staleness = 0
    page.placement.update(rollout="2-5", actor="6-7")
    with pytest.raises(ValueError, match=r"placement.offload='optimizer' makes room for nothing "):
        config.settings(page)
    page.placement.offload = "auto"
    config.settings(page)


def test_a_learner_that_is_played_for_meanwhile_keeps_its_optimiser():
    page = tabletop_small.get_config()
    page.rollout.max_staleness = 1
    page.placement.offload = "auto"
    config.settings(page)
    page.placement.offload = "optimizer"
    with pytest.raises(
        ValueError, match=r"offload='optimizer' takes away what the learner needs while"
    ):
        config.settings(page)


def test_simulators_draw_where_one_field_says():
    page = tabletop_small.get_config()
    page.placement.env = "0"
    page.env.render_devices = (1,)
    with pytest.raises(
        ValueError, match=r"placement.env='0' and env.render_devices=\(1,\) both say"
    ):
        config.settings(page)


def test_tasks_and_start_states_are_checked_against_the_suite():
    page, spec = tabletop_small.get_config(), probes.make("action").spec
    with pytest.raises(
        ValueError,
        match=r"needs at least 2 start states per task, but the suite has 1; set env\.split=",
    ):
        config.playable(page, spec)
    page.env.tasks = (4,)
    with pytest.raises(ValueError, match=r"env.tasks has 4; suite 'probe_action' has tasks 0 to 0"):
        config.playable(page, spec)


@pytest.mark.parametrize(
    "name, count, first, last",
    [
        ("eval.episodes_per_task", 201, 800, 999),
        ("eval.episodes_during_training", 201, 800, 999),
        ("sft.demonstrations", 801, 0, 799),
    ],
)
def test_no_start_state_is_played_twice(name, count, first, last):
    page = changed(tabletop_small.get_config(), name, count)
    with pytest.raises(
        ValueError,
        match=rf"{name}={count} exceeds the {count - 1} start states \({first} to {last}\)",
    ):
        config.playable(page, TABLETOP)


def test_the_openpi_protocol_replans_every_five_actions():
    page = base.get_config()
    page.model.action_chunk, page.env.protocol = 10, "openpi"
    assert config.settings(page).policy.model.action_chunk == 5
    page.env.protocol = "rlinf"
    assert config.settings(page).policy.model.action_chunk == 10
    page.env.update(suite="tabletop", protocol="openpi")
    assert config.settings(page).policy.model.action_chunk == 10, "a protocol of LIBERO alone"
    page.env.suite, page.model.action_horizon = "libero_goal", 4
    with pytest.raises(ValueError, match=r"model.action_chunk=5 exceeds model.action_horizon=4"):
        config.settings(page)


RECIPES = sorted(
    path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base")
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_complete_and_right(path):
    page = recipes.load_recipe(path)
    assert set(recipes.field_names(page)) == set(recipes.field_names(base.get_config()))
    learnable.check(config.settings(page).raw)


def test_the_quickstart_is_evaluated_on_start_states_it_never_trains_on():
    page = recipes.load_recipe(ROOT / "configs" / "quickstart.py")
    chosen = config.playable(page, TABLETOP)
    assert not set(chosen.train) & set(chosen.evaluate) and len(chosen.train) == 800


@pytest.mark.parametrize("name", ["libero_spatial_ppo_pi0", "libero_spatial_ppo_pi0_tiny"])
def test_the_published_recipe_has_the_published_split_and_the_default_is_held_out(name):
    assert recipes.load_recipe(ROOT / f"configs/{name}.py").env.split == "published"
    assert base.get_config().env.split == "held_out"


# ---- the page and what stands elsewhere ------------------------------------------------------

TABLES = {
    "env.suite": (
        *(*files.SUITES, "tabletop"),
        *(f"probe_{name}" for name in probes.PROBES),
        choices.OWN,
    ),
    "env.protocol": files.PROTOCOLS,
    "env.libero": ("pinned", "any"),
    "env.wording": files.WORDINGS,
    "env.render_quality": ("exact", "light"),
    "env.split": starts.SPLITS,
    "model.preset": ("", *presets.PRESETS),
    "model.size": config.MODEL_SIZES,
    "model.dtype": ("float32", "bfloat16"),
    "model.frozen_dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", *attention.IMPLEMENTATIONS),
    "model.resize": ("host", "device"),
    "model.norm_mode": normalize.MODES,
    "model.gradient_checkpointing": ("auto", *remat.POLICIES),
    "model.lora_init": variants.LORA_INITS,
    "model.paligemma_variant": ("", *variants.GEMMA),
    "model.action_expert_variant": ("", *variants.GEMMA),
    "model.noise_method": (*noise.METHODS, *noise.ALIASES),
    "model.noise_steps": ("one", "all", "last"),
    "model.value_vlm_mode": heads.POOLS,
    "rollout.prefix_cache": ("auto", "device", "host", "recompute"),
    "rollout.start_order": starts.ORDERS,
    "rollout.balance": starts.BALANCES,
    "rollout.weight_switch": ("decision", "batch"),
    "algorithm.loss": ("ppo", "clone", "nft"),
    "algorithm.adv_type": ("gae", *advantages.GROUP_BASELINES, "raw"),
    "algorithm.logprob_type": losses.LOG_PROB_LEVELS,
    "algorithm.importance": ("recompute", "behavior"),
    "algorithm.anchor": flow.ANCHORS,
    "nft.form": ("dpo", "mse"),
    "nft.target": ("xnext", "x0", "x0_sde"),
    "nft.rows": ("rollout", "resample"),
    "nft.steps": ("all", "one"),
    "nft.weight": ("auto", "adaptive", *mirror.WEIGHTS),
    "nft.reduction": ("sum", "mean"),
    "nft.level": mirror.LEVELS,
    "nft.tau_curve": nft.CURVES,
    "sft.starts": demonstrated.ORDERS,
    "sft.dataset_images": own_data.TURNED,
    "sft.dataset_statistics": ("auto", "computed", "files"),
    "optim.schedule": optimizer.SCHEDULES,
    "placement.offload": ("off", "optimizer", "auto"),
    "run.on_divergence": ("stop", "rollback"),
    "run.backends": ("jsonl", "tensorboard", *mirrors.SERVICES),
}


def test_the_choices_of_the_page_are_those_of_the_tables():
    """Floor 0 knows no table of the floors above."""
    found = {
        f"{section}.{field.name}": field.metadata["bound"].choices
        for section, declared in pages.SECTIONS.items()
        for field in dataclasses.fields(declared)
        if field.metadata["bound"].choices
    }
    assert found == {name: tuple(table) for name, table in TABLES.items()}


def test_recipes_start_from_the_page():
    page = base.get_config()
    assert page.to_dict() == pages.Page().as_dict() and page.is_locked and page.env.is_locked
    assert config.settings(page).raw == pages.from_dict(pages.Page().as_dict())


def test_the_reference_is_that_of_the_page():
    remedy = "docs/config.md is stale; run: python -m pirl_jax.run.reference > docs/config.md"
    assert (ROOT / "docs/config.md").read_text() == reference.as_markdown(), remedy


# ---- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, remedy",
    [
        ("--config.modle.lr=1", "did you mean --config.optim.lr or --config.sft.lr?"),
        ("--config.model.noise_levl=1", "did you mean --config.model.noise_level?"),
        ("--config.modle.noise_level=1", "did you mean --config.model.noise_level?"),
        ("--config.num_iteration=1", "did you mean --config.num_iterations?"),
        ("--config.eval.xyz=1", "eval has: baseline, episodes_during_training, "),
        ("--config.xyz=1", "it has: algorithm, env, eval, "),
        ("--config.env=1", "env has: assets, cached_tasks, image_size_px, "),
        ("--config.num_iterations=many", "num_iterations=many must be a whole number"),
        ("--resume=always", "invalid choice: 'always' (choose from"),
        ("--resum=auto", "--resum is no option, did you mean --resume?; pirl train --help"),
        ("more", "argument 'more' belongs to no option, write --name=value"),
    ],
)
def test_a_wrong_argument(sentence, argument, remedy):
    assert remedy in sentence(train, RECIPE, argument)


def nonsense(field):
    """Just outside of the bound, or of another kind, as typed -> what the sentence must say."""
    bound = field.metadata["bound"]
    kind = typing.get_args(field.type)[0] if typing.get_origin(field.type) else field.type
    text = bound.text()
    if kind is bool:
        return {"maybe": "maybe"}
    if kind is str:
        words = {"nonsense": "does not exist; choose one of: "} if bound.choices else {}
        return words | ({"": text} if bound.filled else {})
    wrong = {"many": "many"}
    if kind is float:
        wrong |= {} if typing.get_origin(field.type) else dict.fromkeys(("nan", "inf"), "finite")
    elif math.isinf(bound.high):
        wrong["2147483648"] = "at most 2147483647"
    else:
        wrong[str(bound.high + 1)] = text
    if math.isfinite(bound.low):
        wrong[str(bound.low if bound.open_low else bound.low - 1)] = text
    if math.isfinite(bound.high) and kind is float:
        wrong[str(bound.high if bound.open_high else bound.high + 0.001)] = text
    return wrong


FIELDS = {f.name: f for f in dataclasses.fields(pages.Page) if "bound" in f.metadata} | {
    f"{section}.{field.name}": field
    for section, declared in pages.SECTIONS.items()
    for field in dataclasses.fields(declared)
}


@pytest.mark.parametrize("name", FIELDS)
def test_no_command_starts_with_nonsense(sentence, monkeypatch, tmp_path, name):
    """Nothing that comes after the check of the page is reached."""
    monkeypatch.setattr(train.devices, "setup_jax", None)
    field = FIELDS[name]
    for value, bound in nonsense(field).items():
        if typing.get_origin(field.type):
            value = ",".join([value] * (field.metadata["bound"].length or 2))
        flag = f"--config.{name}={value}"
        said = sentence(train, RECIPE, "--config.env.tasks=0,", flag)
        assert name in said and bound in said, said
        assert all(part in said for part in value.split(",")), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config="]])
def test_no_recipe(sentence, arguments):
    assert "--config is missing; give a recipe, for example --config quickstart" in sentence(
        train, *arguments
    )


def test_a_recipe_that_does_not_exist(sentence):
    said = sentence(train, f"--config={ROOT / 'configs/quickstrat.py'}")
    assert "quickstrat.py does not exist" in said and "quickstart.py" in said


def test_help_shows_what_the_command_is_for(capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main(["train", "--help"])
    assert exit_.value.code == 0
    assert "Fine-tune a policy" in (said := capsys.readouterr().out) and "--resume" in said


def test_overrides_reach_the_page():
    argv = [
        "train",
        RECIPE,
        "--config.env.tasks=0,2",
        "--config.optim.lr=0.5",
        "--noconfig.run.tensorboard",
        "--resume=auto",
    ]
    values, page = command.parse(argv, train._parser())
    assert (page.env.tasks, page.optim.lr, page.run.tensorboard, values.resume) == (
        (0, 2),
        0.5,
        False,
        "auto",
    )


@pytest.mark.parametrize(
    "fields, backends, older",
    [
        ({}, ("tensorboard",), ()),
        ({"backends": "jsonl"}, ("jsonl",), ()),
        ({"backends": "wandb,swanlab"}, ("wandb", "swanlab"), ()),
        ({"tensorboard": False}, (), ("run.tensorboard=False is an older name; write run.back",)),
        ({"wandb": True}, ("tensorboard", "wandb"), ("run.wandb=True is an older name; write",)),
        ({"wandb": True, "backends": "wandb"}, ("wandb",), ("run.wandb=True is an older",)),
    ],
)
def test_who_gets_the_numbers_also_by_older_names(fields, backends, older):
    page = recipes.load_recipe("quickstart")
    page.run.update(fields)
    settings = config.settings(page)
    assert settings.backends == backends
    assert len(settings.older_names) == len(older)
    for sentence, start in zip(settings.older_names, older, strict=True):
        assert sentence.startswith(start) and sentence.endswith(",".join(backends) or "jsonl")


# ---- what only shows when the run is set up --------------------------------------------------


@pytest.fixture
def one_device(monkeypatch):
    """A user's machine, not the eight virtual devices of the tests."""
    monkeypatch.setattr(
        meshes,
        "make_mesh",
        lambda *args, make=meshes.make_mesh: make(*args, jax.devices()[:1]),
    )


NOTHING_CACHED = "--config.run.compilation_cache="


def test_assets_that_do_not_exist_are_told_from_inside_the_simulator_process(
    sentence, one_device, tmp_path, vectors
):
    """The error rises in a child process; the parent says its sentence."""
    tiny = f"--config={ROOT / 'configs/libero_spatial_ppo_pi0_tiny.py'}"
    said = sentence(
        train,
        tiny,
        "--config.env.assets=/nonexistent",
        f"--config.run.directory={tmp_path / 'run'}",
        NOTHING_CACHED,
    )
    assert (
        "LIBERO assets are not in /nonexistent" in said
        and "--config.env.assets=FOLDER or in PIRL_LIBERO_ASSETS" in said
    )
    assert not (tmp_path / "run").exists(), "the corrected command can use the same directory"


def test_missing_gl_library(sentence, one_device, monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "egl", ("libAbsent.so.1", "libabsent1"))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert (
        "libAbsent.so.1 is missing (MUJOCO_GL=egl); run: apt-get install -y libabsent1"
        in sentence(train, RECIPE, NOTHING_CACHED)
    )


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        (
            ["--config.eval.episodes_per_task=3"],
            "eval.episodes_per_task=3 exceeds the 2 start states (0 to 1)",
        ),
        (["--config.env.tasks=1,"], "env.tasks has 1; suite 'probe_conditioned' has tasks 0 to 0"),
        (["--config.model.tokenizer="], "model.tokenizer is empty; set it to"),
        (["--config.model.max_token_len=5"], "set model.max_token_len to at least 17"),
        (
            ["--config.model.norm_stats=nowhere.json"],
            "nowhere.json; give the norm_stats.json of",
        ),
        (["--config.model.norm_stats="], "needs model.norm_stats"),
        (["--config.model.checkpoint=nowhere"], "nowhere; give a run directory"),
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
    assert (
        "--checkpoint is missing; give the directory of a run, or --policy random | expert"
        in sentence(evaluate, PROBE)
    )
    said = sentence(evaluate, PROBE, "--policy=experts")
    assert (
        "--policy='experts' does not exist; choose one of: checkpoint, random, expert, ws://HOST:PORT"
        in said
    )
    assert "has no scripted expert; evaluate --policy=random" in sentence(
        evaluate, PROBE, "--policy=expert"
    )
    said = sentence(evaluate, PROBE, "--policy=expert", "--config.env.suite=libero_goal")
    assert "for tasks 3,5; play tasks that have one with --config.env.tasks=0,1,2,4" in said
    assert "--videos=some is no choice of episodes; give all, failures" in sentence(
        evaluate, PROBE, "--videos=some"
    )
    said = sentence(evaluate, PROBE, "--checkpoint=nowhere", NOTHING_CACHED)
    assert "nowhere; give a run directory" in said


def test_a_run_brings_its_own_configuration(sentence, tmp_path):
    page = tabletop_small.get_config()
    page.env.tasks, page.seed = (2, 3), 7
    saved = json.loads(json.dumps(page.to_dict()))
    (tmp_path / "config.json").write_text(json.dumps(saved))
    argv = ["evaluate", f"--checkpoint={tmp_path / 'checkpoints'}", "--config.seed=8"]
    values, read = command.parse(argv, evaluate._parser())
    page.seed = 8
    assert read.to_dict() == page.to_dict() and values.checkpoint == tmp_path / "checkpoints"
    assert config.settings(read) == config.settings(page)
    _, given = command.parse([*argv, PROBE], evaluate._parser())
    assert given.env.suite == "probe_conditioned", "a recipe that is given counts"
    assert "/nowhere does not exist; give the folder of a run" in sentence(
        evaluate, "--checkpoint=nowhere"
    )
    (tmp_path / "empty").mkdir()
    assert "has no config.json beside its checkpoints; give the recipe with --config" in sentence(
        evaluate, f"--checkpoint={tmp_path / 'empty'}"
    )
    (tmp_path / "config.json").write_text(json.dumps(saved | {"extra": 1}))
    said = sentence(evaluate, f"--checkpoint={tmp_path}")
    assert "is of another version (fields extra); give the recipe with --config" in said


@pytest.mark.parametrize(
    "lacks", [("env.split",), ("seed", "optim.lr"), ("nft",)], ids=lambda names: "+".join(names)
)
def test_a_run_from_before_a_field_has_its_default_and_says_so(tmp_path, capsys, lacks):
    page = tabletop_small.get_config()
    page.env.tasks = (2, 3)
    saved = json.loads(json.dumps(page.to_dict()))
    for name in lacks:
        section, _, field = name.rpartition(".")
        del (saved[section] if section else saved)[field]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    read = recipes.load_run(tmp_path)
    assert read.env.tasks == (2, 3)
    anew = base.get_config()
    for name in lacks:
        section, _, field = name.rpartition(".")
        now = read[section][field] if section else read[field]
        assert now == (anew[section][field] if section else anew[field])
    said = capsys.readouterr().err
    assert f"{tmp_path / 'config.json'} is older than the fields" in said
    assert lacks[0] in said and "they have their defaults" in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": "seven"}, "config.json does not fit the page: .*seed"),
        ({"optim": base.get_config().optim.to_dict() | {"lr": 10**400}}, "does not fit the page: "),
        ({"env": {}}, "config.json is of another version .fields env.*, .* and [0-9]+ more"),
        ({"env": 7}, "config.json is of another version"),
        ({f"extra.{k}": k for k in range(1000)}, "extra.*, .* and 990 more"),
        ({"a.b": 1}, "config.json is of another version .fields a.b.;"),
        (None, "config.json is no config.json of a run of ours; give the recipe with --config"),
    ],
)
def test_a_configuration_that_is_not_the_pages_is_a_short_sentence(
    sentence, tmp_path, change, said
):
    saved = json.loads(json.dumps(tabletop_small.get_config().to_dict()))
    foreign = {"type": "pi05", "chunk_size": 5, "normalization_mapping": {"STATE": "IDENTITY"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(foreign if change is None else saved | change))
    for command_ in (evaluate, serve):
        text = sentence(command_, f"--checkpoint={tmp_path}")
        assert re.search(said, text) and str(path) in text and len(text) < 600, text


@pytest.mark.parametrize(
    "foreign",
    [
        {"action_dim": 32, "action_horizon": 50, "precision": "bfloat16"},
        {"seed": 1000, "env": {"type": "libero"}, "policy": {"type": "pi05"}, "steps": 6000},
        {"model_type": "paligemma", "text_config": {"hidden_size": 2048}},
        {"seed": 42, "model": {"pi05": True, "action_horizon": 10}},
        {},
    ],
)
def test_the_configuration_of_another_program_is_no_run_of_another_version(tmp_path, foreign):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(foreign))
    said = f"{path} is no config.json of a run of ours; give the recipe with --config"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        recipes.load_run(tmp_path)


def test_a_run_is_named_by_any_of_its_checkpoints(tmp_path):
    page = tabletop_small.get_config()
    (tmp_path / "config.json").write_text(json.dumps(page.to_dict()))
    for place in ("", "checkpoints", "checkpoints/40"):
        assert recipes.load_run(tmp_path / place).to_dict() == page.to_dict()


def test_a_real_process_ends_with_code_2_and_one_line():
    command = [
        sys.executable,
        "-m",
        "pirl_jax.train",
        "--config",
        "configs/probe.py",
        "--config.model.noise_levl=1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --config.model.noise_levl is no field of the configuration; "
        "did you mean --config.model.noise_level?\n"
    )


@pytest.mark.parametrize(
    "argument, said",
    [
        ("num_iterations=-5", "num_iterations=-5 must be at least 0"),
        ("run.directory=", "run.directory='' must be text and not empty"),
        ("optim.lr=nan", "optim.lr=nan must be finite and at least 0 and at most 10"),
    ],
)
def test_a_real_process_refuses_nonsense(argument, said):
    command = [sys.executable, "-m", "pirl_jax.train", "--config", "configs/probe.py"]
    command.append(f"--config.{argument}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


def test_every_section_of_a_recipe_reaches_the_settings():
    """Left out, a field would fall back to its default: GRPO in groups of one learns nothing."""
    page = tabletop_small.get_config()
    page.model.add_value_head = False
    page.algorithm.update(adv_type="rloo", group_size=8, critic_warmup_iterations=0)
    read = config.settings(page).raw.as_dict()
    written = page.to_dict()
    for name in ("directory", "compilation_cache"):  # which are whole paths by then
        assert read["run"].pop(name).endswith(written["run"].pop(name).lstrip("~"))
    assert read == written


@pytest.mark.parametrize(
    "argument, remedy",
    [
        ("model.checkpoint=nowhere", "there is no checkpoint at"),
        ("model.norm_stats=nowhere.json", "no normalisation statistics at "),
        ("model.action_env_dim=3", "must be the 7 action entries that suite"),
        ("model.value_hidden=200000000,", "rollout and update need"),
    ],
)
def test_a_wrong_start_leaves_no_folder(sentence, one_device, tmp_path, argument, remedy):
    assert remedy in sentence(train, PROBE, f"--config.{argument}", NOTHING_CACHED)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_a_file(sentence, tmp_path):
    (tmp_path / "notes").write_text("")
    said = sentence(train, PROBE, "--config.run.directory=notes/run")
    assert f"run.directory={tmp_path / 'notes/run'} cannot be written (Not a directory: " in said
