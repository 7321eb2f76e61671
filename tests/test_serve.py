"""The policy server: the in-process policy's actions by openpi's keys, many clients, commands."""

import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings

import jax
import numpy as np
from openpi_client import action_chunk_broker, image_tools, msgpack_numpy, websocket_client_policy
import psutil
import pytest
from websockets import exceptions
from websockets.sync import client as plain

from pirl_jax import evaluate, serve
from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec as specs
from pirl_jax.envs import base
from pirl_jax.envs.libero import suite as libero
from pirl_jax.envs.tabletop import suite as tabletop
from pirl_jax.models import pi0
from pirl_jax.monitor import timeline
from pirl_jax.policy import normalize
from pirl_jax.recipes import tabletop_small
from pirl_jax.rollout import stream
from pirl_jax.run import config, evaluation, policies
from pirl_jax.serving import client, requests
from pirl_jax.weights import assets, sources, targets
from tests.serving import conftest, test_tls
from tests.weights import conftest as weights

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = str(ROOT / "configs/tabletop_small.py")
FIELDS = {
    "model.size": "tiny",
    "model.image_size_px": 16,
    "model.max_token_len": 40,
    "model.delta_actions": True,
    "env.image_size_px": 24,
    "env.num_workers": 2,
    "env.max_episode_steps": 30,
    "rollout.num_envs": 4,
    "rollout.num_groups": 1,
    "rollout.lockstep": True,
    "eval.episodes_per_task": 4,
    "eval.num_videos": 0,
    "run.compilation_cache": "",
}


authority = test_tls.authority  # a fixture


def make_run(folder, **fields):
    """Settings and a checkpoint of random weights, with statistics that matter."""
    page = tabletop_small.get_config()
    page.update_from_flattened_dict(FIELDS | fields)
    settings = config.settings(page)
    cfg = settings.policy.network
    draw = np.random.default_rng(0)
    params = {}
    for path, leaf in specs.flatten(pi0.specs(cfg)).items():
        params[path] = 0.1 * draw.standard_normal(leaf.shape, np.float32)
    targets.write_pirl(folder, weights.memory_source(params, cfg))

    def stats(dim):
        return normalize.Stats(draw.normal(size=dim) / 10, draw.uniform(0.2, 0.4, dim))

    norm_stats = normalize.NormStats(stats(8), stats(7))
    normalize.save(folder / "assets" / "norm_stats.json", norm_stats)
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, make_run(folder)


def prepare(folder, settings, max_batch=4):
    values = types.SimpleNamespace(checkpoint=str(folder), iteration=-1, max_batch=max_batch)
    return serve.prepare(values, settings)


@pytest.fixture(scope="module")
def served(run):
    """-> engine, metadata, port."""
    engine, metadata = prepare(*run)
    engine.compile()
    with conftest.running(lambda listener: serve.serving(engine, metadata, listener)) as port:
        yield engine, metadata, port


@contextlib.contextmanager
def openpi_client(port, api_key=None):
    with warnings.catch_warnings():
        # openpi-client 0.1.2 calls websockets as version 16 wanted it; 17 still allows that.
        sentence = "connect.. must be used as a context manager"
        warnings.filterwarnings("ignore", sentence, DeprecationWarning)
        policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key)
    yield policy
    policy._ws.close()


def observation(k):
    """The k-th of many clients' observations."""
    draw = np.random.default_rng(k)
    images = draw.integers(0, 256, (2, 16, 16, 3), np.uint8)
    return requests.write(images, draw.normal(size=8), f"push {k % 7}", 16) | {"noise_id": k}


def turn_of(steps, spec):
    """Row k plays task k mod num_tasks and stands at its k-th decision."""
    n = len(steps)
    zeros = np.zeros(n)
    step = base.TimeStep(
        images=np.stack([step.images for step in steps]),
        state=np.stack([step.state for step in steps]),
        reward=zeros,
        terminated=zeros > 0,
        truncated=zeros > 0,
        num_steps=zeros,
    )
    return stream.Turn(
        row=np.arange(n),
        slot=np.arange(n),
        episode=np.arange(n) + 3,
        decision=np.arange(n),
        finished=zeros > 0,
        task=np.arange(n) % spec.num_tasks,
        step=step,
    )


