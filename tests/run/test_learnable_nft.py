"""What NFT refuses, in one sentence with the value and the remedy, and what it does not."""

import pathlib

import pytest

from pirl_jax.recipes import probe
from pirl_jax.run import config, learnable, recipes

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def page_of(**fields):
    page = probe.get_config()
    page.model.add_value_head = False
    page.algorithm.update(loss="nft", adv_type="rloo", group_size=8)
    for name, value in fields.items():
        section, field = name.split("__")
        page[section][field] = value
    return page


def check(page):
    learnable.check(config.settings(page).raw)


ODE = {"model__noise_method": "flow_ode"}
CPS = {"model__noise_method": "flow_cps"}
X0 = {"nft__target": "x0"}


@pytest.mark.parametrize(
    "fields, remedy",
    [
        (
            dict(algorithm__adv_type="gae", algorithm__group_size=1, model__add_value_head=True),
            "algorithm.adv_type='gae' trains one; set algorithm.adv_type=rloo with groups, or raw,"
            " and model.add_value_head=False",
        ),
        (dict(model__add_value_head=True), "has no critic; set model.add_value_head=False"),
        (ODE, "model.noise_method='flow_ode' and model.noise_steps='one' some have no noise"),
        (
            CPS | dict(model__noise_steps="all"),
            "model.noise_method='flow_cps' and model.noise_steps='all' some have no noise; use"
            " flow_sde, or nft.target=x0",
        ),
        (CPS | dict(model__joint_logprob=True), "some have no noise; use flow_sde"),
        (dict(model__noise_level=0.0), "explores nothing, so there is nothing to learn"),
        (dict(nft__rows="resample"), "set nft.target=x0, or nft.rows=rollout"),
        (ODE | dict(nft__target="x0_sde"), "model.noise_method='flow_ode'; set nft.target=x0"),
        (
            dict(nft__steps="one", model__noise_steps="one"),
            "model.noise_steps='one' has one alone; set nft.steps=all",
        ),
        (ODE | X0 | dict(nft__weight="sigma"), "has not; set nft.weight=auto"),
        (X0 | dict(algorithm__target_kl=0.02), "algorithm.target_kl=0.02 bounds the KL"),
        (dict(nft__clip_ratio=0.3), "nft.clip_ratio=0.3 is for nft.form=mse"),
        (dict(nft__weight_scale=(0.0, 0.0)), "nft.weight_scale=(0.0, 0.0) leaves nothing"),
        (dict(nft__tau=(1.5, 1.0, 0, 1)), "nft.tau=(1.5, 1.0, 0, 1) must be (first share"),
        (dict(nft__tau=(1.0, 0.5, 9.0, 1.0)), "iterations in order"),
        (
            dict(nft__tau=(1.0, 0.5, 0, 1), algorithm__ema_decay=0.9),
            "algorithm.ema_decay=0.9 another; set ema_decay to 0",
        ),
        (
            dict(
                algorithm__adv_type="raw", algorithm__group_size=1, algorithm__filter_rewards=True
            ),
            "groups of at least 2 and the filter are for",
        ),
    ],
)
def test_what_does_not_go_together(fields, remedy):
    with pytest.raises(ValueError) as error:
        check(page_of(**fields))
    assert remedy in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        CPS,
        dict(model__noise_method="flow_noise", model__noise_steps="all"),
        dict(model__noise_steps="last", nft__form="mse", nft__clip_ratio=0.3),
        ODE | X0,
        ODE | X0 | dict(nft__rows="resample", model__noise_level=0.0),
        CPS | X0 | dict(model__noise_steps="all", nft__weight="constant"),
        dict(nft__target="x0_sde", nft__weight="sigma"),
        dict(algorithm__adv_type="raw", algorithm__group_size=1),
        dict(algorithm__ema_decay=0.9, algorithm__target_kl=0.02),
    ],
)
def test_what_does(fields):
    check(page_of(**fields))


