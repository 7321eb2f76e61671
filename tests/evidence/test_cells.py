"""The table of cells: everything in it could be played, within its bounds."""

import pytest

from pirl_jax.evidence import cells
from pirl_jax.rollout import starts
from pirl_jax.run import command, config, learnable, recipes

CELLS = {cell.name: cell for cell in cells.TABLE.cells}
NUM_STATES = {"tabletop": 1000, "libero_object": 50, "libero_spatial": 50}


def page_of(recipe, *settings):
    fields = {name: value for some in settings for name, value in some.items()}
    raw = recipes.load_recipe(recipe)
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return config.settings(command.override(raw, flags)).raw


def test_names_tell_cells_and_starts_apart():
    assert len(CELLS) == len(cells.TABLE.cells) and not CELLS.keys() & cells.TABLE.starts.keys()
    assert {cell.start for cell in CELLS.values()} - {""} == cells.TABLE.starts.keys()
    assert {cell.row for cell in CELLS.values()} == cells.ROWS.keys() - {"h"}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_could_learn_within_its_bounds(name):
    cell = CELLS[name]
    for more in cell.best_of.values() or ({},):
        settings = dict(cell.settings) | more
        known = recipes.field_names(recipes.load_recipe(cell.recipe))
        absent = settings.keys() - known
        # A cell may wait for a field, which is told when it is to be played; no other one.
        assert absent <= cells.STALE.keys()
        for field in absent:
            del settings[field]
        raw = page_of(cell.recipe, settings, {"model.checkpoint": "runs/start"})
        learnable.check(raw)
        episodes = raw.num_iterations * raw.rollout.episodes_per_iteration
        assert 0.9 * cell.most_episodes < episodes <= cell.most_episodes
        if cell.start:
            start = cells.TABLE.starts[cell.start]
            taught = page_of(start.recipe, start.settings, start.ladder[0])
            same = ("suite", "tasks", "max_episode_steps", "split", "spread")
            for field in same:
                assert getattr(raw.env, field) == getattr(taught.env, field), field
            assert raw.model.pi05 == taught.model.pi05
    assert set(cell.best_of) <= CELLS.keys()


@pytest.mark.parametrize("name", cells.TABLE.starts)
def test_a_teaching_is_tried_on_nothing_that_is_held_out(name):
    start = cells.TABLE.starts[name]
    for teaching in start.ladder:
        raw = page_of(start.recipe, start.settings, teaching)
        assert raw.env.split == "held_out"
        trained, held = starts.split("held_out", NUM_STATES[raw.env.suite])
        trial = page_of(start.recipe, start.settings, teaching, start.trial)
        _, tried = starts.split(trial.env.split, NUM_STATES[raw.env.suite])
        tried = tried[: trial.eval.episodes_per_task]
        assert set(tried) <= set(trained) and not set(tried) & set(held)
    least, most = start.band
    assert 0.3 <= least < most <= 0.6


def test_no_goal_is_reached_by_an_easier_task():
    """The published time limit, and in the end exact pictures and all start states."""
    for cell in CELLS.values():
        if cell.recipe == "libero_small":
            raw = page_of(cell.recipe, {k: v for k, v in cell.settings.items() if "stale" not in k})
            final = page_of(cell.recipe, raw_settings(cell), cell.final)
            assert final.env.max_episode_steps == 240 and final.env.render_quality == "exact"
            assert final.env.split == "published" and not final.eval.episodes_per_task
            assert raw.env.split == "held_out"


def raw_settings(cell):
    return {name: value for name, value in cell.settings.items() if name not in cells.STALE}
