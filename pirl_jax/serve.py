"""Serve a policy to robots and evaluations: openpi's WebSocket protocol, for openpi-client or any other of its clients.

    python -m pirl_jax.serve --checkpoint runs/quickstart --port 8000
    python -m pirl_jax.serve --checkpoint pi05_libero --config configs/libero_spatial_ppo_pi05.py --host 0.0.0.0

Requests of all clients are computed together, on the first device; actions carry no exploration noise.  Everything is
compiled before the port opens.  Ends with SIGINT or SIGTERM.
"""

import asyncio
from concurrent import futures
import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import sys
import time

from absl import flags
import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.policy import observation
from pirl_jax.rollout import actor as actors
from pirl_jax.run import command, config, devices, policies
from pirl_jax.serving import batching, requests, wire


@dataclasses.dataclass
class Engine:
    """Requests -> answers, as one batch.  A row's start noise goes by its own number: its companions do not matter."""

    actor: actors.Actor
    params: dict
    key: jax.Array
    batch_sizes: tuple[int, ...]  # ascending; a batch is padded to the next of them

    def __call__(self, asked: list[requests.Request]) -> list[dict]:
        start_s = time.monotonic()
        size = next(size for size in self.batch_sizes if size >= len(asked))
        rows = asked + asked[:1] * (size - len(asked))
        id_B = np.array([row.noise_id for row in rows], np.uint32)
        state_BS = np.stack([row.state for row in rows])
        prompts = [row.prompt for row in rows]
        obs = observation.encode(
            self.actor.transform, np.stack([row.images for row in rows]), state_BS, prompts
        )
        with jax.transfer_guard("disallow"):
            actions_BHA = jax.device_get(
                self.actor.exploit(self.params, self.key, *self.actor.put((id_B, obs)))
            )
        actions_BHA = observation.decode(self.actor.transform, actions_BHA, state_BS)
        timing = {"infer_ms": 1e3 * (time.monotonic() - start_s)}
        # openpi's transforms leave float64.
        return [
            {"actions": x_HA.astype(np.float64), "policy_timing": timing}
            for x_HA in actions_BHA[: len(asked)]
        ]

    def compile(self) -> None:
        """Every batch size once."""
        transform = self.actor.transform
        size_px = transform.image_size_px
        blank = np.zeros((len(requests.IMAGES), size_px, size_px, 3), np.uint8)
        row = requests.Request(blank, np.zeros(transform.env_state_dim), "", 0)
        for size in self.batch_sizes:
            self([row] * size)


def main(argv):
    with contextlib.ExitStack() as stack:
        with command.user_errors():
            values, raw = command.parse(argv, _flags)
            listener = stack.enter_context(bind(values.host, values.port))
            engine, metadata = prepare(values, config.settings(raw))
        start_s = time.monotonic()
        engine.compile()
        sizes, seconds = ", ".join(map(str, engine.batch_sizes)), time.monotonic() - start_s
        print(f"compiled for batches of {sizes} in {seconds:.1f} s", flush=True)
        api_key = values.api_key or os.environ.get("PIRL_API_KEY", "")
        asyncio.run(_until_signal(engine, metadata, listener, api_key, 1e-3 * values.window_ms))


def _flags(values):
    flags.DEFINE_string(
        "checkpoint", None, "run directory, or a checkpoint of a known format", flag_values=values
    )
    flags.DEFINE_integer(
        "iteration", -1, "which checkpoint of a run; -1 = the newest", flag_values=values
    )
    flags.DEFINE_string(
        "host", "127.0.0.1", "address to listen on; 0.0.0.0 = all", flag_values=values
    )
    flags.DEFINE_integer("port", 8000, "0 = any free one", 0, 65535, flag_values=values)
    flags.DEFINE_string(
        "api_key", None, "clients must send it; default $PIRL_API_KEY", flag_values=values
    )
    flags.DEFINE_integer("max_batch", 8, "most requests computed together", 1, flag_values=values)
    flags.DEFINE_float(
        "window_ms", 4.0, "how long a request waits for companions", 0.0, flag_values=values
    )


def bind(host: str, port: int) -> socket.socket:
    """Takes the port without opening it: who connects is refused until the server listens."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
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


def prepare(values, settings) -> tuple[Engine, dict]:
    """The policy on the first device -> engine, metadata for the clients."""
    if not values.checkpoint:
        raise ValueError(
            "--checkpoint is missing; give the directory of a run or a checkpoint of a known format"
        )
    devices.setup_jax(settings)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    params, norm_stats = policies.load_policy(settings, values.checkpoint, values.iteration, mesh)
    # The prompts are the clients'; each is checked as it comes.
    actor = policies.actor(settings, mesh, policies.transform(settings, norm_stats, [""]), ())
    sizes = {min(2**i, values.max_batch) for i in range(values.max_batch.bit_length() + 1)}
    engine = Engine(actor, params, policies.evaluation_key(settings, mesh), tuple(sorted(sizes)))
    metadata = {
        "server": "pirl_jax",
        "checkpoint": policies.checkpoint_identity(values.checkpoint, values.iteration),
        "seed": settings.raw.seed,
        "action_horizon": settings.policy.model.action_horizon,
        "action_chunk": settings.policy.action_chunk,
        "image_size_px": settings.raw.model.image_size_px,
        "accepts": [requests.NOISE_ID],
    }
    return engine, metadata


async def _until_signal(engine, metadata, listener, api_key, window_s):
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(engine, metadata, listener, api_key, window_s):
        host, port = listener.getsockname()[:2]
        print(
            f"serving on ws://{host}:{port}, {'with' if api_key else 'without'} an API key",
            flush=True,
        )
        await stop.wait()


@contextlib.asynccontextmanager
async def serving(
    engine: Engine,
    metadata: dict,
    listener: socket.socket,
    api_key: str = "",
    window_s: float = 0.004,
):
    """The open server."""
    arrivals, loop = itertools.count(), asyncio.get_running_loop()
    batcher = batching.Batcher(engine, engine.batch_sizes[-1], window_s)
    # Decoding and resizing pictures must not delay the answers of others.
    with contextlib.closing(batcher), futures.ThreadPoolExecutor(2) as readers:

        async def answer(message: dict) -> dict:
            read = requests.read, message, engine.actor.transform, next(arrivals)
            request = await loop.run_in_executor(readers, *read)
            result = await asyncio.wrap_future(batcher.submit(request, len(server.connections)))
            if not np.isfinite(result["actions"]).all():
                raise RuntimeError("the policy's actions are not finite; serve another checkpoint")
            return result

        async with wire.listen(answer, metadata, sock=listener, api_key=api_key) as server:
            yield


if __name__ == "__main__":
    main(sys.argv)
