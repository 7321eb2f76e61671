"""Plays the cells: teach, train, evaluate, write down; each goes on where it stopped.

A cell whose results are written is done, wherever they were made.  One that fails is told and left,
and the next one is played.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import pathlib
from typing import Any

from pirl_jax.core import atomic, endings, outside
from pirl_jax.evidence import cells, gather, perturbed, programs, teaching
from pirl_jax.monitor import report
from pirl_jax.run import recipes, records

Seeded = tuple[cells.Cell, int]
REMEDY = "remove it, and the cell is played again"


class Unready(Exception):
    """A cell cannot be played yet; the text says what it needs."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where everything lies."""

    runs: pathlib.Path
    results: pathlib.Path

    def result(self, name: str) -> pathlib.Path:
        """Of a cell with its seed, or what is beside it."""
        return self.results / f"{name}.json"


def name_of(cell: cells.Cell, seed: int) -> str:
    """Of its folder and its results."""
    return f"{cell.name}_{seed}"


def chosen(table: cells.Table, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Seeded]:
    """What is played, in order: row by row, and in a row seed by seed.

    Raises:
      ValueError: there is no such row.
    """
    wrong = [row for row in rows if row not in cells.ROWS]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no row of the table; there are {', '.join(cells.ROWS)}")
    found = []
    for row in cells.ROWS:
        pairs: list[Seeded] = []
        for cell in table.cells if not rows or row in rows else ():
            if cell.row == row:
                pairs += [(cell, seed) for seed in cell.seeds if not seeds or seed in seeds]
        found += sorted(pairs, key=lambda pair: pair[1])  # stable: cells keep their order
    return found


