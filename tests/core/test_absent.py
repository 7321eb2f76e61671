"""A package that this Python lacks.  Whole commands: tests/test_command_lines.py."""

import sys

import pytest

from pirl_jax.core import absent


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def of_module(source):
    """The error of a module of ours with this source."""
    code = compile(source, "a_module", "exec")
    with pytest.raises(ModuleNotFoundError) as raised:
        exec(code, {"__name__": "pirl_jax.a_module", "missing": missing})
    return raised.value


@pytest.fixture
def seen(monkeypatch):
    """What the hook that was there before is told, once somebody has listened."""
    errors = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, where: errors.append(error))
    monkeypatch.setattr(sys, "argv", ["-m"])
    absent.listen()
    return errors


def tell(error):
    # Its first frames are those of this file.
    where = error.__traceback__.tb_next
    sys.excepthook(type(error), error, where)


def test_while_a_command_is_imported_it_is_a_sentence(seen, capsys):
    with pytest.raises(SystemExit) as ending:
        tell(of_module("missing('absl.flags')"))
    said = capsys.readouterr().err
    assert ending.value.code == 2 and said.count("\n") == 1 and not seen
    assert said.startswith(f"error: the package 'absl' is not installed for {sys.executable}; ")


@pytest.mark.parametrize(
    "source",
    ["missing('pirl_jax.gone')", "def main():\n    missing('absl')\nmain()"],
    ids=["a module of ours", "while it works"],
)
def test_a_fault_keeps_its_traceback(seen, source):
    error = of_module(source)
    tell(error)
    assert seen == [error]


def test_elsewhere_nothing_changes(monkeypatch):
    hook = sys.excepthook
    for argv in (["a_script.py"], ["-c"], []):
        monkeypatch.setattr(sys, "argv", argv)
        absent.listen()
    assert sys.excepthook is hook
