"""Compiles two layers of pi0 at full width for devices that are not there.

    python -m tests.run.compile_targets TARGET FOLDER

In a process without the flags of the suite.  Writes, for every line of PROGRAMS, NAME.json
(run/estimates.py and the sizes that it is compared with) and NAME.hlo (XLA's text) into the folder.
What a program costs here is its width: few image tokens, a small vocabulary, few rows.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.envs import base
from pirl_jax.learner import state as states
from pirl_jax.policy import flops
from pirl_jax.run import (
    accelerators,
    config,
    estimates,
    plan,
    recipes,
    shapes,
    steps,
    topology,
)

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = 2
PROMPT = 16
# Rows have 51 tokens, and XLA:GPU pads products to multiples of 8 tokens.
ROWS_PER_DEVICE = {"tpu": 2, "cuda": 8}
CHANGES = {
    "model.preset": "",  # which would insist on its pictures
    "model.image_size_px": 56,  # 16 tokens a camera
    "model.num_steps": 2,
    "rollout.prefix_cache": "device",
    "rollout.num_groups": 1,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A program and the mesh that it is compiled for."""

    what: str  # decision | microbatch | step | read | write
    fsdp: int  # the rest of the devices is data


# At most three with the network: such a program is a minute or more on two cores.
PROGRAMS = {
    "decision": Case("decision", fsdp=8),
    # Copies of the parameters, each split: what devices may exchange and what not.
    "microbatch": Case("microbatch", fsdp=4),
    "step": Case("step", fsdp=4),
    "read": Case("read", fsdp=1),
}


def settings(rows: int, fsdp: int) -> config.Settings:
    """The published recipe with two layers, and `rows` in every program."""
    page = recipes.load_recipe(str(ROOT / "configs" / "libero_spatial_ppo_pi0.py"))
    changes = CHANGES | {
        "mesh.fsdp": fsdp,
        "rollout.num_envs": rows,
        "rollout.episodes_per_iteration": rows,
        "algorithm.minibatch_size": rows,
        "algorithm.microbatch_size": rows,
    }
    whole = config.changed(config.settings(page), changes)
    network = whole.policy.network
    parts = {"vocab_size": 512}
    for part in ("paligemma", "expert", "siglip"):
        parts[part] = dataclasses.replace(getattr(network, part), depth=LAYERS)
    small = dataclasses.replace(network, **parts)
    return dataclasses.replace(whole, policy=dataclasses.replace(whole.policy, network=small))


def env_spec() -> base.EnvSpec:
    """Episodes of ten decisions."""
    return base.EnvSpec("libero_spatial", ("go",), 50, 50, 256)


def counted(case: Case, made: config.Settings, rows: int) -> float:
    """FLOPs of a program by the shapes of the network (policy/flops.py), no compiler asked."""
    tokens = flops.Tokens(len(env_spec().cameras), PROMPT)
    if case.what == "decision":
        return rows * flops.rollout(made.policy, tokens, conditions=1 / rows)
    if case.what == "microbatch":
        return rows * flops.update(made.policy, tokens, "kept")
    return 0.0


def too_large(target: accelerators.Target, device: jax.Device) -> dict[str, object]:
    """A program with twice the memory of the device as its argument and as its result."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    rows = 2 * target.chip.memory // 4096
    x = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=sharding)
    estimator = estimates.Estimator(target, pathlib.Path(sys.argv[2]) / "kept", 60.0)
    try:
        return {"peak": estimator.memory(jax.jit(jnp.sin).lower(x)).peak}
    except plan.TooLarge as error:
        return {"refused": str(error)}


def hosts_of_slices() -> dict[str, list[int]]:
    """{slice: what its text says of hosts, what libtpu does, devices of the one that plans}"""
    found = {}
    if topology.missing_wheel("tpu"):
        return found
    for text in ("tpu:v5e:2x4", "tpu:v5e:4x4", "tpu:v5p:2x2x1", "tpu:v5p:2x2x4"):
        target = accelerators.parse(text)
        mesh = topology.mesh(target, -1, 4)
        found[text] = [target.hosts, meshes.hosts(mesh), meshes.local(mesh).size]
    return found


def main(target: accelerators.Target, folder: pathlib.Path) -> None:
    devices = topology.devices(target)
    (folder / "too_large.txt").write_text(json.dumps(too_large(target, devices[0])))
    (folder / "hosts.txt").write_text(json.dumps(hosts_of_slices()))
    for name, case in PROGRAMS.items():
        rows = ROWS_PER_DEVICE[target.platform] * len(devices)
        made = settings(rows, case.fsdp)
        mesh = topology.mesh(target, len(devices) // case.fsdp, case.fsdp)
        params, state = shapes.state(made, mesh)
        args, context = shapes.decision(made, mesh, PROMPT, env_spec(), params)
        learner, batch = shapes.update(made, mesh, state, args, context)
        kept = shapes.kept(made, mesh, env_spec(), context)
        lowered = {"decision": shapes.rollout(made, mesh, args)} | learner | kept
        learned, frozen = states.partition(state.params, steps.trainable(made))
        try:
            executable = plan.compiled(lowered[case.what], dict(topology.options(target)))
        except plan.TooLarge as error:
            raise SystemExit(f"{name}: {error}") from error
        text = executable.as_text()
        (folder / f"{name}.hlo").write_text(text)
        facts = {
            "estimate": estimates.of(executable, 0.0).as_dict(),
            # Bytes of one device.
            "learned": shapes.size(learned),
            "learned everywhere": shapes.size(learned) * case.fsdp,  # of one copy
            "frozen": shapes.size(frozen),
            "rows": shapes.size(batch.context),
            "counted flops": counted(case, made, rows) / len(devices),
            "fsdp": case.fsdp,
            "widest": made.policy.network.expert.mlp_dim,
        }
        (folder / f"{name}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(accelerators.parse(sys.argv[1]), pathlib.Path(sys.argv[2]))