def in_process(folder, settings, spec, batch_size):
    """The decision function of `evaluate --checkpoint`."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    params, stats = policies.load_policy(settings, folder, -1, mesh)
    actor = policies.actor(
        settings, mesh, policies.transform(settings, stats, spec.instructions), spec.instructions
    )
    return evaluation.network(settings, mesh, actor, params, spec, batch_size, timeline.Timers())


def through_openpis_keys(turn, spec, chunk, port):
    """Each row by the unmodified client, its observation made as in openpi's LIBERO example."""
    actions = []
    limit = -(-spec.max_episode_steps // chunk)
    with openpi_client(port) as policy:
        size_px = policy.get_server_metadata()["image_size_px"]

        def resized(image):
            small = image_tools.resize_with_pad(image, size_px, size_px)
            return image_tools.convert_to_uint8(small)

        for i, task in enumerate(turn.task):
            agentview, wrist = turn.step.images[i]
            message = {
                "observation/image": resized(agentview),
                "observation/wrist_image": resized(wrist),
                "observation/state": turn.step.state[i].astype(np.float64),
                "prompt": str(spec.instructions[task]),
                "noise_id": int(turn.episode[i] * limit + turn.decision[i]),
            }
            actions.append(policy.infer(message)["actions"][:chunk])
    return np.stack(actions)


def by_remote(turn, spec, chunk, port):
    """The decision function of `evaluate --policy ws://`."""
    with client.connect(f"ws://127.0.0.1:{port}", "", len(turn.row)) as remote:
        return client.decide(remote, spec, chunk)(turn)


def test_tabletop_through_openpis_keys_gives_the_actions_of_the_in_process_policy(run, served):
    folder, settings = run
    engine, _, port = served
    env = tabletop.make(image_size_px=24, render_quality="light")
    turn = turn_of([env.reset(task=k, init_state=800 + k) for k in range(4)], env.spec)
    env.close()
    expected = in_process(folder, settings, env.spec, 4)(turn)
    assert expected.std(axis=0).min() > 1e-3, "rows and actions must differ to mean something"
    chunk = settings.policy.model.action_chunk
    # Batches form by timing: equal up to rounding.
    remote = by_remote(turn, env.spec, chunk, port)
    np.testing.assert_allclose(remote, expected, rtol=0, atol=1e-5)
    batch_sizes = engine.batch_sizes
    engine.batch_sizes = (4,)
    remote = by_remote(turn, env.spec, chunk, port)
    single = through_openpis_keys(turn, env.spec, chunk, port)
    engine.batch_sizes = batch_sizes
    np.testing.assert_array_equal(remote, expected)  # one batch size: bit for bit
    np.testing.assert_array_equal(single, expected)


@pytest.mark.slow
def test_libero_through_openpis_keys_gives_the_actions_of_the_in_process_policy(
    tmp_path, libero_assets
):
    """Real pictures of 256 px, which the client shrinks to the model's 224.

    The second one is after a chunk of actions.
    """
    fields = {
        "model.image_size_px": 224,
        "model.max_token_len": 120,
        "env.suite": "libero_spatial",
        "env.image_size_px": 256,
        "env.max_episode_steps": 0,
    }
    settings = make_run(tmp_path, **fields)
    env = libero.make(
        "libero_spatial", assets=libero_assets, render_quality="light", cached_tasks=1
    )
    steps = [env.reset(task=0, init_state=40), env.step_chunk(np.full((5, 7), 0.3))]
    env.close()
    turn = turn_of(steps, env.spec)
    chunk = settings.policy.model.action_chunk
    expected = in_process(tmp_path, settings, env.spec, 2)(turn)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    engine, metadata = prepare(tmp_path, settings)
    engine.batch_sizes = (2,)
    with conftest.running(lambda listener: serve.serving(engine, metadata, listener)) as port:
        assert metadata["image_size_px"] == client.IMAGE_SIZE_PX == 224
        np.testing.assert_array_equal(by_remote(turn, env.spec, chunk, port), expected)
        np.testing.assert_array_equal(through_openpis_keys(turn, env.spec, chunk, port), expected)


def test_answers_are_those_of_openpi_in_form(served):
    _, metadata, port = served
    with openpi_client(port) as policy:
        assert policy.get_server_metadata() == metadata
        first, second = policy.infer(observation(1)), policy.infer(observation(1))
        assert list(first) == ["actions", "policy_timing", "server_timing"]
        assert list(first["policy_timing"]) == list(first["server_timing"]) == ["infer_ms"]
        assert list(second["server_timing"]) == ["infer_ms", "prev_total_ms"]
        assert first["actions"].shape == (10, 7) and first["actions"].dtype == np.float64
        np.testing.assert_array_equal(first["actions"], second["actions"])
        broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=5)
        steps = [broker.infer(observation(1))["actions"] for _ in range(6)]
        np.testing.assert_array_equal(steps, [*first["actions"][:5], first["actions"][0]])


