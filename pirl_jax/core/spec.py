"""One declaration per parameter: shape, logical axes, initialiser.

Everything else is a map over them.

A parameter tree is a nested dict; '/'-joined paths name its leaves.  Knows no network and no mesh:
the caller brings the rules that send a logical axis to a mesh axis.

Logical axes in use: layers, vocab, embed (width of the residual stream), mlp, heads, kv_heads,
head_dim, rank, action, and None for an axis that is never sharded.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from typing import Any
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pirl_jax.core import bounds


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parameter.

    `init` is a name of INITIALISERS, or (name, *numbers).  Fan-in and fan-out are numbers, so that
    stacking layers or splitting heads into an own axis does not change them.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str | tuple = "zeros"
    dtype: Any = jnp.float32

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"a Spec needs one logical axis per dimension: shape {self.shape}, axes {self.axes}"
            )
        name, *_ = _initialiser(self)
        if name not in INITIALISERS:
            raise bounds.unknown("initialiser", name, INITIALISERS)


def init(key: jax.Array, specs: dict, shardings: dict | None = None) -> dict:
    """Random parameters.

    The key of a leaf depends on its path only, so adding a leaf leaves the others as they were.
    With `shardings` (same tree) every device creates its own shard only.
    """

    def build(key: jax.Array) -> dict:
        leaves = {path: _sample(key, path, spec) for path, spec in flatten(specs).items()}
        return unflatten(leaves)

    return jax.jit(build, out_shardings=shardings)(key)


def abstract(specs: dict, shardings: dict | None = None) -> dict:
    """Tree of jax.ShapeDtypeStruct: shapes and dtypes (and shardings, same tree) without memory."""
    shapes = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), specs)
    if shardings is None:
        return shapes
    return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), shapes, shardings)


def count(specs: dict) -> int:
    """Number of parameters."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs))


def shardings(specs: dict, mesh: jax.sharding.Mesh, rules: Mapping | Iterable) -> dict:
    """Tree of NamedSharding.

    `rules`: logical axis -> mesh axis, tuple of mesh axes, or None (mapping or pairs).
    """
    rules = dict(rules)

    def place(spec: Spec) -> NamedSharding:
        return NamedSharding(mesh, _partition(spec, mesh.shape, rules))

    return jax.tree.map(place, specs)


def flatten(tree: dict) -> dict[str, Any]:
    """Nested dict -> {'a/b/c': leaf}, in the order of the nested dict."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> dict:
    """{'a/b/c': leaf} -> nested dict."""
    return traverse_util.unflatten_dict(flat, sep="/")


def _initialiser(spec: Spec) -> tuple:
    return (spec.init,) if isinstance(spec.init, str) else spec.init


def _sample(key: jax.Array, path: str, spec: Spec) -> jax.Array:
    name, *numbers = _initialiser(spec)
    # crc32 and not hash(): Python salts the hash of a string in every process.
    leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return INITIALISERS[name](leaf_key, spec.shape, *numbers).astype(spec.dtype)


def _partition(spec: Spec, mesh_shape: Mapping[str, int], rules: Mapping) -> PartitionSpec:
    """An axis stays whole when its size does not divide, or an earlier one took its mesh axis."""
    taken: set[str] = set()
    parts = []
    for size, axis in zip(spec.shape, spec.axes, strict=True):
        wanted = rules.get(axis) or ()
        wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        shards = math.prod(mesh_shape[name] for name in wanted)
        if not wanted or taken & set(wanted) or size % shards:
            parts.append(None)
            continue
        taken |= set(wanted)
        parts.append(wanted if len(wanted) > 1 else wanted[0])
    return PartitionSpec(*parts)


def _zeros(key: jax.Array, shape: tuple) -> jax.Array:
    return jnp.zeros(shape)


def _ones(key: jax.Array, shape: tuple) -> jax.Array:
    return jnp.ones(shape)


def _normal(key: jax.Array, shape: tuple, std: float) -> jax.Array:
    return jax.random.normal(key, shape) * std


def _uniform(key: jax.Array, shape: tuple, limit: float) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def _lecun(key: jax.Array, shape: tuple, fan_in: int) -> jax.Array:
    """Normal cut at two standard deviations, widened so that its variance is 1 / fan_in."""
    std_of_cut_normal = 0.87962566103423978
    scale = math.sqrt(1.0 / fan_in) / std_of_cut_normal
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * scale


def _xavier(key: jax.Array, shape: tuple, fan_in: int, fan_out: int) -> jax.Array:
    return _uniform(key, shape, math.sqrt(6.0 / (fan_in + fan_out)))


INITIALISERS: dict[str, Callable[..., jax.Array]] = {
    "zeros": _zeros,
    "ones": _ones,
    "normal": _normal,
    "uniform": _uniform,
    "lecun": _lecun,
    "xavier": _xavier,
}
