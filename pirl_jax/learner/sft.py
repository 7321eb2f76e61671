"""Supervised fine-tuning by flow matching: the policy that reinforcement learning starts from.

One step is openpi's: same keys, same loss, same order of optimiser and average.
"""

from collections.abc import Callable
import dataclasses
import re

import jax
import jax.numpy as jnp
import optax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page as pages
from pirl_jax.core import rng, spec, types
from pirl_jax.learner import optimizer
from pirl_jax.learner import state as states
from pirl_jax.models import pi0, resize, variants
from pirl_jax.policy import augment


@dataclasses.dataclass(frozen=True)
class Stage:
    """Supervised fine-tuning of a network: what its steps need to know."""

    network: variants.Pi0Config
    page: pages.Sft
    optim: pages.Optim  # with openpi's schedule, derived from the page (run/config.py)


def create_state(
    params: dict,
    cfg: Stage,
    mesh: jax.sharding.Mesh,
    frozen_dtype: Callable[[str], jnp.dtype | str] | None = None,
) -> states.TrainState:
    """Fresh state for SFT around `params` (see state.create); the heads stay as they are."""
    ema = cfg.page.ema > 0
    return states.create(
        params, cfg.optim, _trainable(cfg), mesh, ema=ema, frozen_dtype=frozen_dtype
    )


def make_sft_step(cfg: Stage, mesh: jax.sharding.Mesh) -> Callable:
    """step(state, Observation [B], actions_BHA, key) -> state, metrics on the device.

    What a step changes of the state is donated.  `key` is that of the whole run: each step folds
    its number in, so a resumed run draws what it would have drawn.  Actions are normalised; the
    loss covers padded action dimensions too, as openpi's does.
    """

    def step(
        state: states.TrainState,
        frozen: dict,
        obs: types.Observation,
        actions_BHA: jax.Array,
        key: jax.Array,
    ) -> tuple[states.TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        obs, noise_BHA, time_B = _draw(key, obs, actions_BHA, cfg)

        def loss(learned: dict) -> jax.Array:
            params = states.merge(learned, frozen)
            return pi0.flow_matching_loss(
                params, obs, actions_BHA, noise_BHA, time_B, cfg.network
            ).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        learned, opt_state, applied = optimizer.apply(
            cfg.optim, grads, state.opt_state, state.params, state.step
        )
        metrics = {name: applied[name] for name in ("grad_norm", "lr")}
        metrics |= {"loss": value, "param_norm": _weight_norm(states.merge(learned, frozen))}
        state = state.replace(
            step=state.step + 1,
            params=learned,
            opt_state=opt_state,
            ema=states.averaged(state.ema, learned, cfg.page.ema, applied["skipped"]),
        )
        return state, metrics

    compiled = states.Step(step, _trainable(cfg), mesh)

    def step_on_mesh(
        state: states.TrainState, obs: types.Observation, actions_BHA: jax.Array, key: jax.Array
    ) -> tuple[states.TrainState, dict]:
        return compiled(state, obs, actions_BHA, meshes.replicate(key, mesh))

    return step_on_mesh


def make_loss(cfg: Stage, seed: int) -> Callable:
    """loss(params, (Observation [B], actions_BHA), step) -> scalar.

    The SFT term of co-training (learner/update.py).
    """

    def loss(
        params: dict, demonstrations: tuple[types.Observation, jax.Array], step: jax.Array
    ) -> jax.Array:
        obs, actions_BHA = demonstrations
        key = jax.random.fold_in(rng.named(jax.random.key(seed), "sft_term"), step)
        obs, noise_BHA, time_B = _draw(key, obs, actions_BHA, cfg)
        return pi0.flow_matching_loss(
            params, obs, actions_BHA, noise_BHA, time_B, cfg.network
        ).mean()

    return loss


def _trainable(cfg: Stage) -> Callable[[str], bool]:
    of_model = optimizer.trainable(cfg.network, train_expert_only=False)
    return lambda path: of_model(path) and not path.startswith(("value_head/", "noise_head/"))


def _draw(
    key: jax.Array, obs: types.Observation, actions_BHA: jax.Array, cfg: Stage
) -> tuple[types.Observation, jax.Array, jax.Array]:
    """Augmented observation, flow noise and flow time of one step."""
    augment_key, noise_key, time_key = jax.random.split(key, 3)
    if cfg.page.augment:
        images = resize.with_pad(obs.images, *cfg.network.image_size)
        obs = obs.replace(images=augment.augment(augment_key, pi0.to_float(images)))
    noise_BHA = jax.random.normal(noise_key, actions_BHA.shape)
    return obs, noise_BHA, pi0.sample_time(time_key, actions_BHA.shape[0])


def _weight_norm(params: dict) -> jax.Array:
    """Norm of the weight matrices: no biases, scales or embeddings."""
    skip = re.compile(r"(bias|scale|pos_embedding|input_embedding)$")
    matrices = []
    for path, x in spec.flatten(params).items():
        if x.ndim > 1 and not skip.search(path):
            matrices.append(x.astype(jnp.float32))
    return optax.tree.norm(matrices)