def test_requests_without_a_number_draw_fresh_noise(served):
    message = observation(1)
    del message["noise_id"]
    with openpi_client(served[2]) as policy:
        actions = [policy.infer(message)["actions"] for _ in range(3)]
    for before, after in itertools.pairwise(actions):
        assert np.abs(after - before).max() > 1e-2


def test_a_result_does_not_depend_on_its_companions(served):
    """Bit for bit in batches of one size, wherever the row stands; up to rounding between sizes."""
    engine = served[0]

    def rows(*ks):
        return [requests.read(observation(k), engine.actor.transform, 0) for k in ks]

    expected = engine(rows(1, 2, 3, 4))[0]["actions"]
    for others, at in (((5, 6, 7), 0), ((8, 5), 1), ((9, 9, 9), 3)):
        ks = [*others[:at], 1, *others[at:]]
        np.testing.assert_array_equal(engine(rows(*ks))[at]["actions"], expected)
    for others in ((), (5,)):
        actions = engine(rows(1, *others))[0]["actions"]
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


def test_nothing_compiles_once_the_port_is_open(served):
    engine, _, port = served
    shapes = []
    num_compiled = engine.actor.exploit._cache_size()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(openpi_client(port)) for _ in range(4)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for n in (1, 2, 3, 4):
                answers = pool.map(lambda policy: policy.infer(observation(2)), clients[:n])
                shapes += [answer["actions"].shape for answer in answers]
    assert shapes == [(10, 7)] * 10
    assert engine.actor.exploit._cache_size() == num_compiled
    assert engine.batch_sizes == (1, 2, 4)


def test_a_bad_observation_ends_its_own_connection_only(served):
    _, _, port = served
    nan_state = {"observation/state": np.full(8, np.nan)}
    grey_image = {"observation/image": np.zeros((16, 16), np.uint8)}
    cases = (
        (nan_state, r"observation/state: .* not finite; send 8 finite numbers"),
        (grey_image, "send uint8"),
        ({"prompt": 7}, "prompt is a int; send a string"),
        ({"prompt": "push " * 40}, "max_token_len is 40"),
    )
    with openpi_client(port) as bystander:
        expected = bystander.infer(observation(3))["actions"]
        for change, sentence in cases:
            with openpi_client(port) as policy, pytest.raises(RuntimeError, match=sentence) as told:
                policy.infer(observation(3) | change)
            head = "Error in inference server:\nTraceback (most recent call last):"
            assert head in str(told.value)
            actions = bystander.infer(observation(3))["actions"]
            np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


def test_a_foreign_checkpoint_is_served_as_the_run_it_came_from(run, served, tmp_path):
    folder, settings = run
    targets.WRITERS["openpi_torch"](tmp_path, sources.open_source(folder))
    assets.save(tmp_path, normalize.load(folder / "assets" / "norm_stats.json"), "openpi_torch")
    engine, metadata = prepare(tmp_path, settings)
    assert metadata["checkpoint"]["run"] == str(tmp_path)
    row = requests.read(observation(1), engine.actor.transform, 0)
    np.testing.assert_array_equal(engine([row])[0]["actions"], served[0]([row])[0]["actions"])


def test_actions_that_are_not_finite_are_an_error(run):
    engine, metadata = prepare(*run, max_batch=1)
    engine.params = jax.tree.map(lambda leaf: leaf * np.nan, engine.params)
    with (
        conftest.running(lambda listener: serve.serving(engine, metadata, listener)) as port,
        openpi_client(port) as policy,
        pytest.raises(RuntimeError, match="not finite"),
    ):
        policy.infer(observation(1))


# ---- load ----


def load(port, num_clients, num_requests, expected, watch=lambda: None):
    """Clients that ask as fast as they are answered -> seconds of each request.

    Every answer must be its own.
    """
    left = collections.deque(range(num_requests))
    latency_s = []
    lock = threading.Lock()

    def work(policy):
        while True:
            with lock:
                if not left:
                    return
                k = left.popleft() % len(expected)
                watch()
            start_s = time.perf_counter()
            actions = policy.infer(observation(k))["actions"]
            latency_s.append(time.perf_counter() - start_s)
            np.testing.assert_allclose(actions, expected[k], rtol=0, atol=1e-5)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(openpi_client(port)) for _ in range(num_clients)]
        with concurrent.futures.ThreadPoolExecutor(num_clients) as pool:
            list(pool.map(work, clients))
    return np.array(latency_s)


