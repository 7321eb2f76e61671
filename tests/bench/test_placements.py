"""The predicted placements: the page shows the file, and the file is what the model says today."""

import json
import pathlib

import pytest

from pirl_jax.bench import placements
from pirl_jax.run import forecast

DOCS = pathlib.Path(__file__).parents[2] / "docs"
WRITTEN = json.loads((DOCS / "bench" / "placements.json").read_text(encoding="utf-8"))
ITERATIONS = 3  # of the command that wrote it


def test_the_page_shows_the_file():
    page = (DOCS / "placement.md").read_text(encoding="utf-8")
    assert placements.as_markdown(WRITTEN["result"]) in page


@pytest.mark.parametrize("number, layout", [(2, 0), (6, 4)])
def test_the_file_is_what_the_model_says(number, layout):
    """One placement on each machine, to the last digit."""
    machine = placements.MACHINES[number // 4]
    row = WRITTEN["result"]["rows"][number]
    assert row["machine"].startswith(machine.target)
    simulators = placements.simulated(machine, row["pictures"])
    work = placements.work(machine, row["prefix"], simulators.slots)
    one = placements.LAYOUTS[layout]
    found = forecast.predict(one, work, simulators, placements.RECIPE, iterations=ITERATIONS)
    assert row["layouts"][one.name]["iteration_s"] == round(found.iteration_s, 3)


def test_every_placement_of_every_machine_is_there():
    rows = WRITTEN["result"]["rows"]
    assert len(rows) == len(placements.MACHINES) * len(placements.PICTURES) * 2
    for row in rows:
        assert list(row["layouts"]) == [layout.name for layout in placements.LAYOUTS]
        shared = row["layouts"]["shared"]
        stale = row["layouts"]["shared, stale by 1"]
        assert (shared["max_lag"], stale["max_lag"]) == (0, 1)
        # What the page advises.
        seconds = {name: outcome["iteration_s"] for name, outcome in row["layouts"].items()}
        in_turns = {name: value for name, value in seconds.items() if "stale" not in name}
        assert min(seconds, key=seconds.get) == "shared, stale by 1"
        assert min(in_turns, key=in_turns.get) == "shared"
        assert seconds["shared, offload"] - seconds["shared"] < 0.5
        if row["prefix"] == "prefix each time":
            assert seconds["separate 4 + 2, stale by 1"] > 2 * seconds["shared"]


def test_the_table_for_people_has_the_same_numbers():
    text = placements.as_text(WRITTEN["result"])
    for words in ("cuda:h100:8, 192 cores", "assumed: ", "separate 4 + 2, stale by 1"):
        assert words in text
