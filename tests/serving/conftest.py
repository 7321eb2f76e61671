"""A policy server on a free port, in a thread with an event loop of its own."""

import asyncio
import contextlib
import socket
import threading

import pytest

from pirl_jax.serving import wire


@contextlib.contextmanager
def running(make_context):
    """make_context(listener) -> an asynchronous context that serves; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    ready = threading.Event()
    failed = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve():
        async with make_context(listener):
            ready.set()
            await stop.wait()

    def run():
        try:
            loop.run_until_complete(serve())
            pending = asyncio.all_tasks(loop)
            assert not pending, pending
        except BaseException as error:
            failed.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60) and not failed, failed
        yield port
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive() and not failed, failed


@pytest.fixture
def wired():
    """wired(answer, metadata={}, **options) -> port of a server of the protocol alone."""
    with contextlib.ExitStack() as stack:

        def start(answer, metadata=None, **options):
            def listen(listener):
                return wire.listen(answer, metadata or {}, sock=listener, **options)

            return stack.enter_context(running(listen))

        yield start
