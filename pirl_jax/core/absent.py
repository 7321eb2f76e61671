"""What is said where this Python lacks a package that everything needs.

`pirl COMMAND` loads a command itself and says so.  Of `python -m pirl_jax.COMMAND` no line runs
before its imports do, so that the package's own __init__.py listens.  Refuses to know commands.
"""

import sys
import traceback
import types

REMEDY = "in a checkout: bash launch/setup.sh once, and source .venv/bin/activate in every shell"
CODE = 2  # as of every error that a user can mend


def sentence(error: ModuleNotFoundError) -> str:
    """What to do about it; "" where a module of ours is missing, which is a fault."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "pirl_jax"):
        return ""
    return f"error: the package {package!r} is not installed for {sys.executable}; {REMEDY}"


def listen() -> None:
    """While a process starts as `python -m ...`; anywhere else nothing changes."""
    if sys.argv[:1] != ["-m"]:  # what it is until the module has been found
        return
    before = sys.excepthook

    def hook(kind: type, error: BaseException, where: types.TracebackType | None) -> None:
        said = ""
        if isinstance(error, ModuleNotFoundError) and _while_importing(where):
            said = sentence(error)
        if not said:
            before(kind, error, where)
            return
        sys.stderr.write(f"{said}\n")
        sys.exit(CODE)

    sys.excepthook = hook


def _while_importing(where: types.TracebackType | None) -> bool:
    """Whether no function of ours had been called: later it is a fault, with its traceback."""
    for frame, _ in traceback.walk_tb(where):
        is_ours = frame.f_globals.get("__name__", "").partition(".")[0] in ("pirl_jax", "__main__")
        if is_ours and frame.f_code.co_name != "<module>":
            return False
    return True
