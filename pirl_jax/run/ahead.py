"""Programs of a run compiled ahead, where one thread plays while another learns.

A thread that traces holds up the other one, and one that compiles keeps its devices idle for
minutes at full size.  The memory plan compiles what decides and what learns; the rest, and all of
it once the run has gone back and its step is another, is compiled here.  Refuses to know threads.
"""

import functools

import jax

from pirl_jax.envs import base
from pirl_jax.monitor import progress
from pirl_jax.run import config, shapes, training


def compile_all(run: training.Run) -> None:
    """Before its threads start; what is compiled already is found."""
    _compile(run.settings, run.mesh, run.actor.transform.max_token_len, run.envs.spec)


@functools.lru_cache(maxsize=2)
def _compile(
    settings: config.Settings, mesh: jax.sharding.Mesh, tokens: int, spec: base.EnvSpec
) -> None:
    params, state = shapes.state(settings, mesh)
    args, context = shapes.decision(settings, mesh, tokens, spec, params)
    learner, _ = shapes.update(settings, mesh, state, args, context)
    programs = {"decision": shapes.rollout(settings, mesh, args)} | learner
    programs |= shapes.looked_at(settings, mesh, state, args, context)
    with progress.track("compiling"):
        for lowered in programs.values():
            lowered.compile()
