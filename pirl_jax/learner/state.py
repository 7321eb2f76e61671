"""Everything a training step reads and writes, and how it is laid out over the mesh."""

from collections.abc import Callable
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, spec
from pirl_jax.learner import optimizer


@struct.dataclass
class TrainState:
    """What a checkpoint must hold for an exact resume."""

    step: jax.Array  # int32, optimiser steps taken
    iteration: jax.Array  # int32, rollouts learned from; the RL schedule counts these
    params: dict  # all parameters: fp32 masters of what trains, the rest as stored
    opt_state: Any  # of the trainable parameters only
    ema: dict | None = None  # averaged trainable parameters; the frozen ones are their own average
    # Trainable parameters of the fixed policy that the loss keeps this one near.
    anchor: dict | None = None


def create(
    params: dict,
    cfg: page.Optim,
    trainable: Callable[[str], bool],
    mesh: jax.sharding.Mesh,
    *,
    ema: bool = False,
    anchor: bool = False,
    frozen_dtype: Callable[[str], jnp.dtype | str] | None = None,
) -> TrainState:
    """Fresh state around `params`; what trains of them it takes over: steps donate its buffers.

    Args:
      params: nested dict; its arrays' shardings on `mesh` are kept, other arrays are replicated.
      trainable: predicate on '/'-joined paths.
      ema: keep an exponential moving average of the trainable parameters.
      anchor: keep the trainable parameters as they are now.
      frozen_dtype: path -> dtype of a parameter that does not train; None keeps what they have.

    Raises:
      ValueError: nothing trains.
    """
    flat = {path: _on_mesh(x, mesh) for path, x in spec.flatten(params).items()}
    learned, frozen = partition(spec.unflatten(flat), trainable)
    if not learned:
        raise ValueError("no parameter trains; check train_expert_only against the model")
    learned = jax.tree.map(lambda x: x.astype(jnp.float32), learned)
    if frozen_dtype is not None:
        frozen = _cast(frozen, frozen_dtype)

    def moments(learned: dict) -> Any:
        return optimizer.init(cfg, learned)

    layout = shardings(_placed(jax.eval_shape(moments, learned), flat, mesh))
    zero = np.zeros((), np.int32)
    return TrainState(
        step=meshes.replicate(zero, mesh),
        iteration=meshes.replicate(zero, mesh),
        params=merge(learned, frozen),
        opt_state=jax.jit(moments, out_shardings=layout)(learned),
        ema=jax.tree.map(jnp.copy, learned) if ema else None,
        anchor=jax.tree.map(jnp.copy, learned) if anchor else None,
    )


def abstract(
    params: dict,
    cfg: page.Optim,
    trainable: Callable[[str], bool],
    mesh: jax.sharding.Mesh,
    *,
    ema: bool = False,
    anchor: bool = False,
    frozen_dtype: Callable[[str], jnp.dtype | str] | None = None,
) -> TrainState:
    """What `create` makes, as shapes.

    `params` are shapes with shardings too (core/spec.py abstract).
    """
    learned, frozen = partition(params, trainable)
    learned = jax.tree.map(lambda x: x.update(dtype=jnp.float32), learned)
    if frozen_dtype is not None:
        frozen = _cast_shapes(frozen, frozen_dtype)
    moments = jax.eval_shape(lambda learned: optimizer.init(cfg, learned), learned)
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=meshes.replicated(mesh))
    return TrainState(
        step=counter,
        iteration=counter,
        params=merge(learned, frozen),
        opt_state=_placed(moments, spec.flatten(params), mesh),
        ema=learned if ema else None,
        anchor=learned if anchor else None,
    )


