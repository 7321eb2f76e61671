"""What test_hubs.py does not show: which failures are tried again, and for how long one waits."""

import http.client
import io
import time
import urllib.error
import urllib.request

import pytest

from pirl_jax.weights import transfer

URL = "http://127.0.0.1:9/x"


@pytest.fixture
def waits(monkeypatch):
    """Seconds waited, none of them really."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def answering(monkeypatch, *answers):
    """One answer per request: bytes, or an error."""
    remaining = list(answers)

    def urlopen(url, timeout):
        answer = remaining.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return remaining


def refusal(code):
    return urllib.error.HTTPError(URL, code, "refused", {}, io.BytesIO())


def test_a_disturbed_answer_is_asked_for_again(monkeypatch, waits):
    disturbed = [http.client.IncompleteRead(b""), TimeoutError(), b"<html>", refusal(503)]
    answering(monkeypatch, *disturbed, b'{"a": 1}')
    assert transfer.read_json(URL) == {"a": 1}
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_patience_ends(monkeypatch, waits):
    failures = [OSError("reset\nby peer")] * transfer.ATTEMPTS
    remaining = answering(monkeypatch, *failures, b"{}")
    with pytest.raises(ConnectionError, match=r"^http://127.0.0.1:9/x: reset by peer$"):
        transfer.read_json(URL)
    assert remaining == [b"{}"]


@pytest.mark.parametrize("code, is_final", [(404, True), (403, True), (429, False), (500, False)])
def test_only_a_refusal_for_good_ends_at_once(monkeypatch, waits, code, is_final):
    answering(monkeypatch, refusal(code), b"{}")
    if is_final:
        with pytest.raises(ConnectionError, match=str(code)):
            transfer.read_json(URL)
        assert not waits
    else:
        assert transfer.read_json(URL) == {}
        assert waits == [1.0]
