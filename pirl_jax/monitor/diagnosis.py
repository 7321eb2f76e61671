"""Why a run does not learn: the questions that a person would ask its metrics, in their order.

Each question looks at numbers of the run, gives a verdict and names what to change next.  Its
limits are judgement, from runs of small models; docs/algorithms.md says where they come from.
Reads rows that somebody else has read; refuses to know files, configurations and networks.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import sys
from typing import Any

OK = "ok"
LOOK = "look"  # something to change
STOP = "stop"  # nothing else makes sense before this is mended
UNKNOWN = "unknown"  # the metrics do not tell

ENOUGH_EPISODES = 1500  # to judge by; five iterations of 64 are within the noise
ROUNDING = 1e-3  # of the ratio before any update, in float32
COARSE_ROUNDING = 0.5  # in bfloat16; a tiny policy had 0.1
LEAST_SUCCESS = 0.05
MOST_SUCCESS = 0.95
HIGH_SUCCESS = 0.85  # from which a level curve is no fault: little is left to gain
MOST_GAP = 0.15  # success that exploring may cost
GOOD_GAP = (0.03, 0.10)
UNEVEN = 2.0  # between the denoise steps that explore most and least
# Displacement of an executed entry, normalised units; measured on one small policy of tabletop:
# free up to 0.18, 5 points of success at 0.23, 10 at 0.4.
GOOD_MOVED = 0.23
GOOD_MOVED_COSTS = 5
NO_NOISE = 1e-3  # displacement of rounding alone
SMALL_KL = 1e-3
SMALL_CLIPPED = 0.01
LARGE_KL = 0.05
LARGE_CLIPPED = 0.30
# Not finite where there is nothing to tell, as with equal returns; no sign of a wrong update.
MAY_BE_UNDEFINED = ("critic/explained_variance",)
WARM_UP = 5  # iterations after which a critic should predict something
LEAST_INFORMATIVE = 0.30  # of the groups


@dataclasses.dataclass(frozen=True)
class Finding:
    """One question and its answer."""

    question: str
    seen: str  # the numbers that were looked at
    verdict: str
    change: str = ""  # what to do next; empty where nothing is wrong


class History:
    """The rows of a run, as the questions read them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        """
        Raises:
          ValueError: no iteration in them, or a metric that is no number.
        """
        rollouts = {}
        self.evaluations: dict[int, float] = {}  # success by iteration
        self._evaluated: dict[int, float] = {}  # episodes of these
        for row in rows:
            numbers = {name: _number(name, value) for name, value in row.items()}
            iteration = row["iteration"]
            # The last row of an iteration counts: a run that went back plays some again.
            if "env/success_once" in numbers:
                rollouts[iteration] = numbers
            if "eval/success_once" in numbers:
                self.evaluations[iteration] = numbers["eval/success_once"]
                self._evaluated[iteration] = _episodes(numbers, "eval/num_trajectories")
        if not rollouts:
            raise ValueError("holds no iteration yet")
        self.rollouts = [rollouts[iteration] for iteration in sorted(rollouts)]
        self.window = self.last(ENOUGH_EPISODES)

    def last(self, episodes: int) -> list[dict[str, float]]:
        """The last iterations that together have so many episodes; all, where none have."""
        played = 0.0
        for count, row in enumerate(reversed(self.rollouts), 1):
            played += _episodes(row)
            if played >= episodes:
                return self.rollouts[-count:]
        return self.rollouts

    def values(self, name: str) -> list[float]:
        """Of a metric over the window, where it is finite."""
        found = [row[name] for row in self.window if name in row]
        return [value for value in found if math.isfinite(value)]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def gap(self) -> tuple[float | None, float]:
        """Success without noise less success with it, where both were played with one policy, and
        its standard error: 0 where nobody knows the number of episodes."""
        gaps = []
        variances = []
        for row in self.window:
            evaluated = self.evaluations.get(int(row["iteration"]))
            gap = row.get("rollout/exploration_gap")
            if gap is None and evaluated is not None:
                gap = evaluated - row["env/success_once"]
            if gap is not None and math.isfinite(gap):
                gaps.append(gap)
                variances.append(self._variance(row))
        if not gaps:
            return None, 0.0
        return sum(gaps) / len(gaps), math.sqrt(sum(variances)) / len(gaps)

    def _variance(self, row: Mapping[str, float]) -> float:
        """Of the gap of an iteration."""
        iteration = int(row["iteration"])
        count = self._evaluated.get(iteration, 0.0)
        variance = success([row])[1] ** 2
        if count:
            rate = self.evaluations[iteration]
            variance += max(rate * (1 - rate), 0.0) / count
        return variance if math.isfinite(variance) else 0.0

    def moved_by_step(self) -> dict[str, float]:
        """{denoise step: displacement}, of those that were sampled."""
        names = set().union(*self.window)
        start = "rollout/moved_step_"
        found = {}
        for name in sorted(names):
            mean = self.mean(name)
            if name.startswith(start) and mean is not None:
                found[name.removeprefix(start)] = mean
        return found