def to_perturb(
    table: cells.Table, rows: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Seeded]:
    """The cells of row h."""
    if rows and "h" not in rows:
        return []
    return [(cell, seed) for cell, seed in chosen(table, (), seeds) if cell.perturbed]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training and the folder that it leaves."""

    folder: pathlib.Path
    recipe: str
    settings: Mapping[str, Any]


class Player:
    """Plays cells with the programs of this package."""

    def __init__(self, table: cells.Table, places: Places, started: programs.Programs) -> None:
        self._table = table
        self._places = places
        self._programs = started

    def play(self, cell: cells.Cell, seed: int) -> None:
        """To its results.

        Raises:
          Unready: it needs something first.
          programs.Unfinished: a command failed.
          endings.Preempted: asked to end.
        """
        settings = self._settings(cell)
        name = name_of(cell, seed)
        taught = None
        start = None
        if cell.start:
            taught = self._taught(self._table.starts[cell.start], seed)
            start = self._rung(self._table.starts[cell.start], seed, taught.rung)
            settings |= {"model.checkpoint": start.folder, "eval.baseline": False}
        run, stopped = self._train(cell, seed, settings)
        if cell.final:
            for one in filter(None, (start, run)):
                self._evaluate(name, one, "final", cell.final)
        begun = start.folder if start else None
        told = gather.Told(cell, seed, run.settings, run.folder, begun, taught, stopped)
        cost = self._programs.cost(name)
        result = gather.result(told, cost, self._places.runs)
        self._places.results.mkdir(parents=True, exist_ok=True)
        atomic.write_json(self._places.result(name), result)

    def perturb(self, cell: cells.Cell, seed: int) -> None:
        """Evaluate start and end of a cell in the tasks that perturb its own, as play.

        Raises:
          Unready: the cell has not been played here.
        """
        name = name_of(cell, seed)
        folder = self._places.runs / name
        result = self._places.result(name)
        if not result.exists() or not (folder / "config.json").exists():
            raise Unready(f"{name} has not been played in {self._places.runs}")
        taught = self._taught(self._table.starts[cell.start], seed)
        start = self._rung(self._table.starts[cell.start], seed, taught.rung)
        run = Run(folder, cell.recipe, self._settings(cell) | {"seed": seed})
        for one in (start, run):
            for kind, (settings, arguments) in perturbed.evaluations(cell).items():
                self._evaluate(name, one, kind, settings, arguments)
        atomic.write_json(
            self._places.result(f"{name}.perturbed"),
            perturbed.result(cell, seed, start.folder, run.folder),
        )

    def _settings(self, cell: cells.Cell) -> dict[str, Any]:
        settings = dict(cell.settings)
        if cell.best_of:
            settings |= cell.best_of[self._best(tuple(cell.best_of))]
        known = recipes.field_names(recipes.load_recipe(cell.recipe))
        absent = [field for field in settings if field not in known]
        if absent:
            raise Unready(f"this version has no {absent[0]}")
        return settings

    def _best(self, names: Sequence[str]) -> str:
        """Of these cells the one with the highest mean."""
        means = {}
        for name in names:
            rates = []
            for seed in self._table.cell(name).seeds:
                path = self._places.result(f"{name}_{seed}")
                if not path.exists():
                    raise Unready(f"it follows from {name}, whose seed {seed} has not been played")
                found = outside.read_json(path, remedy=REMEDY)
                rates.append(outside.part(found, "after.all.rate", float, path, REMEDY))
            means[name] = sum(rates) / len(rates)
        return max(means, key=means.get)

    def _rung(self, start: cells.Start, seed: int, rung: int) -> Run:
        folder = self._places.runs / f"{start.name}_{seed}_{rung}"
        own = {"seed": seed, "num_iterations": 0, "eval.baseline": False}
        return Run(folder, start.recipe, {**start.settings, **start.ladder[rung], **own})

    def _taught(self, start: cells.Start, seed: int) -> teaching.Taught:
        name = f"{start.name}_{seed}"

        def trial(rung: int) -> Mapping[str, float]:
            run = self._rung(start, seed, rung)
            self._to_the_end(name, run)
            self._evaluate(name, run, "trial", start.trial)
            played = records.evaluation(run.folder / "evaluation" / "trial").played.values()
            return report.rate(sum(one.success for one in played), len(played))

        return teaching.search(start, trial, self._places.runs / f"{name}.json")

    def _train(self, cell: cells.Cell, seed: int, settings: Mapping[str, Any]) -> tuple[Run, str]:
        """-> the run, and why it ended before its last iteration; "" where it did not."""
        name = name_of(cell, seed)
        run = Run(self._places.runs / name, cell.recipe, {**settings, "seed": seed})
        if self._to_the_end(name, run, cell.most_s):
            return run, ""
        # Its newest state is the last one: the same command evaluates that.
        newest = {"num_iterations": gather.newest(run.folder)}
        ended = dataclasses.replace(run, settings={**run.settings, **newest})
        self._to_the_end(f"{name}.end", ended)
        return ended, f"at its bound of {cell.most_s / 60:.0f} minutes"

    def _to_the_end(self, name: str, run: Run, limit_s: float | None = None) -> bool:
        """Train; a run that has ended stays as it is.  -> False: not within the limit."""
        if (run.folder / "table.json").exists():
            return True
        flags = _flags({**run.settings, "run.directory": run.folder})
        command = ["pirl_jax.train", f"--config={run.recipe}", *flags, "--resume=auto"]
        return self._programs.run(name, command, limit_s)

    def _evaluate(
        self,
        name: str,
        run: Run,
        kind: str,
        settings: Mapping[str, Any],
        arguments: Iterable[str] = (),
    ) -> None:
        output = run.folder / "evaluation" / kind
        if (output / "evaluation.json").exists():
            return
        # Not the page of the run's folder: it may be older than a field.
        flags = _flags({**run.settings, **settings})
        page = [f"--config={run.recipe}", *flags, f"--checkpoint={run.folder}"]
        command = ["pirl_jax.evaluate", *page, f"--output={output}", *arguments]
        self._programs.run(f"{name}.end", command)


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--config.{field}={value}" for field, value in settings.items()]


# ---- what is left ------------------------------------------------------------------------------


def left(wanted: Sequence[Seeded], places: Places) -> list[Seeded]:
    """What has no results yet."""
    return [
        (cell, seed) for cell, seed in wanted if not places.result(name_of(cell, seed)).exists()
    ]


def remaining_s(wanted: Sequence[Seeded], places: Places) -> float | None:
    """Of the cells that are left, from the seconds that an episode took in those that are done.

    Those of the same recipe where there are such, else all; None: none is done.
    """
    speeds: dict[str, list[float]] = {}
    for cell, seed in wanted:
        path = places.result(name_of(cell, seed))
        if path.exists():
            found = outside.read_json(path, remedy=REMEDY)
            wall_s = outside.part(found, "wall_s", float, path, REMEDY)
            episodes = outside.part(found, "episodes", int, path, REMEDY)
            speeds.setdefault(cell.recipe, []).append(wall_s / max(episodes, 1))
    if not speeds:
        return None
    total_s = 0.0
    everything = list(itertools.chain.from_iterable(speeds.values()))
    for cell, _ in left(wanted, places):
        known = speeds.get(cell.recipe, everything)
        total_s += min(cell.most_episodes * sum(known) / len(known), cell.most_s)
    return total_s


def say_remaining(wanted: Sequence[Seeded], places: Places) -> None:
    """One line."""
    waiting = len(left(wanted, places))
    seconds = remaining_s(wanted, places)
    time = "an unknown time" if seconds is None else f"about {seconds / 3600:.1f} hours"
    print(f"evidence: {len(wanted) - waiting} of {len(wanted)} cells done; {time} of training left")


def play_all(
    player: Player, wanted: Sequence[Seeded], to_perturb: Sequence[Seeded], places: Places
) -> list[str]:
    """Everything that is left, and then what perturbs tasks -> what did not succeed."""
    failed = []
    for cell, seed in left(wanted, places):
        say_remaining(wanted, places)
        failed += _attempt(player.play, cell, seed)
    say_remaining(wanted, places)
    for cell, seed in to_perturb:
        if not places.result(f"{name_of(cell, seed)}.perturbed").exists():
            failed += _attempt(player.perturb, cell, seed)
    return failed


def _attempt(play: Callable[[cells.Cell, int], None], cell: cells.Cell, seed: int) -> list[str]:
    name = name_of(cell, seed)
    print(f"evidence: {name} ({play.__name__}), row {cell.row}")
    try:
        play(cell, seed)
    except Unready as reason:
        print(f"evidence: {name} is not run: {reason}")
    except (programs.Unfinished, endings.Failure) as error:
        if isinstance(error, endings.Preempted):
            raise
        print(f"evidence: {name} failed: {error}")
        return [name]
    return []
