"""Every field of the page has a test that sees it off its neutral value.

The table at the end names the test of each field; the last tests hold it against the page and
against the source of the tests.  Before it: fields of which only the way from the page to their
user can be tested here, and what decides who draws which noise.
"""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax import evaluate
from pirl_jax.core import types
from pirl_jax.envs import experts
from pirl_jax.learner import sft
from pirl_jax.models import pi0
from pirl_jax.policy import flow
from pirl_jax.recipes import base, tabletop_small
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import starts
from pirl_jax.run import config, demonstrated, devices, policies, schedule, simulators, steps, teach

TESTS = pathlib.Path(__file__).parents[1]


def changed(page, **fields):
    """The page with {section__field: value}, checked."""
    for name, value in fields.items():
        section, field = name.split("__")
        page[section][field] = value
    return config.settings(page)


# ---- the way from the page to its users ---------------------------------------------------------


def test_sizes_of_the_network():
    model = changed(
        recipe.get_config(),
        model__action_dim=9,
        model__action_horizon=6,
        model__max_token_len=21,
        model__image_size_px=24,
        model__lora_rank=3,
        model__is_lora=True,
        model__lora_init="openpi",
        model__gradient_checkpointing="dots",
        model__attention="xla",
        model__value_hidden=(5, 4),
        model__pi05=True,
        model__dtype="bfloat16",
    ).policy.network
    assert (model.action_dim, model.action_horizon, model.max_token_len) == (9, 6, 21)
    assert model.image_size == (24, 24) and (model.remat, model.attention) == ("dots", "xla")
    assert (model.pi05, model.dtype) == (True, "bfloat16")
    lora = model.paligemma.lora
    assert (lora.attn_rank, lora.ffn_rank, lora.init) == (3, 3, "openpi")
    assert lora.attn_scale == 1.0


POLICY = dict(
    num_steps=3,
    noise_method="flow_cps",
    noise_level=0.3,
    noise_logvar_range=(0.2, 0.4),
    noise_steps="all",
    joint_mean=True,
    action_chunk=2,
    action_env_dim=6,
    value_hidden=(5, 4),
    value_after_vlm=True,
    value_vlm_mode="last_token",
    detach_critic_input=True,
    chunk_critic_input=True,
)


@pytest.mark.parametrize("field", POLICY)
def test_fields_of_the_policy_reach_it(field):
    settings = changed(recipe.get_config(), **{f"model__{field}": POLICY[field]})
    plain = config.settings(recipe.get_config())
    assert getattr(settings.policy.model, field) == POLICY[field]
    assert getattr(plain.policy.model, field) != POLICY[field]


def test_what_is_saved_or_evaluated_is_a_barrier():
    fields = {"run__save_every": 4, "eval__every": 6}
    page = recipe.get_config()
    in_turns = changed(page, **fields).raw
    assert all(schedule.is_barrier(in_turns, i) for i in range(13))
    apart = changed(page, rollout__max_staleness=1, **fields).raw
    assert [i for i in range(13) if schedule.is_barrier(apart, i)] == [0, 4, 6, 8, 12]


@pytest.mark.parametrize(
    "lockstep, asked, resolved",
    [(False, "decision", "decision"), (False, "batch", "batch"), (True, "decision", "batch")],
)
def test_lockstep_switches_parameters_between_rollouts(lockstep, asked, resolved):
    fields = {"rollout__lockstep": lockstep, "rollout__weight_switch": asked}
    assert schedule.weight_switch(changed(recipe.get_config(), **fields).raw) == resolved


def test_fields_of_the_optimiser_reach_it():
    values = dict(
        lr=0.1,
        value_lr=0.2,
        b1=0.3,
        b2=0.4,
        eps=0.5,
        weight_decay=0.6,
        clip_grad=0.7,
        schedule="cosine",
        warmup_steps=8,
        decay_steps=90,
        min_lr_ratio=0.11,
    )
    fields = {f"optim__{name}": value for name, value in values.items()}
    optim = changed(recipe.get_config(), **fields).raw.optim
    assert {name: getattr(optim, name) for name in values} == values


def test_fields_of_sft_reach_its_steps():
    stage = changed(
        tabletop_small.get_config(),
        sft__lr=0.1,
        sft__weight_decay=0.2,
        sft__warmup_steps=3,
        sft__steps=40,
        sft__ema=0.9,
        sft__augment=True,
    ).sft
    optim = stage.optim
    assert (optim.lr, optim.weight_decay, optim.warmup_steps, optim.decay_steps) == (
        0.1,
        0.2,
        3,
        40,
    )
    assert (stage.page.ema, stage.page.augment) == (0.9, True)


