"""The sixteen published recipes against the table of RLinf's resolved configurations."""

import pathlib

import pytest

from pirl_jax.envs.libero import files
from pirl_jax.run import config, recipes

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SUITES = {
    "libero_spatial": 240,
    "libero_object": 240,
    "libero_goal": 320,
    "libero_10": 480,
}  # time limits, control steps
# denoise steps, noise level, executed actions, update epochs, gradient clip; most decisions of an
# iteration
PUBLISHED = {
    "libero_spatial_ppo_pi0": (4, 0.5, 5, 4, 1.0, 24_576),
    "libero_spatial_ppo_pi05": (3, 0.5, 5, 1, 1.0, 24_576),
    "libero_spatial_grpo_pi0": (4, 0.5, 5, 2, 1.0, 24_576),
    "libero_spatial_grpo_pi05": (3, 0.5, 5, 1, 1.0, 24_576),
    "libero_object_ppo_pi0": (4, 0.5, 5, 4, 1.0, 24_576),
    "libero_object_ppo_pi05": (5, 0.3, 5, 1, 1.0, 24_576),
    "libero_object_grpo_pi0": (4, 0.5, 5, 2, 1.0, 24_576),
    "libero_object_grpo_pi05": (5, 0.3, 5, 1, 1.0, 24_576),
    "libero_goal_ppo_pi0": (4, 0.5, 5, 4, 1.0, 32_768),
    "libero_goal_ppo_pi05": (5, 0.3, 5, 4, 1.0, 32_768),
    "libero_goal_grpo_pi0": (4, 0.5, 5, 2, 1.0, 32_768),
    "libero_goal_grpo_pi05": (5, 0.3, 5, 1, 1.0, 32_768),
    "libero_10_ppo_pi0": (4, 0.5, 10, 4, 2.0, 24_576),
    "libero_10_ppo_pi05": (5, 0.5, 10, 4, 1.0, 24_576),
    "libero_10_grpo_pi0": (4, 0.5, 10, 2, 2.0, 24_576),
    "libero_10_grpo_pi05": (4, 0.5, 10, 4, 1.0, 24_576),
}
# suite: few-shot SFT of pi0 and pi0.5; PPO and GRPO of pi0, PPO and GRPO of pi0.5; success in %
RESULTS = {
    "libero_spatial": {
        "pi0": 65.3,
        "pi05": 84.6,
        "ppo_pi0": 98.4,
        "grpo_pi0": 97.8,
        "ppo_pi05": 99.6,
        "grpo_pi05": 97.4,
    },
    "libero_object": {
        "pi0": 64.4,
        "pi05": 95.4,
        "ppo_pi0": 99.4,
        "grpo_pi0": 97.8,
        "ppo_pi05": 100.0,
        "grpo_pi05": 99.8,
    },
    "libero_goal": {
        "pi0": 49.8,
        "pi05": 84.6,
        "ppo_pi0": 96.2,
        "grpo_pi0": 83.2,
        "ppo_pi05": 98.8,
        "grpo_pi05": 91.2,
    },
    "libero_10": {
        "pi0": 51.2,
        "pi05": 43.9,
        "ppo_pi0": 90.2,
        "grpo_pi0": 81.4,
        "ppo_pi05": 93.0,
        "grpo_pi05": 77.6,
    },
}


@pytest.fixture(params=PUBLISHED)
def recipe(request):
    page = recipes.load_recipe(CONFIGS / f"{request.param}.py")
    *suite, algorithm, model = request.param.split("_")
    return page, "_".join(suite), algorithm, model, PUBLISHED[request.param], request.param


