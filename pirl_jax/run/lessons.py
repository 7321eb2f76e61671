"""SFT at the start of a run: by scripted demonstrations, or by somebody's own.

Refuses to know the reinforcement learning that follows.
"""

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng
from pirl_jax.monitor import progress
from pirl_jax.policy import normalize
from pirl_jax.rollout import actor as actors
from pirl_jax.run import command, own_data, policies, teach, training


def actor(run: training.Run, norm_stats: normalize.NormStats) -> actors.Actor:
    """The policy of a run as its rollouts see it."""
    tasks = run.playable.tasks
    to_model = policies.transform_for(run.settings, norm_stats, run.instructions, tasks)
    is_apart = run.plays != meshes.local(run.mesh)
    return policies.actor(run.settings, run.plays, to_model, run.instructions, is_apart=is_apart)


def scripted(run: training.Run) -> tuple[dict, normalize.NormStats]:
    """A fresh model taught by the scripted expert -> parameters, statistics."""
    settings = run.settings
    with command.user_errors():
        run.demonstrations = teach.collect(settings, run.playable)
    # The same on all hosts, whatever their rounding.
    norm_stats = meshes.gather(teach.statistics(run.demonstrations))[0]
    run.actor = actor(run, norm_stats)
    params = policies.fresh_params(settings, run.mesh, rng.named(run.key, "params"))
    length = sum(len(episode["actions"]) for episode in run.demonstrations)
    print(f"SFT on {len(run.demonstrations)} demonstrations, {length} control steps")
    examples = teach.encode(settings, run.actor.transform, run.demonstrations)
    return _fitted(run, params, examples), norm_stats


def by_dataset(
    run: training.Run, params: dict, norm_stats: normalize.NormStats | None
) -> tuple[dict, normalize.NormStats]:
    """A model taught by sft.dataset -> parameters, statistics.

    norm_stats: those of its checkpoint where they count; None: those of the data set do.
    """
    data = run.dataset
    model = run.settings.raw.model
    where = model.norm_stats or model.checkpoint
    if norm_stats is None:
        norm_stats = data.stats
        where = data.where
    run.actor = actor(run, norm_stats)
    own_data.remember(run.directory, data)
    if not jax.process_index():
        print(f"SFT on {data.summary}; statistics from {where}")
    return _fitted(run, params, own_data.examples(run.settings, data, norm_stats)), norm_stats


def _fitted(run: training.Run, params: dict, examples: teach.Examples) -> dict:
    """Parameters after the SFT steps."""
    settings = run.settings
    with progress.track("SFT", total=settings.raw.sft.steps, unit="steps") as advance:
        params, metrics = teach.fit(settings, params, run.mesh, examples, run.key, advance)
    run.directory.write(0, {f"sft/{name}": value for name, value in metrics.items()})
    return params