TRANSFORM = dict(
    norm_mode="quantile",
    delta_actions=True,
    discrete_state=True,
    image_size_px=24,
    resize="device",
    max_token_len=90,
    action_dim=9,
)


@pytest.mark.parametrize("field", TRANSFORM)
def test_fields_of_the_transform_reach_it(field):
    value = TRANSFORM[field]
    made = []
    for fields in ({"model__max_token_len": 80}, {f"model__{field}": value}):
        settings = changed(recipe.get_config(), **{"model__max_token_len": 80} | fields)
        made.append(policies.transform(settings, policies.identity_stats(settings), ["push"]))
    assert getattr(made[1], field) == value != getattr(made[0], field)


def test_what_a_training_state_keeps():
    """Average, anchor and the type of what does not train."""
    asked = []
    fields = dict(
        algorithm__ema_decay=0.9, algorithm__anchor_coef=0.1, model__frozen_dtype="bfloat16"
    )
    for name, value in (("algorithm__gamma", 0.5), *fields.items()):
        settings = changed(recipe.get_config(), **{name: value})
        steps.train_state(settings, None, None, lambda *args, **kept: asked.append(kept))
    for one in asked:
        one["frozen_dtype"] = one["frozen_dtype"]("PaliGemma/llm/embedder/input_embedding")
    plain = dict(ema=False, anchor=False, frozen_dtype="float32")
    kept = [plain, dict(ema=True), dict(anchor=True), dict(frozen_dtype="bfloat16")]
    assert asked == [plain | other for other in kept]


@pytest.fixture
def simulators_asked(monkeypatch):
    """What the suites and the pool are asked for; nothing starts."""
    asked = {}

    class Pool:
        def __init__(self, make_env, num_envs, num_workers, **kwargs):
            asked["pool"] = dict(num_envs=num_envs, num_workers=num_workers, **kwargs)

        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(simulators.pools, "EnvPool", Pool)
    monkeypatch.setattr(simulators, "_check_machine", lambda *args: {})
    monkeypatch.setattr(simulators.backends, "require", lambda backend: None)
    return asked


def test_fields_of_the_simulators_reach_the_suite(simulators_asked):
    settings = changed(
        base.get_config(),
        env__image_size_px=40,
        env__max_episode_steps=33,
        env__render_quality="light",
        env__cached_tasks=5,
        env__protocol="openpi",
        env__assets="/somewhere",
        env__wording="bddl",
        env__pro_files="/elsewhere",
        env__plus_files="/there",
        env__plus_assets="/far",
    )
    make_env = simulators.env_factory(settings)
    assert isinstance(make_env, functools.partial) and make_env.args == ("libero_spatial",)
    assert make_env.keywords == dict(
        assets="/somewhere",
        image_size_px=40,
        max_episode_steps=33,
        protocol="openpi",
        render_quality="light",
        cached_tasks=5,
        wording="bddl",
        pro_files="/elsewhere",
        plus_files="/there",
        plus_folder="/far",
    )
    settings = changed(
        tabletop_small.get_config(),
        env__image_size_px=40,
        env__max_episode_steps=33,
        env__render_quality="light",
        env__spread=0.4,
    )
    assert simulators.env_factory(settings).keywords == dict(
        image_size_px=40, max_episode_steps=33, render_quality="light", spread=0.4
    )


def test_fields_of_the_pool_reach_it(simulators_asked):
    values = dict(
        timeout_s=7.0,
        restarts_per_hour=3,
        recycle_episodes=11,
        recycle_growth_gb=0.25,
        render_devices=(1, 0),
    )
    fields = {f"env__{name}": value for name, value in values.items()}
    settings = changed(recipe.get_config(), env__num_workers=4, **fields)
    with pytest.raises(KeyboardInterrupt), simulators.open_envs(settings, 6):
        pass
    assert simulators_asked["pool"] == dict(num_envs=6, num_workers=4) | values


