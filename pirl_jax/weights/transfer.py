"""Plain HTTPS over bad connections: JSON answers, and files that continue where they broke off.

Knows URLs and sizes; no hub, and no checksum.
"""

from collections.abc import Callable
import http.client
import pathlib
import time
from typing import Any
import urllib.error
import urllib.request

import tqdm

from pirl_jax.core import atomic, outside

ATTEMPTS = 5  # in a row that bring no new byte
WAIT_S = 0.5  # doubles with every one of them
TIMEOUT_S = 60.0  # of silence on a connection
BLOCK = 1 << 22  # bytes read at a time
TOO_MANY_REQUESTS = 429
LATER = "try again later, or another hub"


class Incomplete(OSError):
    """A connection ended in order, but before the file did."""


def read_json(url: str) -> dict:
    """The object behind a URL.

    Raises: ConnectionError when the server refuses, or ATTEMPTS in a row fail or bring something
    else.
    """

    def attempt() -> dict:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content = response.read(outside.MOST_BYTES + 1)
        if len(content) > outside.MOST_BYTES:
            raise ValueError(f"{url} answers with more than {outside.MOST_BYTES:,} bytes")
        return outside.part(outside.parse_json(content, url, LATER), "", dict, url, LATER)

    return _retry(url, attempt)


def download(url: str, path: pathlib.Path, size: int, title: str) -> None:
    """Make `path` hold the `size` bytes behind a URL; what an earlier call left unfinished stays.

    title: name of the progress bar.
    Raises: ConnectionError as read_json, where only attempts without a new byte count.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = atomic.unfinished(path)
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=title, disable=None) as bar:

        def attempt() -> None:
            _append(url, unfinished, size, bar)

        _retry(url, attempt, grows=unfinished)
    atomic.publish(path)


def sentence(error: Exception) -> str:
    """What an error says, on one line and not without end."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _append(url: str, path: pathlib.Path, size: int, bar: tqdm.tqdm) -> None:
    """Append what one connection brings."""
    have = _size(path)
    if have > size:
        have = 0  # the leftover of an older version
    bar.update(have - bar.n)
    if have < size or not path.is_file():
        headers = {"Range": f"bytes={have}-"} if have else {}
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            # 206: the part that was asked for.  200: all of it, from the start.
            mode = "ab" if response.status == http.client.PARTIAL_CONTENT else "wb"
            with path.open(mode) as file:
                while block := response.read(BLOCK):
                    if file.tell() + len(block) > size:
                        # A server that goes on and on would fill the disk.
                        raise Incomplete(f"more than the {size} bytes that were listed arrive")
                    file.write(block)
                    bar.update(len(block))
    if _size(path) != size:
        raise Incomplete(f"the connection ended after {_size(path)} bytes")


def _retry(url: str, attempt: Callable[[], Any], grows: pathlib.Path | None = None) -> Any:
    """Repeat an attempt until it returns -> what it returns.

    grows: the file whose new bytes are progress; without one no failure is.
    """
    failures = 0
    cause = ""
    while failures < ATTEMPTS:
        before = _size(grows)
        try:
            return attempt()
        # ValueError: an answer that is no JSON, or too long.
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = sentence(error)
            if _is_final(error):
                break
        failures = 0 if _size(grows) > before else failures + 1
        if failures < ATTEMPTS:
            time.sleep(WAIT_S * 2**failures)
    raise ConnectionError(f"{url}: {cause}")


def _is_final(error: Exception) -> bool:
    """Whether the server has refused for good: 4xx, but for "come back later"."""
    if not isinstance(error, urllib.error.HTTPError):
        return False
    return error.code < 500 and error.code != TOO_MANY_REQUESTS


def _size(path: pathlib.Path | None) -> int:
    if path is None or not path.is_file():
        return 0
    return path.stat().st_size