def expectation(engine, count=16):
    rows = [requests.read(observation(k), engine.actor.transform, 0) for k in range(count)]
    expected = np.stack([engine([row])[0]["actions"] for row in rows])
    apart = np.abs(expected[:, None] - expected[None]).max((2, 3)) + np.eye(count)
    assert apart.min() > 1e-2, "answers must differ for a mix-up to be seen"
    return expected


@contextlib.contextmanager
def nuisance(port):
    """Clients that come and go beside the others.

    They drop their request, stop in its middle, or send what is none.
    """
    stop = threading.Event()
    rounds = []

    def work():
        whole = msgpack_numpy.packb(observation(99))
        while not stop.is_set():
            with plain.connect(f"ws://127.0.0.1:{port}", compression=None) as connection:
                connection.recv()
                if len(rounds) % 3 < 2:
                    # A binary frame of 16 bits length, masked with zeros; the first time without
                    # its end.
                    head = b"\x82\xfe" + len(whole).to_bytes(2, "big") + bytes(4)
                    num_bytes = None if len(rounds) % 3 else 900
                    connection.socket.sendall((head + whole)[:num_bytes])
                    connection.socket.shutdown(socket.SHUT_RDWR)
                else:
                    connection.send(whole[:-1])
                    assert "cannot be unpacked" in connection.recv()
            rounds.append(None)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield rounds
        finally:
            stop.set()
            working.result()


def test_many_clients_get_their_own_results(served):
    engine, _, port = served
    with nuisance(port) as rounds:
        latency_s = load(port, num_clients=8, num_requests=200, expected=expectation(engine))
    assert len(latency_s) == 200 and len(rounds) > 3