@pytest.mark.parametrize("order", demonstrated.ORDERS)
def test_demonstrations_are_disturbed_and_drawn_as_the_page_says(
    order, monkeypatch, simulators_asked
):
    """Noise, seed, number and training states reach the expert; another seed draws other states."""
    asked = []

    class Here:
        """Runs at once, in this process."""

        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, work, *args):
            result = work(*args)
            return type("Done", (), dict(result=lambda self: result))()

    class Env:
        def close(self):
            pass

    def collect(env, task, init_states, seed, noise):
        asked.append((task, init_states, seed, noise))
        return [{"success": True}] * len(init_states)

    monkeypatch.setattr(teach.concurrent.futures, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(simulators, "env_factory", lambda settings: Env)
    monkeypatch.setattr(experts, "collect_demonstrations", collect)
    chosen, drawn = starts.Starts((0, 2), range(10, 40), range(40, 50)), []
    for seed in (1, 2):
        page = tabletop_small.get_config()
        page.seed = seed
        page.sft.update(demonstrations=6, action_noise=0.3, starts=order)
        settings = changed(page, env__num_workers=2)
        assert len(teach.collect(settings, chosen)) == 12
        assert [(task, len(states)) for task, states, *_ in asked] == [
            (0, 3),
            (0, 3),
            (2, 3),
            (2, 3),
        ]
        assert {(given, noise) for _, _, given, noise in asked} == {(seed, 0.3)}
        drawn += [tuple(asked[i][1] + asked[i + 1][1]) for i in (0, 2)]
        asked.clear()
    assert all(len(set(states)) == 6 and set(states) <= set(range(10, 40)) for states in drawn)
    assert len(set(drawn)) == 4, "seed and task both count"


def numbered(count):
    """Examples that are their own numbers."""
    return teach.Examples(count, lambda index: (index, index))


def test_demonstrations_of_a_batch_are_drawn_by_the_key():
    drawn = {}
    for key in (0, 1):
        batches = teach.batches(numbered(50), 8, jax.random.key(key))
        drawn[key] = [tuple(next(batches)[0]) for _ in range(2)]
    assert len({*drawn[0], *drawn[1]}) == 4 and len(drawn[0][0]) == 8


def test_hosts_share_a_batch_of_demonstrations(monkeypatch):
    whole, _ = next(teach.batches(numbered(50), 8, jax.random.key(0)))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts += next(teach.batches(numbered(50), 8, jax.random.key(0)))[0].tolist()
    assert parts == whole.tolist()


def test_sft_takes_its_steps_in_batches(monkeypatch):
    """As many as the page says, all drawn anew, with the key of the run."""
    seen = []

    def make_step(cfg, mesh):
        def step(state, obs, actions, key):
            seen.append((len(obs), tuple(np.asarray(actions).tolist())))
            return state, {"key": jax.random.key_data(key), "loss": 1.0}

        return step

    monkeypatch.setattr(teach.sft, "create_state", lambda params, cfg, mesh: params)
    monkeypatch.setattr(teach.sft, "make_sft_step", make_step)
    monkeypatch.setattr(teach.states, "acting_params", lambda state: state)
    monkeypatch.setattr(teach.meshes, "put_batch", lambda batch, mesh: batch)
    settings = changed(tabletop_small.get_config(), sft__steps=3, sft__batch_size=16)
    keys = [
        teach.fit(settings, None, None, numbered(99), jax.random.key(k), int)[1]["key"].tolist()
        for k in (0, 1)
    ]
    assert [size for size, _ in seen] == [16] * 6 and len({rows for _, rows in seen}) == 6
    assert keys[0] != keys[1]


def test_the_mesh_has_the_configured_axes():
    settings = changed(recipe.get_config(), mesh__data=4, mesh__fsdp=2, rollout__num_groups=1)
    assert dict(devices.mesh(settings).shape) == {"data": 4, "fsdp": 2}
    settings = changed(recipe.get_config(), mesh__fsdp=4, rollout__num_groups=1)
    assert dict(devices.mesh(settings).shape) == {"data": 2, "fsdp": 4}


def test_an_evaluation_has_as_many_simulators_as_the_page_says(monkeypatch, tmp_path):
    asked = []

    def open_envs(settings, num_envs, make_env=None):
        asked.append(num_envs)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.simulators, "open_envs", open_envs)
    path = str(TESTS.parent / "configs" / "probe.py")
    for count in (0, 4):
        arguments = ["--policy=random", f"--output={tmp_path}", f"--config.eval.num_envs={count}"]
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(["evaluate", "--config", path, *arguments])
    assert asked == [recipe.get_config().rollout.num_envs, 4]


# ---- who draws which noise ----------------------------------------------------------------------


