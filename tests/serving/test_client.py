"""The evaluation's side of the protocol, against servers that know nothing of us."""

import contextlib
import json
import time

import msgpack
import numpy as np
from openpi_client import msgpack_numpy
import pytest
from websockets.asyncio import server

from pirl_jax.core import endings
from pirl_jax.envs import base
from pirl_jax.policy import images
from pirl_jax.rollout import stream
from pirl_jax.serving import client, metadata
from tests.serving import conftest

SPEC = base.EnvSpec(
    "fake", ("push", "pick"), num_init_states=6, max_episode_steps=20, image_size_px=256
)


def turn(n):
    draw = np.random.default_rng(0)
    step = base.TimeStep(
        images=draw.integers(0, 256, (n, 2, 256, 256, 3), np.uint8),
        state=draw.normal(size=(n, 8)).astype(np.float32),
        reward=np.zeros(n),
        terminated=np.zeros(n, bool),
        truncated=np.zeros(n, bool),
        num_steps=np.zeros(n),
    )
    return stream.Turn(
        row=np.arange(n),
        slot=np.arange(n),
        episode=np.arange(n),
        decision=np.arange(n) % 3,
        finished=step.terminated,
        task=np.arange(n) % 2,
        step=step,
    )


class Echo:
    """Answers with the state of the observation in every action, and notes what it was asked."""

    def __init__(self, horizon=10):
        self.asked = []
        self.horizon = horizon

    async def __call__(self, message):
        self.asked.append(message)
        return {"actions": np.tile(message["observation/state"][:7], (self.horizon, 1))}


def ask(port, n, chunk=5):
    with client.connect(f"ws://127.0.0.1:{port}", "", n) as remote:
        return client.decide(remote, SPEC, chunk)(turn(n))


def test_openpis_server_is_sent_what_openpis_client_sends(wired):
    echo = Echo()
    now = turn(3)
    actions = ask(wired(echo), 3)
    assert actions.shape == (3, 5, 7)
    np.testing.assert_array_equal(actions, np.repeat(now.step.state[:, None, :7], 5, axis=1))
    state_Q = now.step.state[0].astype(np.float64)
    (message,) = [asked for asked in echo.asked if (asked["observation/state"] == state_Q).all()]
    assert message["observation/state"].dtype == np.float64
    assert message["prompt"] == "push"
    keys = ("observation/image", "observation/wrist_image")
    for key, image in zip(keys, now.step.images[0], strict=True):
        np.testing.assert_array_equal(message[key], images.resize_with_pad(image, 224, 224))
    assert set(message) == {*keys, "observation/state", "prompt"}


def test_our_server_names_its_size_and_takes_the_number_of_the_decision(wired):
    echo = Echo()
    ask(wired(echo, {"image_size_px": 32, "accepts": ["noise_id"]}), 4)
    assert {asked["observation/image"].shape for asked in echo.asked} == {(32, 32, 3)}
    # At most 4 decisions each.
    noise_ids = {asked["noise_id"] for asked in echo.asked}
    assert noise_ids == {0, 1 * 4 + 1, 2 * 4 + 2, 3 * 4}


def test_who_cannot_be_reached_is_named(wired):
    with pytest.raises(ValueError, match=r"HTTP 401: send the header.*give its key with --api-key"):
        ask(wired(Echo(), api_key="secret"), 1)
    with pytest.raises(ValueError, match="cannot be reached"):
        ask("nonsense", 1)
    with pytest.raises(ValueError, match="--api-key has characters"), client.connect("", "a\nb", 1):
        pass


# ---- servers that do something else ----


GOOD = msgpack_numpy.packb({"actions": np.zeros((5, 7))})


class Script:
    """A server that answers the questions of each connection from a list of frames.

    A function is called instead of sending; a connection whose list is at its end is cut.
    """

    def __init__(self, *scripts, greeting=b"\x80"):
        self.scripts = list(scripts)
        self.greetings = [greeting] if isinstance(greeting, bytes) else list(greeting)
        self.asked = []
        self.status = []  # of who comes next, instead of a connection

    def process(self, connection, request):
        return connection.respond(self.status.pop(0), "not now\n") if self.status else None

    async def __call__(self, connection):
        greeting = self.greetings.pop(0) if len(self.greetings) > 1 else self.greetings[0]
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        await connection.send(greeting)
        for step in script:
            self.asked.append(await connection.recv())
            if callable(step):
                await step(connection)
            else:
                await connection.send(step)
        connection.transport.abort()


