import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import page
from pirl_jax.models import heads, pi0, variants
from pirl_jax.policy import flow
from tests import analytic_network

SAMPLED = 16  # decisions of `sampled`
W = 16


@pytest.fixture
def fast_compile():
    """Compile twice faster, run slower and round a little differently; the models are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def sampled(monkeypatch):
    """(fields) -> policy, parameters, chain, prefix, displacement by definition."""
    analytic_network.install(monkeypatch)
    draw = np.random.default_rng(0)
    model = variants.pi0_config("tiny")
    H, A = model.action_horizon, model.action_dim

    def normal(*shape):
        return jnp.asarray(0.5 * draw.normal(size=shape), jnp.float32)

    params = {"Wx": normal(A, W), "wt": normal(W), "Ws": normal(A, W), "pos": normal(H, W)}
    params["action_out_proj"] = {"kernel": normal(W, A), "bias": normal(A)}
    small = heads.value_specs(W, (8,)) | heads.noise_specs(W, A)
    params |= jax.tree.map(lambda leaf: normal(*leaf.shape), small)
    none = jnp.zeros((SAMPLED, 0))
    prefix = pi0.Prefix(k=none, v=none, mask=none, state=normal(SAMPLED, A), pooled=None)
    key_B = jax.random.split(jax.random.key(0), SAMPLED)

    def sample(**fields):
        cfg = flow.Policy(model, page.Model(**fields))
        chain, noisy_BHA = flow.sample_chain(params, key_B, prefix, cfg)
        plain_BHA, _, _ = flow.draw(key_B, cfg)
        for j in range(cfg.model.num_steps):
            step = flow.denoise_step(
                params, prefix, None, plain_BHA, jnp.full(SAMPLED, j), chain.level, cfg
            )
            plain_BHA = plain_BHA - step.velocity / cfg.model.num_steps
        difference = np.asarray(flow.executed(noisy_BHA - plain_BHA, cfg))
        return cfg, params, chain, prefix, np.sqrt((difference**2).mean((1, 2)))

    return sample