def test_every_decision_draws_by_its_number_and_the_key(monkeypatch):
    """Explore and exploit; the keys of the rows stand where actions should."""
    seen = lambda key_B: jax.random.key_data(key_B)[:, 0]  # noqa: E731
    monkeypatch.setattr(flow, "prefill", lambda *args: None)
    monkeypatch.setattr(pi0, "prefill", lambda *args, **kwargs: None)
    monkeypatch.setattr(flow, "sample_chain", lambda p, key_B, *args: (None, seen(key_B)))
    monkeypatch.setattr(flow, "sample_actions", lambda p, key_B, *args: seen(key_B))
    settings = changed(recipe.get_config(), model__noise_level=0.123)
    explore, exploit = steps.decisions.__wrapped__(settings.policy, False, None)
    for decide in (lambda *args: explore(*args)[1], exploit):
        one, other = (
            np.asarray(decide(None, jax.random.key(key), np.array([3, 4, 3]), None))
            for key in (0, 1)
        )
        assert one[0] == one[2] != one[1] and (one != other).all()


def test_the_anchor_measures_what_the_page_says(monkeypatch):
    """And against the anchor's own steps, without a gradient into them."""
    ones = jnp.ones((2, 3, 8))

    def chain_steps(params, *args):
        step = flow.Step(
            velocity=params * ones, mean=3 * params * ones, std=ones, value=ones[:, 0, 0]
        )
        return [step, step]

    monkeypatch.setattr(flow, "chain_steps", chain_steps)
    chain = types.Chain(
        x=jnp.zeros((2, 2, 3, 8)),
        x_next=jnp.zeros((2, 2, 3, 8)),
        j=jnp.zeros((2, 2), int),
        level=jnp.ones(2),
        log_prob=None,
        value=None,
    )
    want = {"velocity_mse": 4.0, "kl": 2 * 2 * 7 * 36 / 2}
    for anchor, value in want.items():
        settings = changed(recipe.get_config(), algorithm__anchor=anchor, model__action_chunk=2)
        log_prob = steps.log_prob_fn(settings)

        def distance(params, anchor, log_prob=log_prob):
            distance_B = log_prob(params, chain, None, anchor)[3]
            return distance_B.sum(), distance_B

        both = jax.jit(jax.grad(distance, 1, has_aux=True))
        into_anchor, distance_B = both(jnp.float32(3.0), jnp.float32(1.0))
        np.testing.assert_allclose(distance_B, [value] * 2, rtol=1e-6)
        assert into_anchor == 0.0


def test_the_sft_term_of_a_run_draws_by_its_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(sft, "make_loss", lambda cfg, seed: seeds.append(seed))
    for seed in (5, 6):
        page = recipe.get_config()
        page.seed = seed
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
        steps.updater.__wrapped__(config.settings(page), mesh)
    assert seeds == [5, 6]


# ---- the table ----------------------------------------------------------------------------------

HERE = "run/test_guards_of_settings.py::"
UPDATE = "learner/test_update.py::"
OPTIMIZER = "learner/test_optimizer.py::"
FLOW = "policy/test_flow.py::"
NFT = "policy/test_mirrored_policies.py::"
OBJECTIVE = UPDATE + "test_each_coefficient_of_the_objective_by_hand"
FIRST_STEPS = OPTIMIZER + "test_three_steps_by_hand"
CURVES = OPTIMIZER + "test_schedules_by_hand"
EVALUATIONS = "test_train.py::still"  # whose run two tests look at
POOL = "envs/pool/test_supervisor.py::"
RECYCLING = "envs/pool/test_recycling.py::"
OF_SUITES = HERE + "test_fields_of_the_simulators_reach_the_suite"
OF_POOLS = HERE + "test_fields_of_the_pool_reach_it"
OF_SFT = HERE + "test_fields_of_sft_reach_its_steps"
SIZES = HERE + "test_sizes_of_the_network"

