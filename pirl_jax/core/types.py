"""Plain data that crosses floors.  Knows no model, no reinforcement learning, no simulator.

Dimension key: a name ends in the letters of its axes (`x_BHA`), and docstrings and einsums use the
same letters.  One letter has one meaning in the whole package; tests/core/test_dimension_key.py
reads this table and every suffix.  A digit is an axis of that size.  Small letters are axes inside
what a capital counts, and those of a scene's geometry:

    A  action entries of the model    B  rows of a batch                C  decisions of an episode
    D  width of a token stream        E  episodes, one a slot           F  mlp hidden
    G  query heads per kv head, N/K   H  action horizon                 I  executed actions, I <= H
    J  denoise steps                  K  kv heads                       L  layers
    M  minibatches of an epoch        N  query heads                    P  prompt tokens
    Q  entries of the robot's state   R  valid decisions of a rollout   S  key/value tokens
    T  query tokens                   U  stochastic denoise steps       V  cameras
    W  outputs of a dense layer       X  image columns                  Y  image rows
    Z  the pair of key and value

    a  action entries of the robot    h  head dim                       r  adapter rank
    x  patches across an image        y  patches down an image          n  some of what there is
    f  triangles of a mesh            v  vertices of a mesh             g  bodies of a scene
    p  points                         d  degrees of freedom

Flow time: t = 1 is noise, t = 0 is action (the code of openpi; the opposite of the pi0 paper).
"""

from flax import struct
import jax


@struct.dataclass
class Observation:
    """What the model reads.

    Camera order: agentview, wrist (openpi: base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb).
    A camera that does not exist is absent from V; it is never a masked image.
    """

    images: jax.Array  # [B,V,Y,X,3] uint8, or float32 in [-1, 1]
    image_mask: jax.Array  # [B,V] bool
    state: jax.Array  # [B,A] float32, normalised, zero-padded to the model's action dim
    tokens: jax.Array  # [B,P] int32, padded with 0
    token_mask: jax.Array  # [B,P] bool


@struct.dataclass
class Chain:
    """What the update needs of one sampled denoise chain: its U stochastic steps.

    U = 1, or J where all steps are stochastic.
    """

    x: jax.Array  # [B,U,H,A] x_j, normalised action space
    x_next: jax.Array  # [B,U,H,A] x_{j+1}
    j: jax.Array  # [B,U] int32, the denoise step of each
    level: jax.Array  # [B] noise level under which the chain was sampled
    # Of the behaviour policy; where that is older than the one that an update begins with, of the
    # latter (learner/proximal.py).
    log_prob: jax.Array  # [B,I,a] of the executed action entries
    value: jax.Array  # [B] value estimate (0 without value head)
    actions: jax.Array | None = None  # [B,H,A] the chunk x_J that the chain ends in
    # Where the loss is NFT's:
    velocity: jax.Array | None = None  # [B,U,H,A] of the behaviour policy at x
    std: jax.Array | None = None  # [B,U,H,A] of its steps, where it is learned
    # Where older policies may have played: [B], [B,I] or [B,I,a], by algorithm.logprob_type, how
    # much each probability ratio counts (rl/importance.py); 0 is masked.
    importance: jax.Array | None = None


@struct.dataclass
class Rollout:
    """Whole episodes; host arrays.  Which parameters made each decision stands in version_R.

    R = valid decisions, in (episode, decision) order; without those of groups that dynamic sampling
    has replaced.
    """

    # R rows (core/rows.py) the learner conditions on: Observation, or the prefix of a frozen VLM.
    context: object
    chain: Chain  # rows [R,...]
    decision_R: jax.Array  # int32, index c of each row in its episode
    episode_R: jax.Array  # int32, index e of each row's episode
    reward_CE: jax.Array  # float32, sum over the executed steps of the decision
    value_CE: jax.Array  # float32, behaviour policy's estimate
    # float32, of the observation after the decision; 0 after success, or where nothing bootstraps.
    next_value_CE: jax.Array
    terminated_CE: jax.Array  # bool, success: nothing follows
    truncated_CE: jax.Array  # bool, time limit
    valid_CE: jax.Array  # bool, False after the end of the episode
    # int32, the iteration whose parameters made each decision; None: nobody kept it
    version_R: jax.Array | None = None