def _shown(name: str) -> str:
    """Of a file that somebody else may have written."""
    return name[:80] if name.isprintable() else f"{name[:80]!a}"


def _number(name: str, value: Any) -> float:
    """Rows hold "nan", "inf" and "-inf" as text, which JSON has no numbers for."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number beyond float64 is none that a run writes.
    is_number = is_number and not abs(value) > sys.float_info.max
    if not is_number and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"has a metric {name[:80]!a} that is no number")
    return float(value)


def _episodes(row: Mapping[str, float], name: str = "env/num_trajectories") -> float:
    """How many were played to their end."""
    count = row.get(name, 0.0)
    return count if math.isfinite(count) and count > 0 else 0.0


def success(rows: Sequence[Mapping[str, float]]) -> tuple[float, float, int]:
    """Rate, standard error and number of the episodes of these iterations."""
    episodes = [_episodes(row) for row in rows]
    count = sum(episodes)
    if not count:
        return math.nan, math.nan, 0
    won = [row["env/success_once"] * n for row, n in zip(rows, episodes, strict=True) if n]
    rate = sum(won) / count
    return rate, math.sqrt(max(rate * (1 - rate), 0.0) / count), int(count)


def findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The answers, in the order in which they should be read.

    Raises:
      ValueError: as History.
    """
    history = History(rows)
    return [ask(history) for ask in QUESTIONS]


def first(answers: Sequence[Finding]) -> Finding | None:
    """What to change next; None: nothing that the metrics tell."""
    for verdict in (STOP, LOOK):
        for answer in answers:
            if answer.verdict == verdict:
                return answer
    return None


# ---- the questions -----------------------------------------------------------------------------


def _finite(history: History) -> Finding:
    question = "Are the updates finite?"
    lost = sum(history.values("actor/nonfinite_updates"))
    found = set()
    for row in history.window:
        found |= {name for name, value in row.items() if not math.isfinite(value)}
    names = sorted(found.difference(MAY_BE_UNDEFINED))
    seen = f"{lost:.0f} updates without a finite gradient"
    if names:
        seen += f"; not finite: {', '.join(map(_shown, names[:5]))}"
    if not lost and not names:
        return Finding(question, seen, OK)
    change = "lower optim.lr by a factor of 3, or optim.clip_grad; see run.on_divergence"
    return Finding(question, seen, STOP if lost else LOOK, change)


def _agreement(history: History) -> Finding:
    question = "Do sampling and learning compute the same probabilities?"
    deviations = history.values("actor/first_ratio_max_dev")
    what = "ratio"
    if not deviations:  # NFT has velocities alone
        deviations = history.values("actor/first_delta_v")
        what = "velocity"
    if not deviations:
        return Finding(question, "no actor/first_ratio_max_dev", UNKNOWN)
    seen = f"{what} before any update off by {max(deviations):.2g} at most"
    if max(deviations) <= ROUNDING:
        return Finding(question, seen, OK)
    if max(deviations) <= COARSE_ROUNDING:
        change = "rounding with model.dtype=bfloat16; with float32 a fault: try --config probe"
        return Finding(question, seen, UNKNOWN, change)
    change = (
        "more than rounding: learn a probe first (--config probe), "
        "then try rollout.prefix_cache=recompute"
    )
    return Finding(question, seen, STOP, change)