def _placed(shapes: Any, flat_params: dict, mesh: jax.sharding.Mesh) -> Any:
    """A leaf whose dict keys spell a parameter's path (a moment) lies where the parameter lies.

    The others lie on every device.
    """

    def place(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        like = flat_params.get(name)
        return x.update(sharding=meshes.replicated(mesh) if like is None else like.sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _on_mesh(x: jax.Array | np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    sharding = getattr(x, "sharding", None)
    on_mesh = isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh == mesh
    return x if on_mesh else meshes.replicate(x, mesh)


def _cast(params: dict, dtype: Callable[[str], jnp.dtype | str]) -> dict:
    """Arrays in the type of their path."""
    flat = spec.flatten(params).items()
    return spec.unflatten({path: x.astype(dtype(path)) for path, x in flat})


def _cast_shapes(params: dict, dtype: Callable[[str], jnp.dtype | str]) -> dict:
    """The same of arrays or shapes -> shapes."""

    def cast(path: str, x: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype(path), sharding=x.sharding)

    flat = spec.flatten(params).items()
    return spec.unflatten({path: cast(path, x) for path, x in flat})


def partition(params: dict, predicate: Callable[[str], bool]) -> tuple[dict, dict]:
    """Nested dict -> the leaves whose path satisfies the predicate, and the others."""
    chosen = {}
    others = {}
    for path, x in spec.flatten(params).items():
        part = chosen if predicate(path) else others
        part[path] = x
    return spec.unflatten(chosen), spec.unflatten(others)


def merge(*parts: dict) -> dict:
    """Inverse of partition; where parts share a path the last one wins."""
    flat = {}
    for part in parts:
        flat |= spec.flatten(part)
    return spec.unflatten(flat)


def acting_params(state: TrainState) -> dict:
    """The parameters to act with: the averaged ones where there are any."""
    return state.params if state.ema is None else merge(state.params, state.ema)


def averaged(
    ema: dict | None, learned: dict, decay: float, skipped: jax.Array | float = 0.0
) -> dict | None:
    """The average after one more step; None stays None, and a skipped step changes nothing."""
    if ema is None:
        return None

    def moved(e: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.where(skipped > 0, e, decay * e + (1.0 - decay) * p)

    return jax.tree.map(moved, ema, learned)


class Rounded:
    """States whose parameters that train have the type to which each is cast before every use.

    The microbatches of a minibatch are computed from such a state: what is cast once need not be
    cast in every microbatch, and its gradient comes in half the bytes.  The bits are the same, but
    where a microbatch uses a parameter several times (several denoise steps): these gradients are
    added in that type.
    """

    def __init__(self, trainable: Callable[[str], bool], used_dtype: Callable[[str], str]):
        """used_dtype: path -> that type; float32 for what is used as it is."""
        self._trainable = trainable
        self._used_dtype = used_dtype
        self._cast: Callable | None = None  # the layout is known once there is a state

    def __call__(self, state: TrainState) -> TrainState:
        """For as long as the optimiser makes no step."""
        narrow = self._narrow(state)
        if not narrow:
            return state
        if self._cast is None:
            cast = functools.partial(_cast, dtype=self._used_dtype)
            self._cast = jax.jit(cast, out_shardings=shardings(narrow))
        return state.replace(params=merge(state.params, self._cast(narrow)))

    def own(self, state: TrainState) -> dict:
        """Shapes of what such a state holds beyond `state`, which may be one of shapes."""
        return _cast_shapes(self._narrow(state), self._used_dtype)

    def _narrow(self, state: TrainState) -> dict:
        learned, _ = partition(state.params, self._trainable)
        return partition(learned, lambda path: self._used_dtype(path) != "float32")[0]


def shardings(tree: Any) -> Any:
    """Where every array lies."""
    return jax.tree.map(lambda x: x.sharding, tree)


class Step:
    """jit of step(state, frozen, ...) -> state, metrics, in which state.params are what trains.

    Called with whole states, and gives back whole states.  What a step changes is donated, and the
    new arrays lie where the old ones lay: the parameters that train, their moments, their average,
    the counters.  What no step changes is never donated, so that others may hold it: the frozen
    parameters, which are an argument of their own, and the anchor, which `step` does not see.
    """

    def __init__(self, step: Callable, trainable: Callable[[str], bool], mesh: jax.sharding.Mesh):
        self._step = step
        self._trainable = trainable
        self._mesh = mesh
        self._jitted = None  # the layout is known once there is a state

    def __call__(self, state: TrainState, *args: object) -> tuple[TrainState, dict]:
        changing, frozen = self._split(state)
        changed, metrics = self._for(changing)(changing, frozen, *args)
        params = merge(changed.params, frozen)
        return changed.replace(params=params, anchor=state.anchor), metrics

    def lower(self, state: TrainState, *args: object) -> jax.stages.Lowered:
        """From arrays or shapes, as that of jax.jit."""
        changing, frozen = self._split(state)
        return self._for(changing).lower(changing, frozen, *args)

    def _split(self, state: TrainState) -> tuple[TrainState, dict]:
        learned, frozen = partition(state.params, self._trainable)
        return state.replace(params=learned, anchor=None), frozen

    def _for(self, changing: TrainState) -> Callable:
        if self._jitted is None:
            out = shardings(changing), meshes.replicated(self._mesh)
            step = meshes.target(self._mesh)(self._step)
            self._jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
        return self._jitted
