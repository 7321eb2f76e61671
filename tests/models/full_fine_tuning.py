"""What each checkpointing policy needs of memory and time, all weights trained, on a CPU.

    python -m tests.models.full_fine_tuning [LAYERS [ROWS [DTYPE]]]

Flow-matching loss and gradient of a narrow pi0 with three cameras of 224 px.  LAYERS of the
language model (18 as at full size; the vision tower has half as many again); with eight or fewer it
is run, too.  docs/benchmarks.md has the numbers.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import types
from pirl_jax.models import pi0, remat, variants
from pirl_jax.run import hlo

CAMERAS = 3
REPEATS = 4


def network(layers: int, dtype: str, policy: str) -> variants.Pi0Config:
    """79 M parameters with 18 layers."""
    return variants.Pi0Config(
        pi05=False,
        paligemma=variants.GemmaConfig(256, layers, 4096, 8, 1, 64),
        expert=variants.GemmaConfig(128, layers, 1024, 8, 1, 64),
        siglip=variants.SiglipConfig(144, 3 * layers // 2, 538, 4, 14),
        vocab_size=2048,
        action_dim=32,
        action_horizon=50,
        max_token_len=48,
        dtype=dtype,
        remat=policy,
    )


def inputs(cfg: variants.Pi0Config, rows: int) -> tuple:
    """Parameters, and a batch in which nothing is masked."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=(rows, *shape)).astype(np.float32)

    obs = types.Observation(
        images=draw.uniform(-1, 1, (rows, CAMERAS, *cfg.image_size, 3)).astype(np.float32),
        image_mask=np.ones((rows, CAMERAS), bool),
        state=normal(cfg.action_dim),
        tokens=draw.integers(1, cfg.vocab_size, (rows, cfg.max_token_len), np.int32),
        token_mask=np.ones((rows, cfg.max_token_len), bool),
    )
    chunk = (cfg.action_horizon, cfg.action_dim)
    time_B = np.linspace(0.1, 0.9, rows, dtype=np.float32)
    params = jax.tree.map(
        lambda leaf: 0.02 * draw.standard_normal(leaf.shape, np.float32), pi0.specs(cfg)
    )
    return params, obs, normal(*chunk), normal(*chunk), time_B


def main(layers: int = 18, rows: int = 4, dtype: str = "float32") -> None:
    """Prints a line per policy."""
    made = {}
    for policy in remat.POLICIES:
        cfg = network(layers, dtype, policy)

        def loss(*inputs, cfg=cfg):
            return pi0.flow_matching_loss(*inputs, cfg).mean()

        batch = inputs(cfg, rows)
        made[policy] = jax.jit(jax.value_and_grad(loss)).lower(*batch).compile()
        memory = made[policy].memory_analysis()
        flops = hlo.Program(made[policy].as_text()).totals().flops
        size = memory.temp_size_in_bytes / 1e9
        print(f"{policy}: {size:.2f} GB temporary, {flops / 1e12:.3f} TFLOP", flush=True)
    if layers > 8:
        return
    batch = jax.tree.map(jnp.asarray, batch)
    seconds = {policy: [] for policy in made}
    for _ in range(1 + REPEATS):  # in turns
        for policy, executable in made.items():
            start = time.process_time()
            jax.block_until_ready(executable(*batch))
            seconds[policy].append(time.process_time() - start)
    for policy, each in seconds.items():
        print(f"{policy}: {statistics.median(each[1:]):.2f} s of the processor")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