# Every field with numbers -> the tests (below tests/) that see it off its default.
TESTED = {
    "seed": ["test_train.py::still", HERE + "test_the_sft_term_of_a_run_draws_by_its_seed"],
    "num_iterations": ["test_train.py::still"],
    "env.tasks": ["run/test_config.py::test_tasks_and_start_states_are_checked_against_the_suite"],
    "env.image_size_px": [OF_SUITES],
    "env.max_episode_steps": [OF_SUITES],
    "env.spread": [
        OF_SUITES,
        "envs/tabletop/test_tabletop.py::test_a_smaller_spread_draws_the_manipulated_cube_together",
    ],
    "env.num_workers": [OF_POOLS],
    "env.render_devices": [OF_POOLS],
    "env.cached_tasks": [
        OF_SUITES,
        "rollout/test_stream.py::test_a_slot_prefers_the_task_it_holds",
    ],
    "env.timeout_s": [OF_POOLS],
    "env.restarts_per_hour": [OF_POOLS, POOL + "test_a_spent_budget_tells_the_first_cause_once"],
    "env.recycle_episodes": [OF_POOLS, RECYCLING + "test_slots_move_to_a_fresh_worker_one_by_one"],
    "env.recycle_growth_gb": [OF_POOLS, RECYCLING + "test_a_worker_that_grows_is_replaced_in_time"],
    "model.image_size_px": [SIZES],
    "model.action_dim": [SIZES],
    "model.action_horizon": [SIZES],
    "model.max_token_len": [
        SIZES,
        "run/test_policies.py::test_no_bucket_is_longer_than_the_page_allows",
    ],
    "model.lora_rank": [SIZES],
    "model.noise_level": [FLOW + "test_the_noise_level_by_hand", HERE + "POLICY"],
    "model.noise_params": [
        "run/test_policies.py::test_an_annealed_noise_level_reaches_the_sampler"
    ],
    "model.noise_logvar_range": [
        FLOW + "test_the_learned_noise_lies_in_its_range",
        HERE + "POLICY",
    ],
    "model.num_steps": [
        FLOW + "test_the_norms_of_the_steps_are_those_of_the_rows",
        HERE + "POLICY",
    ],
    "model.action_chunk": [FLOW + "test_which_action_features_the_critic_reads", HERE + "POLICY"],
    "model.action_env_dim": [HERE + "POLICY"],
    "model.value_hidden": [HERE + "POLICY"],
    "rollout.num_envs": ["test_train.py::SMALL"],
    "rollout.num_groups": ["rollout/test_stream.py::_play"],
    "rollout.episodes_per_iteration": ["test_train.py::SMALL"],
    "rollout.max_staleness": [HERE + "test_what_is_saved_or_evaluated_is_a_barrier"],
    "rollout.learner_timeout_s": [
        "run/test_schedule.py::test_a_learner_that_never_answers_ends_the_run"
    ],
    "algorithm.group_size": ["test_train.py::test_grpo_learns"],
    "algorithm.rewards_lower_bound": [UPDATE + "test_bounds_of_the_reward_filter"],
    "algorithm.rewards_upper_bound": [UPDATE + "test_bounds_of_the_reward_filter"],
    "algorithm.max_episodes_per_iteration": [UPDATE + "test_what_an_update_learns_from"],
    "algorithm.gamma": [UPDATE + "test_gamma_and_lambda_by_hand"],
    "algorithm.gae_lambda": [UPDATE + "test_gamma_and_lambda_by_hand"],
    "algorithm.update_epochs": [UPDATE + "test_target_kl_looks_at_the_last_epoch_alone"],
    "algorithm.minibatch_size": [UPDATE + "test_one_update_is_the_objective_written_down"],
    "algorithm.microbatch_size": [UPDATE + "test_accumulation_equals_the_big_batch"],
    "algorithm.clip_ratio_low": [OBJECTIVE],
    "algorithm.clip_ratio_high": [OBJECTIVE],
    "algorithm.clip_ratio_c": [OBJECTIVE],
    "algorithm.importance_cap": [
        "learner/test_proximal.py::test_older_rows_are_those_of_the_newest_parameters"
    ],
    "algorithm.value_clip": [OBJECTIVE],
    "algorithm.huber_delta": [OBJECTIVE],
    "algorithm.value_coef": [OBJECTIVE],
    "algorithm.entropy_bonus": [OBJECTIVE, UPDATE + "test_an_entropy_bonus_widens_the_policy"],
    "algorithm.target_kl": [UPDATE + "test_target_kl_looks_at_the_last_epoch_alone"],
    "algorithm.critic_warmup_iterations": [
        UPDATE + "test_the_critic_warmup_ends_after_its_iterations"
    ],
    "algorithm.anchor_coef": [OBJECTIVE],
    "algorithm.sft_loss_weight": [UPDATE + "test_the_sft_term_is_added_to_the_gradient"],
    "algorithm.clone_coef": [UPDATE + "test_imitation_written_down"],
    "algorithm.clone_rollouts": ["test_train.py::test_a_clone_with_its_replay_resumes_bit_for_bit"],
    "algorithm.ema_decay": [UPDATE + "test_anchor_and_average"],
    "nft.weight_scale": [NFT + "test_rlinf"],
    "nft.beta": [NFT + "OPTIONS", NFT + "test_authors"],
    "nft.dpo_beta": [NFT + "OPTIONS", NFT + "test_authors"],
    "nft.label_clip": ["learner/test_preference.py::test_terms_by_hand"],
    "nft.clip_ratio": [NFT + "test_rlinf"],
    "nft.max_drift": [NFT + "test_no_change_beyond_the_drift_limit_is_seen"],
    "nft.drift_coef": [NFT + "test_authors", "learner/test_preference.py::test_terms_by_hand"],
    "nft.tau": ["learner/test_preference.py::test_the_average_follows_once_an_iteration"],
    "optim.lr": [FIRST_STEPS],
    "optim.value_lr": [FIRST_STEPS],
    "optim.b1": [FIRST_STEPS],
    "optim.b2": [FIRST_STEPS],
    "optim.eps": [FIRST_STEPS],
    "optim.weight_decay": [FIRST_STEPS],
    "optim.clip_grad": [FIRST_STEPS],
    "optim.warmup_steps": [
        CURVES,
        UPDATE + "test_the_schedule_counts_iterations_and_not_updates",
    ],
    "optim.decay_steps": [CURVES],
    "optim.min_lr_ratio": [CURVES],
    "sft.demonstrations": [HERE + "test_demonstrations_are_disturbed_and_drawn_as_the_page_says"],
    "sft.dataset_hz": ["run/test_own_data.py::test_the_rate_that_a_user_gives"],
    "sft.action_noise": [HERE + "test_demonstrations_are_disturbed_and_drawn_as_the_page_says"],
    "sft.steps": [OF_SFT, HERE + "test_sft_takes_its_steps_in_batches"],
    "sft.batch_size": [HERE + "test_sft_takes_its_steps_in_batches"],
    "sft.lr": [OF_SFT],
    "sft.warmup_steps": [OF_SFT],
    "sft.weight_decay": [OF_SFT],
    "sft.ema": [OF_SFT],
    "eval.episodes_per_task": [EVALUATIONS],
    "eval.num_envs": [HERE + "test_an_evaluation_has_as_many_simulators_as_the_page_says"],
    "eval.every": [EVALUATIONS],
    "eval.episodes_during_training": [EVALUATIONS],
    "eval.num_videos": ["test_train.py::tabletop"],  # whose videos a test counts
    "video.train": [
        EVALUATIONS,
        "run/test_films.py::test_one_episode_of_each_group_and_none_by_default",
    ],
    "mesh.data": [HERE + "test_the_mesh_has_the_configured_axes"],
    "mesh.fsdp": [HERE + "test_the_mesh_has_the_configured_axes"],
    "run.save_every": [EVALUATIONS],
    "run.keep": [EVALUATIONS],
    "run.report_every": [EVALUATIONS],
    "run.max_rollbacks": ["run/test_divergence.py::Run"],
    "run.max_skipped_iterations": ["run/test_divergence.py::Run"],
}


