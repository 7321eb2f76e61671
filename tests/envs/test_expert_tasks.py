"""Which tasks have a scripted expert: by task, in every list; the others are refused by name."""

import pytest

from pirl_jax.envs import expert_tasks
from pirl_jax.envs.libero import files
from pirl_jax.envs.tabletop import suite as tabletop


def refusal(suite, tasks=()):
    """The sentence; None: every task has an expert."""
    try:
        return expert_tasks.require(suite, tasks, "do without")
    except ValueError as error:
        return str(error)


def test_numbers_of_tasks_are_those_of_the_suites():
    """The module counts without LIBERO, which a configuration is checked without."""
    assert expert_tasks.NUM_TASKS["tabletop"] == len(tabletop.TASKS)
    assert expert_tasks.TASKS["tabletop"] == tuple(range(len(tabletop.TASKS)))
    for suite in (*files.OWN_FILES, *files.PRO_SUITES):
        count = len(files.tasks(suite))
        assert count == expert_tasks.NUM_TASKS.get(suite, 10)
        assert set(expert_tasks.having(suite)) <= set(range(count))


def test_every_suite_of_libero_but_its_90_can_be_taught():
    for suite in files.OWN_FILES[:4]:
        assert len(expert_tasks.having(suite)) >= 5
    assert expert_tasks.having("libero_90") == ()


@pytest.mark.parametrize(
    "suite", ["libero_130", "libero_10,libero_goal_swap,libero_goal", "libero_90,libero_object"]
)
def test_a_list_has_the_experts_of_its_suites(suite):
    """By the task itself, whatever its number in the list; a perturbed task has none."""
    tasks = files.tasks(suite)
    known = expert_tasks.having(suite)
    for number, task in enumerate(tasks):
        own = task.number in expert_tasks.having(task.suite)
        assert (number in known) == own, task
    assert 10 <= len(known) < len(tasks)


def test_a_choice_of_tasks_with_experts_passes():
    assert refusal("tabletop") is None and refusal("libero_object,libero_spatial") is None
    known = expert_tasks.having("libero_130")
    assert refusal("libero_130", known) is None
    assert refusal("libero_goal", expert_tasks.having("libero_goal")[:1]) is None


@pytest.mark.parametrize("suite", ["libero_90", "probe_constant", "libero_goal_swap"])
def test_a_suite_without_experts_is_refused(suite):
    sentence = f"env.suite={suite!r} has no scripted expert; do without"
    assert refusal(suite) == refusal(suite, (0,)) == sentence


def test_tasks_without_experts_are_refused_with_those_that_have_one():
    """Never left out silently: the user names what is played; a choice is kept where it can be."""
    known = ",".join(map(str, expert_tasks.having("libero_goal")))
    said = refusal("libero_goal")
    assert "env.suite='libero_goal' has no scripted expert for tasks 3,5; play" in said
    assert f"--config.env.tasks={known}, or do without" in said
    assert "for task 3; play" in refusal("libero_goal", (8, 3))
    assert "--config.env.tasks=8, or do without" in refusal("libero_goal", (8, 3))
    assert f"--config.env.tasks={known}, or" in refusal("libero_goal", (3,))
    assert "for tasks 40,41,42,43,44 and" in refusal("libero_130", (0, *range(40, 130)))
    assert refusal("libero_object", (77,)) is None, "its simulator says so"