def _signal(history: History) -> Finding:
    question = "Do some episodes succeed and others fail?"
    rate, _, count = success(history.window)
    if not count:
        return Finding(question, "no episode was played to its end", UNKNOWN)
    seen = f"exploring success {rate:.1%} of {count} episodes"
    if rate < LEAST_SUCCESS:
        change = "start from more: sft.demonstrations, a longer env.max_episode_steps, less noise"
        return Finding(question, seen, STOP, change)
    if rate > MOST_SUCCESS:
        change = "nothing left to learn here: a shorter env.max_episode_steps or harder tasks"
        return Finding(question, seen, STOP, change)
    return Finding(question, seen, OK)


def _exploration(history: History) -> Finding:
    question = "Does exploring cost as much as it should?"
    gap, error = history.gap()
    moved = history.mean("rollout/moved")
    by_step = history.moved_by_step()
    told = ["no evaluation beside it"]
    if gap is not None:
        told = [f"{100 * gap:.0f} points of success, standard error {100 * error:.0f}"]
    if moved is not None:
        told.append(f"moves an executed entry by {moved:.2f}")
    if by_step:
        steps = ", ".join(f"{step}: {value:.2f}" for step, value in by_step.items())
        told.append(f"by denoise step {steps}")
    seen = "; ".join(told)
    uneven = bool(by_step) and max(by_step.values()) > UNEVEN * min(by_step.values())
    if gap is not None and gap > MOST_GAP:
        if gap < 2 * error:
            change = "more eval.episodes_during_training, so that the cost is told from chance"
            return Finding(question, seen, UNKNOWN, change)
        return Finding(question, seen, LOOK, _less_noise(100 * gap, moved, uneven))
    is_small = gap is None or gap < GOOD_GAP[0]
    if is_small and moved is not None and moved < GOOD_MOVED and _is_flat(history):
        change = f"exploring is too small to teach anything: {_level(moved)}"
        if moved < NO_NOISE:
            change = "nothing but the start noise explores: model.noise_method=flow_sde"
        return Finding(question, seen, LOOK, change)
    if gap is None:
        return Finding(question, seen, UNKNOWN, "set eval.every, so that both are known")
    return Finding(question, seen, OK)


def _less_noise(points: float, moved: float | None, uneven: bool) -> str:
    change = f"exploring costs {points:.0f} points: "
    if moved is not None and moved < NO_NOISE:
        return change + (
            "not by noise, of which there is none; are the start states, or the weights that are "
            "evaluated (algorithm.ema_decay), others?"
        )
    if uneven:
        # At an equal learning rate the ratio of all steps moves several times as far.
        change += "model.noise_steps=all with algorithm.target_kl=0.02, so that all decisions "
        change += "explore alike; then "
    if moved is None or moved <= GOOD_MOVED:  # more is no remedy
        return change + "lower model.noise_level by a third"
    return change + _level(moved)


def _level(moved: float) -> str:
    """Displacement grows with the level."""
    low, high = GOOD_GAP
    return (
        f"multiply model.noise_level (or the bounds of noise_logvar_range) by "
        f"{GOOD_MOVED / max(moved, 1e-3):.2g} for rollout/moved of {GOOD_MOVED}; expected gap "
        f"{GOOD_MOVED_COSTS} points, good are {100 * low:.0f} to {100 * high:.0f}"
    )


def _step_size(history: History) -> Finding:
    question = "Are the updates neither too small nor too large?"
    kl = history.mean("actor/approx_kl3")
    clipped = history.mean("actor/pg_clipfrac")
    if kl is None or clipped is None:
        return Finding(question, "no actor/approx_kl3 and actor/pg_clipfrac", UNKNOWN)
    seen = f"KL {kl:.2g} an update, {clipped:.1%} clipped"
    if kl < SMALL_KL and clipped < SMALL_CLIPPED:
        change = "optim.lr 3 to 10 times larger, or more algorithm.update_epochs"
        return Finding(question, seen, LOOK, change)
    if kl > LARGE_KL or clipped > LARGE_CLIPPED:
        change = "algorithm.target_kl=0.02, fewer algorithm.update_epochs, or a third of optim.lr"
        return Finding(question, seen, LOOK, change)
    return Finding(question, seen, OK)


