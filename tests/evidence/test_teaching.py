"""The search for a start: nearest to the middle of the band, few trials, on the record."""

import json

import pytest

from pirl_jax.evidence import cells, teaching

LADDER = tuple({"sft.demonstrations": count} for count in (4, 6, 9, 13, 19, 28, 40))
START = cells.Start("start", "probe", {}, LADDER, (0.3, 0.6), {})


def searched(tmp_path, rates, tried=None):
    """tried: takes the rungs that were tried."""
    tried = [] if tried is None else tried

    def trial(rung):
        tried.append(rung)
        return {"rate": rates[rung]}

    return teaching.search(START, trial, tmp_path / "runs" / "start.json")


@pytest.mark.parametrize(
    "rates, rung",
    [
        ((0, 0.1, 0.2, 0.45, 0.7, 0.8, 0.9), 3),
        ((0, 0.05, 0.1, 0.15, 0.2, 0.4, 0.9), 5),
        ((0.5, 0.7, 0.8, 0.9, 0.9, 0.9, 1), 0),
        # None within the band: the nearest one.
        ((0, 0, 0.1, 0.2, 0.28, 0.8, 0.9), 4),
        ((0,) * 7, 3),
    ],
)
def test_what_is_nearest_to_the_middle_is_taken_after_three_trials(tmp_path, rates, rung):
    tried = []
    found = searched(tmp_path, rates, tried)
    assert found.rung == rung and len(tried) == len(set(tried)) <= 3
    assert [one["rung"] for one in found.trials] == tried
    assert found.trials[0]["settings"] == LADDER[3]


def test_a_search_goes_on_from_its_record(tmp_path):
    rates = (0, 0.05, 0.1, 0.15, 0.2, 0.4, 0.9)

    class Stopped(Exception):
        pass

    def stop(rung):
        if rung == 5:
            raise Stopped
        return {"rate": rates[rung]}

    record = tmp_path / "runs" / "start.json"
    with pytest.raises(Stopped):
        teaching.search(START, stop, record)
    assert len(json.loads(record.read_text())) == 1
    tried = []
    assert searched(tmp_path, rates, tried).rung == 5 and tried == [5]
    assert searched(tmp_path, rates, tried).rung == 5 and tried == [5], "nothing is tried again"


def test_a_damaged_record_is_named(tmp_path):
    record = tmp_path / "runs" / "start.json"
    record.parent.mkdir()
    record.write_text('[{"rung": "3"}]')
    with pytest.raises(ValueError, match=r"start\.json .*; remove it"):
        searched(tmp_path, (0,) * 7)
