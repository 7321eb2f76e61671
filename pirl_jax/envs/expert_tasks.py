"""Which tasks have a scripted expert, and the sentence that refuses the others.

Imports no simulator: a configuration is refused before one is built.
"""

from collections.abc import Sequence

from pirl_jax.envs.libero import files

# By suite, those that the experts were measured on and reach in 9 of 10 episodes; docs/libero.md
# has the numbers.
TASKS = {
    "tabletop": (0, 1, 2, 3),
    "libero_spatial": tuple(range(10)),
    "libero_object": tuple(range(10)),
    "libero_goal": (1, 2, 4, 6, 7, 8, 9),
    "libero_10": (0, 1, 2, 4, 5, 6, 7, 8),
}
# Tasks of a suite that is not of ten.
NUM_TASKS = {"tabletop": 4, "libero_90": 90}
SHOWN = 5  # tasks without an expert, in an error


def having(suite: str) -> tuple[int, ...]:
    """The tasks of a suite, or of a list of suites, that have an expert; their numbers there."""
    found = []
    before = 0
    for member in _members(suite):
        found += [before + task for task in TASKS.get(member, ())]
        before += NUM_TASKS.get(member, 10)
    return tuple(found)


def require(suite: str, tasks: Sequence[int], otherwise: str) -> None:
    """Each of these tasks (none: all of the suite) has an expert.

    otherwise: what a user can do without one, for the sentence.

    Raises:
        ValueError: some have none.
    """
    known = having(suite)
    if not known:
        raise ValueError(f"env.suite={suite!r} has no scripted expert; {otherwise}")
    count = sum(NUM_TASKS.get(member, 10) for member in _members(suite))
    asked = tasks or range(count)
    # What is no task at all is refused where the suite is known.
    lacking = [task for task in asked if task in range(count) and task not in known]
    if not lacking:
        return
    shown = ",".join(map(str, lacking[:SHOWN]))
    plural = "s" if len(lacking) > 1 else ""
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    # Those of the user's choice that have one, if any.
    playable = [task for task in asked if task in known] or known
    raise ValueError(
        f"env.suite={suite!r} has no scripted expert for task{plural} {shown}{more}; play tasks"
        f" that have one with --config.env.tasks={','.join(map(str, playable))}, or {otherwise}"
    )


def _members(suite: str) -> tuple[str, ...]:
    return files.members(suite) or (suite,)