def test_other_losses_do_not_read_it():
    """The section of another loss is not looked at, and neither is its average kept."""
    page = probe.get_config()
    page.nft.update(tau=(0.9, 0.1, 0, 5), rows="resample")
    check(page)
    settings = config.settings(page)
    assert settings.policy.nft is None and not settings.plays_average
    page = page_of(nft__tau=(0.9, 0.1, 0, 5))
    assert config.settings(page).plays_average
    assert config.settings(page).policy.nft == config.settings(page).raw.nft
    assert not config.settings(page_of()).plays_average


# ---- the recipes ---------------------------------------------------------------------------------


def recipe(name):
    page = recipes.load_recipe(CONFIGS / f"{name}.py")
    check(page)
    return page


def test_rlinfs_recipe():
    page = recipe("libero_object_0_nft_pi0")
    model, algorithm, optim, nft = page.model, page.algorithm, page.optim, page.nft
    assert (page.env.suite, page.env.tasks, page.num_iterations) == ("libero_object", (0,), 100)
    assert (page.rollout.num_envs, page.rollout.episodes_per_iteration) == (64, 64)
    assert (model.noise_method, model.num_steps, model.action_chunk) == ("flow_ode", 4, 5)
    assert (algorithm.loss, algorithm.adv_type, algorithm.group_size) == ("nft", "grpo", 8)
    bounds = algorithm.rewards_lower_bound, algorithm.rewards_upper_bound
    assert algorithm.filter_rewards and bounds == (0.1, 0.9)
    assert (algorithm.update_epochs, algorithm.minibatch_size) == (2, 512)
    assert not algorithm.trajectory_weighting
    assert (nft.form, nft.target, nft.rows, nft.weight) == ("mse", "x0", "resample", "auto")
    assert (nft.reduction, nft.beta, nft.label_clip, nft.weight_scale) == ("mean", 1, 0.5, (1, 0.2))
    assert (nft.max_drift, nft.clip_ratio, nft.tau) == (0, 0, (1.0, 0.01, 20, 100))
    assert (optim.lr, optim.eps, optim.clip_grad) == (5e-6, 1e-8, 1)


def test_the_authors_recipe():
    page = recipe("libero_object_nft_pi0")
    model, algorithm, optim, nft = page.model, page.algorithm, page.optim, page.nft
    assert (page.env.suite, page.env.tasks, page.num_iterations) == ("libero_object", (), 1000)
    assert (page.rollout.num_envs, page.rollout.episodes_per_iteration) == (64, 512)
    assert (model.noise_method, model.noise_level, model.noise_steps) == ("flow_sde", 0.2, "all")
    assert (model.num_steps, model.action_chunk) == (4, 5)
    assert (algorithm.loss, algorithm.adv_type, algorithm.group_size) == ("nft", "raw", 1)
    assert (algorithm.update_epochs, algorithm.minibatch_size) == (2, 2048)
    assert not algorithm.filter_rewards and not algorithm.trajectory_weighting
    assert (nft.form, nft.target, nft.rows, nft.reduction) == ("dpo", "xnext", "rollout", "sum")
    assert (nft.beta, nft.dpo_beta, nft.max_drift, nft.drift_coef) == (1, 1, 0.5, 1e-4)
    keep = [1 - share for share in nft.tau[:2]]
    assert keep == pytest.approx([0.1, 0.995]) and nft.tau[2:] == (0, 1000)
    assert nft.tau_curve == "cosine"
    assert (optim.lr, optim.eps, optim.clip_grad) == (1e-5, 1e-5, 1)


def test_our_recipe():
    page = recipe("libero_spatial_nft_pi0")
    algorithm, nft = page.algorithm, page.nft
    assert (algorithm.loss, algorithm.adv_type, algorithm.group_size) == ("nft", "rloo", 8)
    assert (page.model.noise_method, page.model.noise_steps) == ("flow_sde", "all")
    assert (nft.form, nft.reduction, nft.level, nft.max_drift) == ("dpo", "sum", "action", 0.5)
    assert nft.tau[:2] == (1, 1) and (nft.target, nft.rows) == ("xnext", "rollout")


@pytest.mark.parametrize(
    "name", ("libero_object_0_nft_pi0", "libero_object_nft_pi0", "libero_spatial_nft_pi0")
)
def test_the_docstring_says_its_command(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"--config configs/{name}.py" in text
    assert recipe(name).run.directory == f"runs/{name}"