def test_what_differs(recipe):
    page, suite, _, _, (steps, level, chunk, epochs, clip, decisions), name = recipe
    assert page.env.suite == suite and page.run.directory == f"runs/{name}"
    limit = (
        page.env.max_episode_steps or files.PROTOCOLS[page.env.protocol].max_episode_steps[suite]
    )
    assert limit == SUITES[suite]
    assert page.rollout.episodes_per_iteration * limit // page.model.action_chunk == decisions
    got = (
        page.model.num_steps,
        page.model.noise_level,
        page.model.action_chunk,
        page.algorithm.update_epochs,
        page.optim.clip_grad,
    )
    assert got == (steps, level, chunk, epochs, clip)
    cosine = name == "libero_10_ppo_pi05"
    schedule = page.optim.schedule, page.optim.decay_steps, page.optim.min_lr_ratio
    assert schedule == (("cosine", 1000, 0.1) if cosine else ("constant", 0, 0.0))


def test_what_is_common(recipe):
    page, *_ = recipe
    model, algorithm, optim = page.model, page.algorithm, page.optim
    assert (model.noise_method, model.noise_steps, model.ignore_last, model.noise_anneal) == (
        "flow_sde",
        "one",
        False,
        False,
    )
    assert (
        model.train_expert_only
        and not model.is_lora
        and not model.chunk_critic_input
        and model.action_env_dim == 7
    )
    assert (optim.lr, optim.value_lr, optim.b1, optim.b2, optim.eps, optim.weight_decay) == (
        5e-6,
        1e-4,
        0.9,
        0.95,
        1e-8,
        0.01,
    )
    assert (algorithm.minibatch_size, algorithm.microbatch_size, page.seed) == (2048, 128, 42)
    assert (page.rollout.num_envs, page.rollout.episodes_per_iteration) == (64, 512)
    assert (algorithm.gamma, algorithm.gae_lambda) == (0.99, 0.95)
    assert (
        algorithm.clip_ratio_low,
        algorithm.clip_ratio_high,
        algorithm.value_clip,
        algorithm.huber_delta,
    ) == (0.2, 0.2, 0.2, 10)
    assert (
        algorithm.clip_ratio_c
        == algorithm.entropy_bonus
        == algorithm.critic_warmup_iterations
        == algorithm.target_kl
        == 0
    )
    assert (
        algorithm.logprob_type == "chunk"
        and algorithm.normalize_advantages
        and not algorithm.bootstrap_truncated
    )
    assert (page.num_iterations, page.run.save_every) == (1000, 40)


def test_algorithm_and_critic(recipe):
    page, _, algorithm, model, *_ = recipe
    chosen = page.algorithm
    got = chosen.adv_type, chosen.group_size, chosen.filter_rewards, page.model.add_value_head
    assert got == (("gae", 1, False, True) if algorithm == "ppo" else ("grpo", 8, True, False))
    assert (chosen.rewards_lower_bound, chosen.rewards_upper_bound) == (0.1, 0.9)
    if algorithm == "ppo":
        critic = page.model.value_after_vlm, tuple(page.model.value_hidden)
        assert critic == ((True, (1024, 512, 256)) if model == "pi05" else (False, (512, 256, 128)))
        assert page.model.value_vlm_mode == "mean_token" and (
            model == "pi05" or page.model.detach_critic_input
        )


def test_the_model_is_openpis(recipe):
    """openpi's pi0_libero and pi05_libero: pi0.5 sees no state and predicts absolute actions."""
    page, _, _, model, *_ = recipe
    got = page.model
    fields = (
        got.pi05,
        got.action_horizon,
        got.max_token_len,
        got.norm_mode,
        got.delta_actions,
        got.discrete_state,
        got.action_dim,
    )
    want = {
        "pi0": (False, 50, 48, "zscore", True, False, 32),
        "pi05": (True, 10, 200, "quantile", False, False, 32),
    }
    assert fields == want[model] and got.preset == f"{model}_libero"
    config.settings(page)  # which finds no contradiction


def test_the_docstring_says_command_and_published_results(recipe):
    _, suite, algorithm, model, _, name = recipe
    text = (CONFIGS / f"{name}.py").read_text()
    assert (
        f"--config configs/{name}.py" in text
        and "Deviations:" in text
        and "not reproduced by us yet" in text.lower()
    )
    before, after = RESULTS[suite][model], RESULTS[suite][f"{algorithm}_{model}"]
    assert f"few-shot SFT {before:.1f} %, after {algorithm.upper()} {after:.1f} %" in text
