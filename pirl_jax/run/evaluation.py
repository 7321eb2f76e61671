"""One evaluation: every episode once, without exploration noise, with its videos, files and table.

Training and the evaluation command share it.  Refuses to know what decides.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page
from pirl_jax.envs import base
from pirl_jax.envs.pool import queue
from pirl_jax.monitor import journal, progress, timeline
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config, policies, results


@dataclasses.dataclass
class Evaluation:
    """What is measured, and where its files go."""

    settings: config.Settings
    envs: queue.ReadyQueue
    rollout: page.Rollout  # how slots are served
    cached_tasks: int  # whose simulators a process keeps
    decide: streams.Decide
    episodes: list[streams.Episode]  # of this host
    measured: dict  # policy and protocol, as the results name them
    directory: pathlib.Path
    # Which episodes are filmed, by name and success; asked with success=False beforehand.
    filmed: Callable[[streams.Episode, bool], bool]

    def start(self, done: Mapping[int, streams.Result] | None = None) -> streams.Stream:
        """The simulators start on the episodes that are not `done`, by index."""
        record = [e for e, episode in enumerate(self.episodes) if self.filmed(episode, False)]
        return streams.Stream(
            self.envs,
            self.episodes,
            self.rollout,
            self.cached_tasks,
            record=record,
            done=done,
        )

    def play(
        self,
        stream: streams.Stream,
        notes: journal.Journal | None = None,
        name: str = "evaluation",
    ) -> list[streams.Result]:
        """Play to the end; shows progress under the name.  notes: gets a row of each episode."""
        timers = timeline.Timers()
        with progress.track(name, total=stream.num_left, unit="episodes") as advance:
            for turn in stream.turns(timers):
                if not turn.finished.all():
                    with jax.transfer_guard("disallow"):
                        actions_nIa = self.decide(turn)
                    stream.send(turn, actions_nIa)
                for e in turn.ended:
                    self._keep(stream.results[e], notes)
                    advance(1)
        return stream.results

    def write(self, played: list[streams.Result]) -> str:
        """The files of the results -> the table as text."""
        return results.write(
            self.directory,
            self.settings,
            self.measured,
            played,
            self.envs.spec.instructions,
            self.measured["policy"]["name"],
        )

    def _keep(self, result: streams.Result, notes: journal.Journal | None) -> None:
        """Of an episode that is over: its video and its row; frames would fill the memory."""
        if result.frames and self.filmed(result.episode, result.success):
            results.film(self.directory, result, self.envs.spec.instructions)
        result.frames = None
        if notes is not None and not result.lost:
            notes.append(results.row(result))


def network(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    actor: actors.Actor,
    params: dict,
    spec: base.EnvSpec,
    batch_size: int,
    timers: streams.Timers,
) -> streams.Decide:
    """The actions of a network, on this process's own part of the mesh, where its parameters lie.

    The start noise of the flow is drawn from the configured seed and the episode alone: two
    policies are compared on equal terms, and an episode is the same whichever others are played
    beside it.
    """
    key = policies.evaluation_key(settings, mesh)
    own = meshes.view(params, meshes.local(mesh))
    return actors.exploiting(actor, own, key, spec, batch_size, timers)
