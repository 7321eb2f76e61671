"""Questions to a process of its own: answers, exceptions, crashes, hangs."""

import time

import pytest

from pirl_jax.envs import child

ANSWER = "from pirl_jax.envs import child; child.answer(lambda: {})"


def test_the_answer_is_the_last_line_and_variables_come_and_go(monkeypatch, tmp_path):
    monkeypatch.setenv("TO_REMOVE", "1")
    monkeypatch.chdir(tmp_path)  # the package is found from anywhere
    body = "(print('noise'), {'a': os.environ['A'], 'removed': 'TO_REMOVE' not in os.environ})[1]"
    code = "import os\n" + ANSWER.replace("{}", body)
    assert child.ask(["-c", code], {"A": "1", "TO_REMOVE": None}) == {"a": "1", "removed": True}


@pytest.mark.parametrize(
    "code, reason",
    [
        (ANSWER.replace("{}", "1 / 0"), "^ZeroDivisionError: division by zero$"),
        (ANSWER.replace("{}", "int('x')"), "^invalid literal"),
        ("import nonsense_module", "^ModuleNotFoundError: No module named 'nonsense_module'$"),
        ("import os; os.kill(os.getpid(), 11)", "^crashed with SIGSEGV$"),
        ("import sys; sys.exit(3)", "^ended with exit code 3 and no answer$"),
        ("pass", "^ended with exit code 0 and no answer$"),
    ],
)
def test_what_went_wrong_is_one_clause(code, reason):
    with pytest.raises(child.ChildError, match=reason):
        child.ask(["-c", code])


def test_a_hanging_process_is_killed_in_time():
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    start_s = time.monotonic()
    with pytest.raises(child.ChildError, match=r"no answer within 0.5 s"):
        child.ask(["-c", deaf], timeout_s=0.5)
    assert time.monotonic() - start_s < 5
