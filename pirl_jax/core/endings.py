"""Ends of a command that a person can act on: one sentence and an exit code, no traceback.

A ValueError says the same while a command is being set up; later on it is a mistake of ours.
"""


class Failure(Exception):
    """What was under way cannot go on; the text says why and what to do."""

    code = 2
    prefix = "error: "


class Preempted(Failure):
    """Asked to end early: everything is stored, and the same command goes on."""

    code = 75  # EX_TEMPFAIL of sysexits.h: try again later
    prefix = ""
