"""Plain data that crosses floors.  Knows no model, no reinforcement learning, no simulator.

Dimension key (capital suffixes of array names, used in the whole project)::

    B rows of a batch      V cameras            Y,X,3 image        L prompt tokens
    T query tokens         S key/value tokens   D width            F mlp hidden
    N query heads          K kv heads           G = N/K            h head dim
    E episodes             C decisions          R valid decisions (rows of a rollout)
    J denoise steps        K stochastic ones    H action horizon   I executed actions
    A action dim           A' the simulator's

Flow time: t = 1 is noise, t = 0 is action (the code of openpi; the opposite of the pi0 paper).
"""

from flax import struct
import jax


@struct.dataclass
class Observation:
    """What the model reads.  Camera order: agentview, wrist (openpi: base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb).

    A camera that does not exist is absent from V; it is never a masked image.
    """

    images: jax.Array  # [B,V,Y,X,3] uint8, or float32 in [-1, 1]
    image_mask: jax.Array  # [B,V] bool
    state: jax.Array  # [B,A] float32, normalised, zero-padded to the model's action dim
    tokens: jax.Array  # [B,L] int32, padded with 0
    token_mask: jax.Array  # [B,L] bool


@struct.dataclass
class Chain:
    """What the update needs of one sampled denoise chain: its K stochastic steps.  K = 1, or J where all steps are."""

    x: jax.Array  # [B,K,H,A] x_j, normalised action space
    x_next: jax.Array  # [B,K,H,A] x_{j+1}
    j: jax.Array  # [B,K] int32, the denoise step of each
    level: jax.Array  # [B] noise level under which the chain was sampled
    log_prob: jax.Array  # [B,I,A'] of the executed action entries under the behaviour policy
    value: jax.Array  # [B] value estimate of the behaviour policy (0 without value head)


def unknown(field: str, value, choices) -> ValueError:
    """One sentence for a wrong name: the value and the remedy."""
    return ValueError(
        f"{field}={value!r} does not exist; choose one of: {', '.join(map(str, choices))}"
    )


@struct.dataclass
class Rollout:
    """Whole episodes played by one behaviour policy; host arrays.  R = valid decisions, in (episode, decision) order; without those of
    groups that dynamic sampling has replaced."""

    context: object  # R rows (core/rows.py) the learner conditions on: Observation, or the prefix of a frozen VLM
    chain: Chain  # rows [R,...]
    decision_R: jax.Array  # int32, index c of each row in its episode
    episode_R: jax.Array  # int32, index e of each row's episode
    reward_CE: jax.Array  # float32, sum over the executed steps of the decision
    value_CE: jax.Array  # float32, behaviour policy's estimate
    next_value_CE: jax.Array  # float32, of the observation after the decision; 0 after success, or where nothing bootstraps
    terminated_CE: jax.Array  # bool, success: nothing follows
    truncated_CE: jax.Array  # bool, time limit
    valid_CE: jax.Array  # bool, False after the end of the episode