def numbers(page, start=""):
    """Names of the fields that hold numbers (truth values are none), or tuples of them."""
    for name, value in page.items():
        if hasattr(value, "items"):
            yield from numbers(value, f"{name}.")
        elif isinstance(value, tuple | int | float) and not isinstance(value, bool):
            yield start + name


def test_the_table_has_every_number_of_the_page():
    assert set(numbers(base.get_config())) == set(TESTED)


@functools.cache
def sources(file):
    """Top-level name -> source, decorators included; "" is the whole file."""
    text = (TESTS / file).read_text()
    lines = text.splitlines()
    found = {"": text}
    for node in ast.parse(text).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        source = "\n".join(lines[first - 1 : node.end_lineno])
        targets = getattr(node, "targets", ())
        names = [getattr(node, "name", None), *(getattr(t, "id", None) for t in targets)]
        found |= {name: source for name in names if name}
    return found


@pytest.mark.parametrize("field", TESTED)
def test_the_tests_of_the_table_exist_and_name_the_field(field):
    """By its own name, or by that of the curve, the dict of fields or the class it is given to."""
    last = field.rpartition(".")[2]
    for place in TESTED[field]:
        file, _, name = place.partition("::")
        assert name in sources(file), place
        assert last in sources(file)[name], f"{place} does not mention {last}"
