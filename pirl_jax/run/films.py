"""Videos of training rollouts: the images that decisions are made from, and what is known then.

Refuses to know how episodes are played.
"""

from collections.abc import Sequence
import math
import pathlib

import jax

from pirl_jax.core import page
from pirl_jax.envs import base, child
from pirl_jax.monitor import video
from pirl_jax.rollout import film
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config

HOLD_S = 1.0  # the last image; players stop at the end of a file


def begin(raw: page.Page) -> film.Film | None:
    """Of the first episodes of an iteration, one of each group; None where none is wanted.

    Only the first host films.
    """
    count = raw.video.train
    if not count or jax.process_index():
        return None
    size = raw.algorithm.group_size
    return film.Film(range(0, count * size, size))


def directory(raw: page.Page) -> pathlib.Path:
    """Where they lie."""
    return pathlib.Path(raw.video.directory or pathlib.Path(raw.run.directory, "video", "train"))


def write(
    taken: film.Film,
    raw: page.Page,
    iteration: int,
    played: Sequence[streams.Result],
    spec: base.EnvSpec,
) -> dict[str, pathlib.Path]:
    """One MP4 for every episode that was filmed, in the time that it took -> {name: file}."""
    written = {}
    frames_per_s = spec.control_hz / config.action_chunk(raw)
    for e, shots in taken.shots.items():
        result = played[e] if e < len(played) else None
        if not shots or result is None or result.lost:
            continue
        place = f"task_{result.episode.task}_init_{result.episode.init_state}"
        path = directory(raw) / f"iteration_{iteration}_episode_{e}_{place}.mp4"
        held = math.ceil(HOLD_S * frames_per_s)
        shown = [*shots, *[shots[-1]] * held]
        outcomes = [None] * len(shots) + [result.success] * held
        captions = None
        if raw.video.info:
            words = spec.instructions[result.episode.task]
            title = f"{words}, policy {iteration}, {frames_per_s:g} frames/s"
            captions = [
                f"{title}\n{_caption(shot, outcome)}"
                for shot, outcome in zip(shown, outcomes, strict=True)
            ]
        frames = [shot.frame for shot in shown]
        with child.shielded():  # the encoder
            video.write(path, frames, captions, outcomes, frames_per_s)
        written[f"rollout/episode_{e}"] = path
    return written


def _caption(shot: film.Shot, outcome: bool | None) -> str:
    """ "step 15, reward 0, value 0.41", at the end with the outcome."""
    words = [f"step {shot.step}", f"reward {shot.reward:g}"]
    if outcome is not None:
        words.append("success" if outcome else "failure")
    elif math.isfinite(shot.value):
        words.append(f"value {shot.value:.2f}")
    return ", ".join(words)
