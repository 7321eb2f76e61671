"""Start states that are demonstrated: drawn, or so chosen that a few stand for all."""

import itertools

import numpy as np
import pytest

from pirl_jax.envs.libero import files
from pirl_jax.envs.libero import suite as libero
from pirl_jax.envs.tabletop import suite as tabletop
from pirl_jax.recipes import tabletop_small
from pirl_jax.run import config, demonstrated, simulators


def energy(layouts_ND, chosen_K):
    """Energy distance of Szekely and Rizzo, as its definition says it."""
    scaled = (layouts_ND - layouts_ND.mean(0)) / layouts_ND.std(0)
    few = scaled[chosen_K]

    def mean_distance(some, others):
        pairs = itertools.product(some, others)
        return np.mean([np.linalg.norm(one - other) for one, other in pairs])

    return 2 * mean_distance(few, scaled) - mean_distance(few, few) - mean_distance(scaled, scaled)


def covering(layouts_ND, count, seed=0):
    everything = np.arange(len(layouts_ND))
    generator = np.random.default_rng(seed)
    return demonstrated.choose(everything, count, "covering", generator, layouts_ND.__getitem__)


@pytest.fixture(scope="module")
def layouts_ND():
    """80 places on a table, metres and radians."""
    generator = np.random.default_rng(3)
    return generator.uniform(-1, 1, (80, 3)) * (0.03, 0.045, 0.25)


def test_random_ones_are_those_that_the_generator_draws():
    """Where things lie is not asked for: it takes reading files."""
    starts_N = np.arange(100, 180)
    drawn = demonstrated.choose(starts_N, 6, "random", np.random.default_rng(5), pytest.fail)
    expected = np.random.default_rng(5).choice(starts_N, 6, replace=False)
    assert drawn.tolist() == expected.tolist()


def test_covering_ones_stand_better_for_all_than_any_of_100_draws(layouts_ND):
    generator = np.random.default_rng(0)
    draws = [generator.choice(80, 6, replace=False) for _ in range(100)]
    best = min(energy(layouts_ND, drawn) for drawn in draws)
    for seed in range(3):
        chosen = covering(layouts_ND, 6, seed)
        assert len(set(chosen.tolist())) == 6
        assert 0 < energy(layouts_ND, chosen) < best


def test_no_exchange_of_one_improves_on_the_covering_ones(layouts_ND):
    chosen = covering(layouts_ND, 4)
    least = energy(layouts_ND, chosen)
    for place, other in itertools.product(range(4), range(80)):
        exchanged = chosen.copy()
        exchanged[place] = other
        if len(set(exchanged.tolist())) == 4:
            assert energy(layouts_ND, exchanged) > least - 1e-6


def test_units_and_what_never_varies_do_not_count(layouts_ND):
    plain = covering(layouts_ND, 6)
    other_units = layouts_ND * (1000.0, 1.0, 57.3) + (5.0, -2.0, 0.0)
    with_constant = np.concatenate([np.full((80, 1), 0.1), other_units], axis=1)
    assert covering(with_constant, 6).tolist() == plain.tolist()


@pytest.mark.parametrize("count", [1, 80])
def test_one_and_all_can_be_chosen(layouts_ND, count):
    chosen = covering(layouts_ND, count)
    assert len(set(chosen.tolist())) == count


def test_one_stands_in_the_middle(layouts_ND):
    scaled = (layouts_ND - layouts_ND.mean(0)) / layouts_ND.std(0)
    (one,) = covering(layouts_ND, 1)
    # Of 80 places a handful is as near as this.
    assert np.sort(np.linalg.norm(scaled, axis=1)).searchsorted(np.linalg.norm(scaled[one])) < 5


def test_start_states_that_are_all_alike_are_chosen_all_the_same():
    assert len(set(covering(np.ones((5, 2)), 3).tolist())) == 3


@pytest.mark.parametrize(
    "task, names", [(0, ["red"]), (1, ["green"]), (2, ["red", "green"]), (3, ["red", "target"])]
)
def test_layouts_of_tabletop_are_where_lies_what_the_task_is_about(task, names):
    """Not what merely stands around: a few demonstrations cannot cover that as well."""
    page = tabletop_small.get_config()
    found = simulators.layouts(config.settings(page), task, np.array([7, 11]))
    placed = tabletop.placement(task, 11, page.env.spread)
    about = [placed[name][:2] for name in names]
    assert found[1].tolist() == list(itertools.chain.from_iterable(about))


@pytest.mark.filterwarnings("ignore")  # of what LIBERO imports
@pytest.mark.parametrize(
    "suite, task, movable",
    [
        ("libero_object", 2, 2),
        ("libero_spatial", 5, 2),
        ("libero_goal", 0, 0),
        ("libero_goal", 5, 1),
    ],
)
def test_layouts_of_libero_are_where_its_objects_of_interest_stand(
    suite, task, movable, libero_assets, monkeypatch
):
    """By the joints that its model has.  movable: how many; where none is, all objects count."""
    monkeypatch.setattr(libero.Libero, "_render", lambda env, camera: np.zeros((2, 2, 3), np.uint8))
    page = tabletop_small.get_config()
    page.env.suite = suite
    page.env.render_quality = "exact"
    (found,) = simulators.layouts(config.settings(page), task, np.array([4]))

    env = libero.make(suite, assets=libero_assets, image_size_px=2)
    env.reset(task, 4)
    task_env = env.simulator.task_env
    model = env.simulator.model
    about = set(task_env.objects_dict) & set(task_env.obj_of_interest)
    assert len(about) == movable
    stored = files.init_states(suite, task)[4]
    expected = []
    for name in about or task_env.objects_dict:
        joint = model.body_jntadr[task_env.obj_body_id[name]]
        first = 1 + model.jnt_qposadr[joint]
        expected += [stored[first], stored[first + 1]]
    env.close()
    assert sorted(found) == sorted(expected)
    everything = simulators.layouts(config.settings(page), task, np.arange(50))
    assert len(set(covering(everything, 5).tolist())) == 5
