"""msgpack from outside: openpi's messages as before, everything else a sentence at little cost."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tracemalloc

import numpy as np
from openpi_client import msgpack_numpy
import pytest

from pirl_jax.serving import client, messages, metadata
from tests import mutants
from tests.serving import test_requests

ROOT = pathlib.Path(__file__).parents[2]
SECRET = "CANARY"  # no sentence and no line of the log repeats it


def test_openpis_own_unpacker_reads_the_same(vectors):
    frames = sorted((vectors / "openpi" / "wire").glob("*.bin"))
    assert len(frames) > 10
    for path in frames:
        frame = path.read_bytes()
        ours = messages.unpack(frame)
        theirs = msgpack_numpy.unpackb(frame)
        assert repr(ours) == repr(theirs), path.name
        assert msgpack_numpy.packb(ours) == msgpack_numpy.packb(theirs) == frame


COUNT = 2**24 - 5
LARGE = {
    "empty maps": b"\xdd" + COUNT.to_bytes(4, "big") + b"\x80" * COUNT,
    "empty maps in lists": (b"\xdc\x10\x00" + b"\x80" * 4096) * 4000,
    "a tree of maps": b"\xdc\x0f\xff" + (b"\xdc\x00\xff" + b"\x80" * 255) * 4095,
    "numbers in lists": b"\xdc\x0f\xff" + (b"\xdc\x0f\xff" + b"\x01" * 4095) * 4095,
    "pairs": b"\xdc\x0f\xff"
    + (b"\x8f" + b"".join(b"\xa1%c\x01" % k for k in range(97, 112))) * 4095,
    "claims": b"\xdd\xff\xff\xff\xff",
    "claims on every level": b"\xdc\x10\x00" * 5_000_000,
    "deep": b"\x91" * 2**24,
    "seventeen levels": b"\x91" * 17 + b"\x01",
}


@pytest.mark.parametrize("name", LARGE)
def test_what_would_become_many_objects_is_refused_before_it_does(name):
    tracemalloc.start()
    start_s = time.monotonic()
    with pytest.raises(ValueError, match="cannot be unpacked: it "):
        messages.unpack(LARGE[name])
    seconds = time.monotonic() - start_s
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The lists of 1,024 open levels, which the library allows, take 34 MB.
    assert peak < 50e6 and seconds < 1


def test_a_message_of_a_real_size_is_fast():
    image = np.zeros((1080, 1920, 3), np.uint8)
    frame = msgpack_numpy.packb({"observation/image": image, "observation/wrist_image": image})
    start_s = time.monotonic()
    unpacked = messages.unpack(frame)
    assert time.monotonic() - start_s < 0.5
    np.testing.assert_array_equal(unpacked["observation/image"], image)


WRONG = {
    "text": ("hello", "a text frame of 5 characters"),
    "twice the same key": (b"\x82\xa1a\x01\xa1a\x02", "the same key twice"),
    "other fields": (
        msgpack_numpy.packb(
            {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [], b"x": 1}
        ),
        "an array has other fields",
    ),
    "not true": (
        msgpack_numpy.packb({b"__ndarray__": 2, b"data": b"", b"dtype": "<f4", b"shape": [0]}),
        "an array has other fields",
    ),
    "no Unicode": (b"\xa2\xff\xfe", "no complete msgpack"),
    "left over": (b"\x01\x01", "no complete msgpack"),
    "nothing": (b"", "no complete msgpack"),
    "number keys": (b"\x81\x01\x01", "text for keys"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_message_is_a_sentence(name):
    frame, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence):
        messages.unpack(frame)


def test_key_names_are_few_short_and_printable():
    assert messages.names({"a": 1, "b": 2}) == "a, b"
    assert messages.names({"x" * 99: 1}) == "x" * 40
    assert messages.names({"\x1b[2J\n": 1}) == r"'\x1b[2J\n'"
    assert messages.names(dict.fromkeys(range(20))).endswith("7 and 12 more")


# ---- mutated frames ----

WORDS = [
    *(b"<f8", b"T", b"O", b"S", b"U", b"|V8", b"<c8", b"<M8", b"\xa1T", b"\xa1O", b"\xa1S"),
    *(b"\xc0", b"\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(
        b"\x80",
        b"\x90",
        b"\xcf" + b"\xff" * 8,
        b"\xd3\x80" + b"\x00" * 7,
        b"\xcb\x7f\xf8" + b"\x00" * 6,
    ),
    *(b"\x91\xff", b"__ndarray__", b"__npgeneric__", b"shape", b"dtype", b"data"),
]


def recorded():
    """An observation that the reading accepts, and answers and metadata of a server."""
    good = msgpack_numpy.packb(test_requests.GOOD | {"prompt": SECRET, "noise_id": 5})
    answer = msgpack_numpy.packb({"actions": np.zeros((10, 7), np.float32), "text": SECRET})
    told = msgpack_numpy.packb({"reset_pose": [0, -1.5], "name": SECRET, "mean": np.float64(2)})
    return good, answer, told


def check(read, frame, outcomes):
    """Read, or refused in a sentence without the secret; nothing else."""
    try:
        read(frame)
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        # Key names are told, and a mutant may have made one of the secret.
        text = re.sub(r"it has [^;)]*", "", str(error))
        assert SECRET not in text and len(str(error)) < 700, str(error)[:1000]
        outcomes["refused"] += 1
    else:
        outcomes["read"] += 1


def read_observation(frame):
    message = messages.unpack(frame)
    if isinstance(message, dict):
        test_requests.read(message)


def read_answer(frame):
    client.actions(messages.unpack(frame, any_key=True), action_chunk=5, action_dim=7)


def read_metadata(frame):
    told = metadata.as_json(messages.unpack(frame, any_key=True))
    assert len(json.dumps(told, allow_nan=False)) < 10**6


def fuzz(seed, count):
    """-> {reader: {outcome: times}}"""
    generator = np.random.default_rng(seed)
    readers = (read_observation, read_answer, read_metadata)
    found = {}
    for reader, whole in zip(readers, recorded(), strict=True):
        reader(whole)
        # Pictures are most of an observation, and of no interest here.
        outcomes = collections.Counter()
        for frame in mutants.mutants(whole, count, generator, WORDS):
            check(reader, frame, outcomes)
        assert outcomes["refused"] and outcomes["read"], outcomes
        found[reader.__name__] = dict(outcomes)
    return found


def fuzz_alone(seed, count, timeout_s):
    """In a process of its own: a crash of it is seen, and so is memory."""
    code = (
        "import resource\n"
        "from tests.serving import test_messages as tests\n"
        f"tests.fuzz({seed} + 1, 300)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"print(tests.fuzz({seed}, {count}))\n"
        "more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert more < 60_000, f'{more} kB'\n"
    )
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_mutated_frames_are_read_or_refused():
    fuzz_alone(seed=0, count=5000, timeout_s=120)


@pytest.mark.slow
def test_many_mutated_frames_are_read_or_refused():
    fuzz_alone(seed=100, count=40_000, timeout_s=600)