def _critic(history: History) -> Finding:
    question = "Does the critic predict returns?"
    explained = history.mean("critic/explained_variance")
    if explained is None:
        return Finding(question, "no critic", OK)
    seen = f"explained variance {explained:.2f}"
    if len(history.rollouts) <= WARM_UP:
        return Finding(question, f"{seen} in the first {len(history.rollouts)} iterations", UNKNOWN)
    if explained < 0:
        change = (
            "it does harm: algorithm.critic_warmup_iterations, another optim.value_lr, or "
            "algorithm.adv_type=rloo with groups"
        )
        return Finding(question, seen, LOOK, change)
    return Finding(question, seen, OK)


def _groups(history: History) -> Finding:
    question = "Do groups of one start differ in their outcome?"
    groups = sum(history.values("rollout/groups"))
    if not groups:
        return Finding(question, "no groups", OK)
    share = sum(history.values("rollout/groups_kept")) / groups
    seen = f"{share:.0%} of {groups:.0f} groups taught something"
    if share >= LEAST_INFORMATIVE:
        return Finding(question, seen, OK)
    change = "algorithm.max_episodes_per_iteration, algorithm.group_size 8 to 16, or other starts"
    return Finding(question, seen, LOOK, change)


def _gain(history: History) -> Finding:
    question = "Does exploring success rise?"
    _, _, count = success(history.last(2 * ENOUGH_EPISODES))
    if count < ENOUGH_EPISODES:
        seen = f"only {count} episodes; {ENOUGH_EPISODES} are needed to tell"
        return Finding(question, seen, UNKNOWN)
    change, noise = _rise(history)
    seen = f"{100 * change:+.1f} points within {count} episodes, standard error {100 * noise:.1f}"
    if change > 0 and not _is_flat(history):
        return Finding(question, seen, OK)
    rate, _, _ = success(history.window)
    if rate >= HIGH_SUCCESS and _is_flat(history):
        return Finding(question, f"{seen}; level at {100 * rate:.0f} %", OK)
    remedy = (
        "more episodes an iteration, a start that succeeds more often, or fewer decisions an "
        "episode"
    )
    # What has neither ratios nor velocities to compare is that clone.
    if any(history.values(name) for name in ("actor/approx_kl3", "actor/first_delta_v")):
        remedy += (
            "; algorithm.loss=clone on equally many episodes tells: if that rises, the objective "
            "is at fault, if not, the episodes are"
        )
    return Finding(question, seen, LOOK, remedy)


def _rise(history: History) -> tuple[float, float]:
    """Of the window over as much before it, and its standard error; half of all there is over the
    other where that is less.  Within one window 5 points would be chance."""
    rows = history.last(2 * ENOUGH_EPISODES)
    middle = len(rows) // 2
    early, early_error, _ = success(rows[:middle])
    late, late_error, _ = success(rows[middle:])
    return late - early, math.hypot(early_error, late_error)


def _is_flat(history: History) -> bool:
    """With enough episodes to tell."""
    _, _, count = success(history.window)
    change, noise = _rise(history)
    return count >= ENOUGH_EPISODES and abs(change) < 2 * noise


def _transfer(history: History) -> Finding:
    question = "Does the policy without noise rise, too?"
    if len(history.evaluations) < 2:
        return Finding(question, "fewer than two evaluations", UNKNOWN, "set eval.every")
    iterations = sorted(history.evaluations)
    risen = history.evaluations[iterations[-1]] - history.evaluations[iterations[0]]
    exploring = history.rollouts[-1]["env/success_once"] - history.rollouts[0]["env/success_once"]
    seen = f"evaluation {100 * risen:+.0f} points, exploring {100 * exploring:+.0f}"
    if exploring > GOOD_GAP[1] and risen <= 0:
        change = "the noise is being compensated: model.noise_anneal=True, fewer model.num_steps"
        return Finding(question, seen, LOOK, change)
    return Finding(question, seen, OK)


QUESTIONS: tuple[Callable[[History], Finding], ...] = (
    _finite,
    _agreement,
    _signal,
    _exploration,
    _step_size,
    _critic,
    _groups,
    _gain,
    _transfer,
)
