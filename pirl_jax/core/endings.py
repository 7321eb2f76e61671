"""Ends of a command that a person can act on: one sentence and an exit code, no traceback.

A ValueError says the same while a command is being set up; later on it is a mistake of ours.
"""

import errno
import os
import re

# How a status of XLA's runtime begins.  It comes as a ValueError where JAX first meets it.
STATUS = re.compile(
    "(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL"
    "|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN): "
)


class Failure(Exception):
    """What was under way cannot go on; the text says why and what to do."""

    code = 2
    prefix = "error: "


class Diverged(Failure):
    """Learning has gone wrong for good; a command that keeps checkpoints may go back to one."""


class Preempted(Failure):
    """Asked to end early: everything is stored, and the same command goes on."""

    code = 75  # EX_TEMPFAIL of sysexits.h: try again later
    prefix = ""


def is_of_runtime(error: BaseException) -> bool:
    """Devices or other hosts are at fault, whatever the kind of the exception says."""
    return isinstance(error, RuntimeError | ValueError) and bool(STATUS.match(str(error)))


def about(error: OSError) -> str | None:
    """The sentence for what the machine refused: place, reason, remedy.

    None where it is none of the machine: a connection, a mistake of ours.
    """
    remedy = REMEDIES.get(error.errno)
    # Without a place, and anything but a full disk, nobody knows what it was about.
    if remedy is None or (error.filename is None and error.errno not in FULL):
        return None
    place = f"{_text(error.filename)}: " if error.filename is not None else ""
    return f"{place}{error.strerror}; {remedy}"


def _text(filename: str | bytes | int) -> str:
    return str(filename) if isinstance(filename, int) else os.fsdecode(filename)


MAKE_SPACE = "make space or choose another place"
PERMIT = "change its permissions or choose another place"
ANOTHER = "choose another place"
# Reasons that a person can mend.
FULL = {
    errno.ENOSPC: MAKE_SPACE,
    errno.EDQUOT: MAKE_SPACE,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f) or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close programs that keep many files open",
}
REMEDIES = FULL | {
    errno.EROFS: ANOTHER,
    errno.EACCES: PERMIT,
    errno.EPERM: PERMIT,
    errno.ENOENT: "give one that exists, or make it first",
    errno.ENOTDIR: "a file lies where a folder is meant; choose another place",
    errno.EISDIR: "a folder lies where a file is meant; choose another place",
    errno.EEXIST: "remove it or choose another place",
    errno.ENOTEMPTY: "empty it or choose another place",
    errno.ENAMETOOLONG: "write a shorter path",
    errno.ELOOP: "its links lead in a circle; mend them or choose another place",
    errno.EIO: "the disk or its network is at fault; choose another place",
    errno.ESTALE: "the network storage has lost it; run the same command again",
    errno.ENODEV: ANOTHER,
    errno.ENXIO: ANOTHER,
    errno.EINVAL: ANOTHER,
    errno.EOPNOTSUPP: ANOTHER,
    errno.ETXTBSY: ANOTHER,
    errno.EBUSY: ANOTHER,
}
