"""What training plays: which episodes an iteration has on this host, and which replace those that
teach nothing.  Refuses to know what is learned from them."""

from collections.abc import Callable, Sequence
import itertools

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, types
from pirl_jax.learner import objective
from pirl_jax.rl import groups
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import collector, starts, stats
from pirl_jax.rollout import film as films
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config, hosts


def episodes(
    raw: page.Page,
    playable: starts.Starts,
    iteration: int,
    count: int | None = None,
    played: int = 0,
) -> list[streams.Episode]:
    """This host's episodes of an iteration: all of them, or `count` more after so many played."""
    count = hosts.episodes_per_iteration(raw) if count is None else count
    size = raw.algorithm.group_size
    everywhere = count * jax.process_count()
    order = raw.rollout.start_order
    whole = starts.training(
        playable, everywhere, size, order, raw.seed, iteration, played, raw.rollout.balance
    )
    return hosts.share().of(whole, size)


def useful(played: Sequence[streams.Result], cfg: page.Algorithm) -> np.ndarray:
    """[E] bool: episodes that the update learns from."""
    score_E = [result.reward for result in played]
    valid_E = [not result.lost for result in played]
    return objective.useful(score_E, valid_E, cfg)


def play(
    settings: config.Settings,
    playable: starts.Starts,
    iteration: int,
    stream: streams.Stream,
    actor: actors.Actor,
    params: dict,
    key: jax.Array,
    timers: streams.Timers,
    advance: Callable[[int, str], None],
    film: films.Film | None = None,
) -> tuple[types.Rollout, list[streams.Result]]:
    """The rollout of an iteration, from a stream of its episodes.

    Where the algorithm has a budget for it, groups without a signal are replaced by fresh ones
    (dynamic sampling).
    """
    cfg = settings.raw.algorithm
    book = None
    while book is None or stream.num_left:
        book = collector.collect(
            actor,
            params,
            key,
            stream,
            timers,
            version=iteration,
            book=book,
            group_size=cfg.group_size,
            bootstrap_truncated=cfg.uses_critic and cfg.bootstrap_truncated,
            advance=advance,
            film=film,
        )
        replace(settings, playable, stream, iteration, book)
    return book.rollout(stream.results), stream.results


def replace(
    settings: config.Settings,
    playable: starts.Starts,
    stream: streams.Stream,
    batch: int,
    book: collector.Book,
) -> int:
    """Fresh episodes for groups without a signal, of a batch that is over -> how many.

    0 where the algorithm has no budget for it.  batch: its iteration.
    """
    cfg = settings.raw.algorithm
    if not cfg.max_episodes_per_iteration:
        return 0
    played = stream.of(batch)
    useful_E = useful(played, cfg)
    if useful_E.any():  # an update needs rows even to skip them
        book.discard(np.flatnonzero(~useful_E))
    count = _missing(settings.raw, useful_E)
    stream.extend(episodes(settings.raw, playable, batch, count, len(played)), batch)
    return count


def _missing(raw: page.Page, useful_E: np.ndarray) -> int:
    """How many fresh episodes this host plays in place of those that carry no signal."""
    size = raw.algorithm.group_size
    fresh = groups.fresh(
        wanted=hosts.episodes_per_iteration(raw) // size,
        usable=useful_E.reshape(-1, size).any(1).sum(),
        played=len(useful_E) // size,
        budget=hosts.most_episodes(raw) // size,
    )
    return size * fresh


def metrics(cfg: page.Algorithm, played: list[streams.Result]) -> dict[str, float]:
    """Of the episodes of an iteration on all hosts."""
    everywhere = list(itertools.chain.from_iterable(meshes.gather(played)))
    found = stats.episode_metrics(everywhere)
    if cfg.group_size > 1 and not cfg.uses_critic:
        found |= stats.group_metrics(useful(everywhere, cfg), cfg.group_size)
    return found
