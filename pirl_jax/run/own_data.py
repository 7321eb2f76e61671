"""Somebody's own demonstrations in a run: opened for its suite, which statistics count, rows as the
model reads them.

Knows no format (datasets/) and no training step (learner/sft.py).
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import sys

import jax
import numpy as np

from pirl_jax.core import atomic, endings, outside, page, types
from pirl_jax.core import mesh as meshes
from pirl_jax.datasets import chunks, episodes, lerobot_stats, opened, summary
from pirl_jax.envs import base
from pirl_jax.monitor import log, progress
from pirl_jax.policy import normalize, observation
from pirl_jax.run import config, policies, teach
from pirl_jax.weights import statistics

FILE = "dataset.json"  # in a run directory
TURNED = {"auto": None, "upright": False, "libero": True}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An open data set that fits the run."""

    source: episodes.Source
    summary: summary.Summary
    stats: normalize.NormStats  # of a policy that the data set teaches to see
    where: str  # they are from

    def close(self) -> None:
        """Close its files."""
        self.source.close()


def is_read(raw: page.Page, resume_at: int | None) -> bool:
    """Whether a run needs its data set: a resumed one is taught already."""
    return bool(raw.sft.dataset and (not resume_at or raw.algorithm.sft_loss_weight))


def of_run(
    settings: config.Settings,
    spec: base.EnvSpec,
    resume_at: int | None,
    stack: contextlib.ExitStack,
) -> Dataset | None:
    """Open while the run lasts; None: it reads none.

    Raises:
      ValueError: as open_dataset.
    """
    if not is_read(settings.raw, resume_at):
        return None
    dataset = open_dataset(settings, spec)
    stack.callback(dataset.close)
    return dataset


def open_dataset(settings: config.Settings, spec: base.EnvSpec) -> Dataset:
    """Look through sft.dataset once, and say what was found.

    Raises:
      ValueError: it cannot be read, is damaged, or is of another robot, rate or size.
    """
    raw = settings.raw
    section = raw.sft
    wanted = episodes.Wanted(
        cameras=spec.cameras,
        state_dim=spec.state_dim,
        action_dim=spec.action_dim,
        control_hz=spec.control_hz,
        given_hz=section.dataset_hz,
        keys=episodes.parse_keys(section.dataset_keys, spec.cameras),
        turned=TURNED[section.dataset_images],
    )
    source = opened.open_source(pathlib.Path(section.dataset), wanted)
    try:
        total = len(source.lengths)
        with progress.track("demonstrations", total=total, unit="episodes") as advance:
            horizon = settings.policy.network.action_horizon
            found = summary.examine(source, horizon, raw.model.delta_actions, advance)
        stats, where = _statistics(settings, source, found)
        # That every prompt fits, before anything else starts.
        policies.transform(settings, stats, found.instructions, only_these=True)
    except BaseException:
        source.close()
        raise
    _say(source, found, spec.instructions)
    return Dataset(source, found, stats, where)


def remember(directory: log.RunDir, dataset: Dataset) -> None:
    """Write down what a run learns from, once.

    Raises:
      endings.Failure: it went on to learn from something else.
    """
    path = directory.path / FILE
    found = dataset.summary
    if path.is_file():
        before = outside.read_json(path).get("sha256")
        if before != found.sha256:
            raise endings.Failure(
                f"{dataset.source.path} is another data set than the one that {path} was written "
                f"for; give that one, or another run.directory"
            )
        return
    if directory.writes:
        atomic.write_json(
            path,
            {
                "format": dataset.source.kind,
                "path": str(dataset.source.path),
                "episodes": found.episodes,
                "steps": found.steps,
                "instructions": list(found.instructions),
                "sha256": found.sha256,
            },
        )


def examples(
    settings: config.Settings, dataset: Dataset, stats: normalize.NormStats
) -> teach.Examples:
    """Its rows as the model reads them, decoded when they are drawn.

    stats: those of the policy that is taught.
    """
    to_model = policies.transform(settings, stats, dataset.summary.instructions, only_these=True)
    network = settings.policy.network
    size_px = settings.raw.model.image_size_px
    rows = chunks.Chunks(dataset.source, network.action_horizon, size_px)

    def take(index: np.ndarray) -> tuple[types.Observation, np.ndarray]:
        try:
            taken = rows.take(index)
        except ValueError as error:
            raise endings.Failure(str(error)) from error
        obs = observation.encode(to_model, taken.images, taken.state, taken.instructions)
        return obs, observation.encode_actions(to_model, taken.actions, taken.state)

    return teach.Examples(rows.count, take)


def _statistics(
    settings: config.Settings, source: episodes.Source, found: summary.Summary
) -> tuple[normalize.NormStats, str]:
    """Those that the page chooses, where no checkpoint brings any."""
    model = settings.raw.model
    chosen = settings.raw.sft.dataset_statistics
    if model.norm_stats:
        return policies.given_stats(settings), model.norm_stats
    stats = found.computed
    where = f"{source.path}, computed over chunks of {settings.policy.network.action_horizon}"
    if chosen == "files":
        stats, where = lerobot_stats.read(source, model.norm_mode, model.delta_actions)
    with outside.named(where):
        statistics.check(stats, model.norm_mode, action_dim=model.action_env_dim)
    # The same on all hosts, whatever their rounding.
    return meshes.gather(stats)[0], where


def _say(source: episodes.Source, found: summary.Summary, played: Sequence[str]) -> None:
    if jax.process_index():
        return
    names = ", ".join(f"{name} = {key}" for name, key in source.keys.items())
    print(f"demonstrations: {source.kind} at {source.path}, {found}; {names}")
    if shifted := getattr(source, "shifted", 0):
        print(
            f"note: in {shifted} episodes an action lies beside what follows it, as LIBERO's "
            f"script stores it; each is learned with what came before it",
            file=sys.stderr,
        )
    others = [text for text in found.instructions if text not in played]
    if others:
        print(
            f"note: {len(others)} of {len(found.instructions)} tasks in {source.path} are not "
            f"played here: {outside.listed(others)}",
            file=sys.stderr,
        )
    if not found.opens:
        print(
            f"note: {source.keys[episodes.ACTIONS]} of {source.path} never opens the gripper (its "
            f"last entry is never below 0); suites read -1 as open and 1 as closed",
            file=sys.stderr,
        )
