"""Serve a policy to robots and evaluations, over openpi's WebSocket protocol.

    python -m pirl_jax.serve --checkpoint runs/quickstart --port 8000
    pirl serve --checkpoint pi05_libero --config libero_spatial_ppo_pi05 --host 0.0.0.0

For openpi-client or any other client of that protocol.  Requests of all clients are computed
together, on the first device; actions carry no exploration noise.  Everything is compiled before
the port opens.  Ends with SIGINT, SIGTERM or SIGHUP.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
import contextlib
import dataclasses
import itertools
import os
import socket
import ssl
import sys
import time

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.envs import child
from pirl_jax.envs.libero import files
from pirl_jax.policy import observation
from pirl_jax.rollout import actor as actors
from pirl_jax.run import checkpoints, command, config, devices, machine, policies, preemption
from pirl_jax.serving import batching, requests, tls

MOST_ROWS = 4096  # of a batch: each of its powers of two is compiled
LONGEST_WINDOW_MS = 60_000


@dataclasses.dataclass
class Engine:
    """Requests -> answers, as one batch.

    A row's start noise goes by its own number: its companions do not matter.
    """

    actor: actors.Actor
    params: dict
    key: jax.Array
    batch_sizes: tuple[int, ...]  # ascending; a batch is padded to the next of them

    def __call__(self, batch: list[requests.Request]) -> list[dict]:
        """At most batch_sizes[-1] requests -> what each client gets, in their order."""
        start_s = time.monotonic()
        size = next(size for size in self.batch_sizes if size >= len(batch))
        # Compiled are these sizes only; what fills one up is computed and thrown away.
        padding = [batch[0]] * (size - len(batch))
        rows = batch + padding
        images_BVYX3 = np.stack([row.images for row in rows])
        state_BQ = np.stack([row.state for row in rows])
        prompts = [row.prompt for row in rows]
        id_B = np.array([row.noise_id for row in rows], np.uint32)
        obs = observation.encode(self.actor.transform, images_BVYX3, state_BQ, prompts)
        # Only the two named transfers: here to the device, and back.
        with jax.transfer_guard("disallow"):
            on_device = self.actor.put((id_B, obs))
            actions_BHA = self.actor.exploit(self.params, self.key, *on_device)
            actions_BHA = jax.device_get(actions_BHA)
        actions_BHA = observation.decode(self.actor.transform, actions_BHA, state_BQ)
        actions_BHA = actions_BHA[: len(batch)].astype(np.float64)  # as openpi's transforms leave
        timing = {"infer_ms": 1e3 * (time.monotonic() - start_s)}
        return [{"actions": actions_HA, "policy_timing": timing} for actions_HA in actions_BHA]

    def compile(self) -> None:
        """Every batch size once."""
        transform = self.actor.transform
        size_px = transform.image_size_px
        blank_VYX3 = np.zeros((len(requests.IMAGES), size_px, size_px, 3), np.uint8)
        state_Q = np.zeros(transform.env_state_dim)
        request = requests.Request(blank_VYX3, state_Q, prompt="", noise_id=0)
        for size in self.batch_sizes:
            self([request] * size)


@preemption.watching("the policy was not served yet")
def main(argv: list[str]) -> None:
    """The command, until the signal that ends it; argv as sys.argv, the program's name first."""
    with contextlib.ExitStack() as stack:
        with command.user_errors():
            values, raw = command.parse(argv, _parser())
            machine.require_openpi_client()
            _check(values)
            # Before the checkpoint is read, which takes minutes: bad files and a port that is
            # taken are told now.
            encrypted = tls.server_context(*values.tls) if values.tls else None
            listener = stack.enter_context(bind(values.host, values.port))
            if values.checkpoint:
                raw = checkpoints.agreed(raw, values.checkpoint, values.iteration, values.fields)
            engine, metadata = prepare(values, config.settings(raw))
        start_s = time.monotonic()
        engine.compile()
        seconds = time.monotonic() - start_s
        sizes = ", ".join(map(str, engine.batch_sizes))
        print(f"compiled for batches of {sizes} in {seconds:.1f} s", flush=True)
        api_key = values.api_key or os.environ.get("PIRL_API_KEY", "")
        window_s = 1e-3 * values.window_ms
        asyncio.run(_until_signal(engine, metadata, listener, api_key, window_s, encrypted))


def _parser() -> command.Parser:
    """The command's own flags."""
    parser = command.Parser("pirl serve", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=command.path,
        help="run directory, or a checkpoint of a known format",
    )
    parser.add_argument(
        "--iteration",
        type=command.number(int, -1),
        default=-1,
        help="which checkpoint of a run or step of an experiment; -1 = the newest",
    )
    parser.add_argument(
        "--host",
        type=command.text,
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 = all",
    )
    parser.add_argument("--port", type=int, default=8000, help="0 = any free one")
    parser.add_argument(
        "--api-key", type=command.key, help="clients must send it; default $PIRL_API_KEY"
    )
    parser.add_argument(
        "--tls",
        nargs=2,
        type=command.path,
        metavar=("CERT", "KEY"),
        help="serve wss:// with this certificate and private key, PEM files",
    )
    parser.add_argument("--max-batch", type=int, default=8, help="most requests computed together")
    parser.add_argument(
        "--window-ms", type=float, default=4.0, help="how long a request waits for companions"
    )
    return parser