@contextlib.contextmanager
def command(folder, *arguments, **environment):
    """python -m pirl_jax.serve -> (process, lines it said, port)."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    argv = [
        sys.executable,
        "-m",
        "pirl_jax.serve",
        "--checkpoint",
        str(folder),
        "--config",
        RECIPE,
        "--port=0",
    ]
    with subprocess.Popen(
        [*argv, *fields, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            # Before them it says which checkpoint that is, and what was taken from its files.
            said = [process.stdout.readline()]
            while said[-1] and not said[-1].startswith("compiled"):
                said.append(process.stdout.readline())
            assert any(str(folder) in line for line in said), said
            lines = [said[-1], process.stdout.readline()]
            yield process, lines, int(re.search(r"wss?://127.0.0.1:(\d+)", lines[1])[1])
        finally:
            process.kill()


@pytest.mark.slow
def test_two_thousand_requests_of_32_clients(run, served, capsys):
    """None lost, memory flat: a first round warms allocators and caches, a second must not add."""
    expected = expectation(served[0])
    with command(run[0], "--max-batch=16") as (process, _, port):
        memory = psutil.Process(process.pid)
        seen_mb = []

        def watch():
            seen_mb.append(memory.memory_info().rss / 1e6)

        with nuisance(port):
            load(port, 32, 1000, expected)
            start_s = time.perf_counter()
            latency_s = load(port, 32, 2000, expected, watch)
            rate = 2000 / (time.perf_counter() - start_s)
        p50, p99 = 1e3 * np.quantile(latency_s, (0.5, 0.99))
        first, last = np.mean(seen_mb[:200]), np.mean(seen_mb[-200:])
    with capsys.disabled():
        print(
            f"\n2000 answered, {rate:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
            f"RSS {first:.0f} -> {last:.0f} MB"
        )
    assert len(latency_s) == 2000 and last - first < 10


# ---- the commands ----


@pytest.mark.slow
def test_evaluate_against_a_server_repeats_the_evaluation_in_process(run, tmp_path, monkeypatch):
    """Both commands as a user types them, with a key.

    One simulator, so that batches are equal and so is every pixel of every video.  The server ends
    with SIGTERM.
    """
    folder, _ = run
    make_mesh = meshes.make_mesh

    def of_one_device(*args, **_):
        return make_mesh(*args, devices=jax.devices()[:1])

    monkeypatch.setattr(meshes, "make_mesh", of_one_device)
    alone = FIELDS | {"rollout.num_envs": 1, "env.num_workers": 1}
    fields = [f"--config.{name}={value}" for name, value in alone.items()]
    arguments = ["evaluate", "--config", RECIPE, *fields, "--videos=all"]
    evaluate.main([*arguments, "--checkpoint", str(folder), "--output", str(tmp_path / "ours")])
    with command(folder, "--max-batch=4", PIRL_API_KEY="secret") as (process, lines, port):
        assert re.match(r"compiled for batches of 1, 2, 4 in [\d.]+ s", lines[0]), lines
        assert lines[1] == f"serving on ws://127.0.0.1:{port}, with an API key\n"
        policy = ["--policy", f"ws://127.0.0.1:{port}", "--output", str(tmp_path / "served")]
        with pytest.raises(SystemExit):
            evaluate.main([*arguments, *policy])
        evaluate.main([*arguments, *policy, "--api-key=secret"])
        with openpi_client(port, "secret") as idle:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            with pytest.raises(exceptions.ConnectionClosedOK, match="1001"):
                idle.infer(observation(1))
    ours = json.loads((tmp_path / "ours" / "evaluation.json").read_text())
    theirs = json.loads((tmp_path / "served" / "evaluation.json").read_text())
    assert ours["episodes"] == theirs["episodes"] and len(ours["episodes"]) == 4
    films = videos(tmp_path / "ours")
    assert films == videos(tmp_path / "served") and len(films) == 4
    assert ours["protocol"] == theirs["protocol"]
    assert theirs["policy"]["name"] == f"ws://127.0.0.1:{port}"
    assert theirs["policy"]["server"]["checkpoint"]["run"] == str(folder)


@pytest.mark.slow
def test_a_policy_is_served_and_evaluated_over_tls(run, authority, tmp_path, capsys):
    """Both commands as a user types them; an evaluation that trusts somebody else is refused."""
    files = authority("server.pem"), authority("server.key")
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    with command(run[0], "--tls", *files, "--api-key=secret") as (_, lines, port):
        assert lines[1] == f"serving on wss://127.0.0.1:{port}, with an API key\n"
        policy = [f"--policy=wss://127.0.0.1:{port}", "--api-key=secret"]
        argv = ["evaluate", "--config", RECIPE, *fields, *policy, "--output", str(tmp_path)]
        with pytest.raises(SystemExit):
            evaluate.main(argv)
        assert "give the certificate of who signed" in capsys.readouterr().err
        evaluate.main([*argv, "--tls-ca", authority("ca.pem")])
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(written["episodes"]) == 4 and "secret" not in json.dumps(written)


def videos(folder):
    return {path.name: path.read_bytes() for path in (folder / "videos").iterdir()}


@pytest.mark.parametrize(
    "main, arguments, sentence",
    [
        (serve.main, ["--port=0"], "--checkpoint is missing"),
        (
            evaluate.main,
            ["--policy=ws://127.0.0.1:1"],
            "--policy=ws://127.0.0.1:1 cannot be reached",
        ),
        (serve.main, ["--checkpoint=x", "--tls", "/no", "/key"], "--tls /no /key cannot be used"),
        (
            evaluate.main,
            ["--policy=ws://127.0.0.1:1", "--tls-ca=/x"],
            "--tls-ca=/x has no effect without --policy=wss://HOST:PORT",
        ),
        (
            evaluate.main,
            ["--policy=wss://127.0.0.1:1", "--tls-ca=/nowhere"],
            "--tls-ca /nowhere cannot be used",
        ),
        (
            evaluate.main,
            ["--policy=ws://me:secret@127.0.0.1:1"],
            "--policy=ws://127.0.0.1:1 cannot be reached",
        ),
        (evaluate.main, ["--policy=ws://127.0.0.1:99999"], "cannot be reached"),
        (evaluate.main, ["--policy=ws://"], "cannot be reached"),
        (
            evaluate.main,
            ["--policy=http://x"],
            "--policy='http://x' does not exist; choose one of: checkpoint, ",
        ),
    ],
)
def test_mistakes_are_sentences(main, arguments, sentence, capsys):
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    with pytest.raises(SystemExit) as caught:
        main(["command", "--config", RECIPE, *fields, *arguments])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_port_that_is_taken_is_a_sentence(run, capsys):
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [f"--checkpoint={run[0]}", f"--port={port}"]
        with pytest.raises(SystemExit) as caught:
            serve.main(["command", "--config", RECIPE, *fields, *arguments])
    assert caught.value.code == 2
    assert f"--port={port} cannot be used" in capsys.readouterr().err


def test_the_port_is_closed_until_the_server_listens():
    with contextlib.closing(serve.bind("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