@pytest.fixture
def scripted():
    """scripted(script) -> port of a server that follows it."""
    with contextlib.ExitStack() as stack:

        def start(script):
            def listen(listener):
                options = dict(process_request=script.process, compression=None, sock=listener)
                return server.serve(script, **options)

            return stack.enter_context(conftest.running(listen))

        yield start


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(client, "RECONNECT_S", 0.3)
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 2**16)


async def hang(connection):
    await connection.wait_closed()


async def break_protocol(connection):
    connection.transport.write(b"\xff\xff\xff\xff")
    await connection.wait_closed()


async def refuse(connection):
    await connection.close(1009, "frame too large")


def packed(actions):
    return msgpack_numpy.packb({"actions": actions})


def array(dtype, shape, data):
    fields = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack_numpy.packb({"actions": fields})


CONTINUES = "the same command continues the evaluation"
WRONG = {
    "an error": (
        "Traceback (most recent call last):\n  a.py\nKeyError: 'joints'\n",
        rf"answered with an error \(KeyError: 'joints'\); mend it, {CONTINUES}$",
    ),
    "an error of control characters": ("\x1b[2J" + "x" * 9000, r"\('\\x1b\[2Jx{296}'\)"),
    "an empty error": ("", r"with an error \(nothing\)"),
    "cut off": (GOOD[:-1], rf"malformed answer .*{CONTINUES}"),
    "no msgpack": (b"\xc1", "malformed answer"),
    "nothing": (b"", "malformed answer"),
    "deep": (b"\x91" * 60000, "malformed answer"),
    "addresses": (array("T", [1], b"8" * 16), "malformed answer.*dtype that is not accepted"),
    "objects": (array("O", [1], b"8" * 8), "malformed answer.*dtype that is not accepted"),
    "a crash of numpy": (array("S", [-1], b""), "malformed answer.*not accepted"),
    "memory that is not there": (
        array("<f8", [10, 7], None),
        "malformed answer.*no string of bytes",
    ),
    "a shape beyond the data": (
        array("<f8", [10, 7], b"8"),
        "malformed answer.*1 bytes instead of",
    ),
    "too long": (b"\x00" * 2**17, rf"broke the protocol .*{CONTINUES}"),
    "no frame": (break_protocol, "broke the protocol"),
    "refused": (refuse, "refused a question .*1009"),
    "no answer": (hang, rf"no answer came in 0 s; start it again, {CONTINUES}"),
    "a number": (msgpack_numpy.packb(3), r"has no actions \(it is no dict\)"),
    "no actions": (msgpack_numpy.packb({"action": 1}), r"has no actions \(it has action\)"),
    "text": (packed("push"), "no array of numbers"),
    "text in an array": (packed(np.array([["1"] * 7] * 5)), "no array of numbers"),
    "truth": (packed(np.ones((5, 7), bool)), "no array of numbers"),
    "uneven": (packed([[0.0] * 7, [0.0] * 6]), "no array of numbers"),
    "a list of text": (packed([["1"] * 7] * 5), "no array of numbers"),
    "a vector": (packed(np.zeros(7)), r"\[7\], which is no matrix .*; serve one observation"),
    "a batch": (packed(np.zeros((1, 5, 7))), r"\[1, 5, 7\], which is no matrix"),
    "short": (packed(np.zeros((4, 7))), r"\[4, 7\], but 5 are .*--config.model.action_chunk=4 and"),
    "another robot": (packed(np.zeros((5, 32))), r"\[5, 32\], but the robot has 7 .*of this robot"),
    "NaN": (packed(np.full((5, 7), np.nan)), rf"not finite; serve another checkpoint, {CONTINUES}"),
    "infinite": (packed(np.full((5, 7), np.inf)), "not finite"),
    "the smallest integer": (packed(np.full((5, 7), -(2**63))), "beyond 100"),
    "absurd": (packed(np.full((5, 7), -101.0)), rf"beyond 100, .*{CONTINUES}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_server_does_wrong_is_one_sentence(name, scripted, impatient):
    frame, sentence = WRONG[name]
    with pytest.raises(endings.Failure, match=sentence) as told:
        ask(scripted(Script([frame])), 1)
    text = str(told.value)
    assert text.startswith("--policy=ws://127.0.0.1:") and text.isprintable() and len(text) < 700


def test_lists_of_numbers_are_actions(scripted):
    rows = [[0.5, 1, 0, 0, 0, 0, -1]] * 6
    np.testing.assert_array_equal(ask(scripted(Script([packed(rows)])), 1)[0], rows[:5])


def test_a_server_that_comes_back_is_asked_the_same(scripted, monkeypatch, caplog):
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.05)
    greeting = msgpack_numpy.packb({"accepts": ["noise_id"]})
    # Two connections are cut when they have asked, the next cannot be had for a while.
    script = Script([hang_up], [GOOD], greeting=greeting)
    port = scripted(script)
    with client.connect(f"ws://127.0.0.1:{port}", "", 2) as remote:
        script.status = [503, 502]
        actions = client.decide(remote, SPEC, 5)(turn(2))
    assert actions.shape == (2, 5, 7)
    asked = [msgpack_numpy.unpackb(frame) for frame in script.asked]
    numbers = sorted(message["noise_id"] for message in asked)
    assert numbers in ([0, 0, 5, 5], [0, 5, 5], [0, 0, 5]), numbers
    assert asked[-1]["prompt"] in SPEC.instructions
    assert caplog.text.count("is lost") == 1 and "looking for it again" in caplog.text


async def hang_up(connection):
    connection.transport.abort()


def test_a_server_that_stays_away_is_one_sentence(scripted, impatient):
    script = Script([hang_up])
    port = scripted(script)
    with client.connect(f"ws://127.0.0.1:{port}", "", 1) as remote:
        script.status = [503] * 1000
        sentence = rf"was lost \(.*HTTP 503: not now\), and none came .* 0 s; start .*{CONTINUES}"
        start_s = time.monotonic()
        with pytest.raises(endings.Failure, match=sentence):
            client.decide(remote, SPEC, 5)(turn(1))
        assert 0.1 < time.monotonic() - start_s < 5


def test_the_server_that_comes_back_must_be_the_same(scripted, impatient):
    another = [msgpack_numpy.packb({"step": step}) for step in (1, 2)]
    with pytest.raises(endings.Failure, match=rf"serves something else .*{CONTINUES}"):
        ask(scripted(Script([hang_up], [GOOD], greeting=another)), 1)
    script = Script([hang_up])
    port = scripted(script)
    with client.connect(f"ws://127.0.0.1:{port}", "", 1) as remote:
        script.status = [401]
        with pytest.raises(endings.Failure, match=r"refuses the key now; give another --api-key"):
            client.decide(remote, SPEC, 5)(turn(1))


ANYTHING = {
    "nothing": None,
    "text": "a server",
    "a list": [1, "x", None],
    "numbers for keys": {1: {2.5: 3}},
    "arrays": {"mean": np.zeros(3), "big": np.zeros((100, 100)), "of": np.float32(2)},
    "bytes": {b"raw": b"\x00\xff"},
    "no numbers": {"a": float("nan"), "b": [float("inf")], "c": np.full(2, -np.inf)},
    "wrong accepts": {"accepts": 5, "image_size_px": 32},
    "a moment": {"when": msgpack.Timestamp(1, 2), "ext": msgpack.ExtType(5, b"x" * 99)},
    "long": {"text": "x" * 50_000, "list": list(range(4000))},
    "control characters": {"\x1b[2J": "\x1b[2J"},
}


@pytest.mark.parametrize("name", ANYTHING)
def test_metadata_may_be_anything(name, scripted):
    greeting = msgpack_numpy.packb(ANYTHING[name])
    port = scripted(Script([GOOD], greeting=greeting))
    with client.connect(f"ws://127.0.0.1:{port}", "", 1) as remote:
        assert client.decide(remote, SPEC, 5)(turn(1)).shape == (1, 5, 7)
    recorded = json.dumps(metadata.as_json(remote.greeting), allow_nan=False)
    assert len(recorded) < 20_000 and json.loads(recorded) == metadata.as_json(remote.greeting)


def test_metadata_that_cannot_be_are_a_sentence(scripted, impatient):
    with pytest.raises(ValueError, match="image_size_px that is no number from 1 to 2048"):
        ask(scripted(Script([GOOD], greeting=msgpack_numpy.packb({"image_size_px": 10**9}))), 1)
    for greeting in (b"\xc1", b"\x91" * 5000, b"\x00" * 2**17):
        with pytest.raises(ValueError, match="cannot be reached"):
            ask(scripted(Script([GOOD], greeting=greeting)), 1)


def test_the_address_in_results_holds_no_password():
    assert client.public("ws://me:secret@host:80/x?token=1") == "ws://host:80/x"
    assert client.public("ws://[::1") == "ws://"