def _check(values: argparse.Namespace) -> None:
    """Numbers on the command line that make no sense."""
    if not 0 <= values.port <= 65535:
        raise ValueError(f"--port={values.port} must lie between 0 and 65535")
    if not 1 <= values.max_batch <= MOST_ROWS:
        raise ValueError(
            f"--max-batch={values.max_batch} must be at least 1 and at most {MOST_ROWS}"
        )
    if not 0 <= values.window_ms <= LONGEST_WINDOW_MS:
        raise ValueError(
            f"--window-ms={values.window_ms} must be a time of at least 0"
            f" and at most {LONGEST_WINDOW_MS}"
        )


def bind(host: str, port: int) -> socket.socket:
    """Takes the port without opening it: who connects is refused until the server listens.

    Raises:
        ValueError: the address is not ours, or the port is taken.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A server that ended a moment ago keeps nobody from taking its port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        remedy = "choose others, or --port=0 for any free one"
        raise ValueError(
            f"--host={host} --port={port} cannot be used ({error}); {remedy}"
        ) from error
    return listener


def prepare(values: argparse.Namespace, settings: config.Settings) -> tuple[Engine, dict]:
    """The policy on the first device -> engine, metadata for the clients.

    Raises:
        ValueError: there is no such checkpoint, or it does not fit the settings.
    """
    if not values.checkpoint:
        raise ValueError(
            "--checkpoint is missing; give the directory of a run or a checkpoint of a known format"
        )
    devices.setup_jax(settings)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    with checkpoints.held(values.checkpoint, values.iteration) as place:
        opened = policies.look(settings, place)
        params = policies.load(settings, opened, mesh, acts=True)
        identity = checkpoints.identity(place) | {"found": opened.record.as_json()}
    # The prompts are the clients'; each is checked as it comes.
    transform = policies.transform(settings, opened.stats, [""])
    engine = Engine(
        actor=policies.actor(settings, mesh, transform, ()),
        params=params,
        key=policies.evaluation_key(settings, mesh),
        batch_sizes=_batch_sizes(values.max_batch),
    )
    metadata = {
        "server": "pirl_jax",
        "checkpoint": identity,
        "suite": files.title(settings.raw.env.suite),
        "seed": settings.raw.seed,
        "action_horizon": settings.policy.network.action_horizon,
        "action_chunk": settings.policy.model.action_chunk,
        "image_size_px": settings.raw.model.image_size_px,
        "accepts": [requests.NOISE_ID],
    }
    return engine, metadata


def _batch_sizes(max_batch: int) -> tuple[int, ...]:
    """The powers of two below max_batch, and max_batch: at most half of a batch is padding."""
    sizes = []
    size = 1
    while size < max_batch:
        sizes.append(size)
        size *= 2
    return (*sizes, max_batch)


async def _until_signal(
    engine: Engine,
    metadata: dict,
    listener: socket.socket,
    api_key: str,
    window_s: float,
    encrypted: ssl.SSLContext | None,
) -> None:
    stop = asyncio.Event()
    for number in child.ENDING:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(engine, metadata, listener, api_key, window_s, encrypted):
        host, port = listener.getsockname()[:2]
        key = "with" if api_key else "without"
        # Flushed: a program that starts this one waits for the line, and reads the port there.
        scheme = "wss" if encrypted else "ws"
        print(f"serving on {scheme}://{host}:{port}, {key} an API key", flush=True)
        await stop.wait()


@contextlib.asynccontextmanager
async def serving(
    engine: Engine,
    metadata: dict,
    listener: socket.socket,
    api_key: str = "",
    window_s: float = 0.004,
    encrypted: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """The open server.

    api_key: what clients must send; "": nothing.
    encrypted: None: in the clear.
    window_s: how long a request waits for companions.
    """
    from pirl_jax.serving import wire  # needs openpi-client, which pip cannot bring along

    arrivals = itertools.count()
    batcher = batching.Batcher(engine, engine.batch_sizes[-1], window_s)
    with contextlib.closing(batcher):

        def read(message: dict) -> requests.Request:
            return requests.read(message, engine.actor.transform, next(arrivals))

        async def answer(request: requests.Request) -> dict:
            future = batcher.submit(request, expected=len(server.connections))
            result = await asyncio.wrap_future(future)
            if not np.isfinite(result["actions"]).all():
                raise RuntimeError("the policy's actions are not finite; serve another checkpoint")
            return result

        async with wire.listen(answer, metadata, api_key, read, encrypted, sock=listener) as server:
            yield


if __name__ == "__main__":
    main(sys.argv)
