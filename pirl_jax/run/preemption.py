"""Signals that ask a command to end: SIGTERM, SIGHUP, SIGINT, and SIGUSR1, as Slurm sends it ahead.

A command ends at once, in one line.  While there is something to lose (`Watch.patient`) it only
learns of the wish, and ends where it can go on exactly.  Insisting ends the process at once.
Refuses to know what is saved.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import io
import os
import shlex
import signal
import sys
import threading
import time

from pirl_jax.core import endings, secrets
from pirl_jax.envs import child

TRY_AGAIN = endings.Preempted.code
# A terminal, a launch script and a scheduler may all pass the same wish on; later it is another.
ECHO_S = 1.0
# How long an end at once may take; code in C keeps the main thread from taking part in it.
GRACE_S = 10.0
TOLD_S = 1.0  # how long the main thread waits until the line is written


class Watch:
    """What has been asked of this process; `watching` makes one."""

    def __init__(self, sentence: str, code: int | None) -> None:
        """
        Args:
          sentence: what an end at once means, and how to go on.
          code: exit code of an end at once; None: 128 + the number of the signal.
        """
        self.wanted: signal.Signals | None = None  # the first signal
        self.grace_s = GRACE_S
        self._sentence = sentence
        self._code = code
        self._since_s = 0.0
        self._heard: set[signal.Signals] = set()
        self._is_patient = False
        self._told = threading.Event()
        self._interrupt: Callable[[], None] | None = None  # while it is patient
        self._listeners: list[Callable[[signal.Signals], None]] = []

    def call(self, listener: Callable[[signal.Signals], None]) -> None:
        """With the first signal, from another thread."""
        self._listeners.append(listener)

    @contextlib.contextmanager
    def patient(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """The block ends by itself, soon after it was asked to.

        interrupt: makes whatever waits for simulators raise queue.Interrupted; called from another
            thread.

        Raises:
          endings.Preempted: asked too late to be noticed inside.
        """
        self._interrupt = interrupt
        self._is_patient = True
        yield
        self._is_patient = False
        if self.wanted is not None:
            raise self.ending("everything is saved")

    def ending(self, what: str) -> endings.Preempted:
        """To be raised by the caller, who is done.  what: is true now."""
        self._limit(endings.Preempted.code)
        name = self.wanted.name if self.wanted else "a signal on another host"
        return endings.Preempted(f"{name}: {what}; {self._sentence}")

    def hear(self, number: signal.Signals) -> None:
        """A signal has come; called in a thread that nothing blocks."""
        now_s = time.monotonic()
        if self.wanted is None:
            self.wanted = number
            self._since_s = now_s
            self._heard.add(number)
            self._begin(number)
        elif now_s > self._since_s + ECHO_S and self._insists(number):
            os._exit(128 + number)
        else:
            self._heard.add(number)

    def hear_of(self, number: signal.Signals) -> None:
        """It came to another host, and is one to this process, too."""
        for possible in (number, *child.ENDING):  # some may be ignored here
            if self.wanted is None and signal.getsignal(possible) == self.in_main_thread:
                os.kill(os.getpid(), possible)
                break

    def _insists(self, number: signal.Signals) -> bool:
        """Slurm's SIGTERM is no second signal after the SIGUSR1 that foretold it."""
        return number in self._heard or bool(self._heard - {signal.SIGUSR1})

    def _begin(self, number: signal.Signals) -> None:
        if self._is_patient:
            say(f"{number.name}: saving what can be saved; a second signal ends at once")
            self._interrupt()
        else:
            say(f"{number.name}: {self._sentence}")
            self._limit(self._exit_code(number))
        self._told.set()
        for listener in self._listeners:
            listener(number)

    def _limit(self, code: int) -> None:
        """The end takes so long at most, whatever hangs."""
        timer = threading.Timer(self.grace_s, os._exit, [code])
        timer.daemon = True
        timer.start()

    def in_main_thread(self, number: int, frame: object) -> None:
        """Python's handler of the signal, which runs as soon as the main thread runs Python."""
        if not self._is_patient:
            self._told.wait(TOLD_S)
            raise SystemExit(self._exit_code(self.wanted or signal.Signals(number)))

    def _exit_code(self, number: signal.Signals) -> int:
        return 128 + number if self._code is None else self._code


@contextlib.contextmanager
def watching(sentence: str, code: int | None = None) -> Iterator[Watch]:
    """From now on signals end this process in one line; a decorator of commands, too.

    What was ignored (nohup, a background job of a shell) stays ignored.  See Watch.
    """
    watch = Watch(sentence, code)
    if threading.current_thread() is not threading.main_thread():
        yield watch  # a program that runs a command in a thread keeps its own handlers
        return
    outlive_readers()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The bytes reach the thread at once, Python's handlers only between two instructions of the
    # main thread: a compilation lasts for minutes.
    before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {}
    for number in child.ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, watch.in_main_thread)
    threading.Thread(target=_listen, args=(watch, reader), name="signals", daemon=True).start()
    try:
        yield watch
    finally:
        # Who was asked to end is about to; a second signal still ends it at once.
        if watch.wanted is None:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            os.close(writer)


def _listen(watch: Watch, reader: int) -> None:
    """The thread: one byte per signal, until the other end closes."""
    while data := os.read(reader, 1):
        if data[0] in child.ENDING:
            watch.hear(signal.Signals(data[0]))
    os.close(reader)


def say(line: str) -> None:
    """On standard error, past its locks: the main thread may hold them."""
    with contextlib.suppress(OSError):  # nobody there to read it
        os.write(2, f"{line}\n".encode())


def how_to_resume(argv: Sequence[str]) -> str:
    """The clause that names the command, which goes on with a run from where it is saved."""
    arguments = list(argv[1:])
    start = ["python", "-m", "pirl_jax.train"]
    if arguments and sys.orig_argv[-len(arguments) :] == arguments:
        start = [sys.executable, *sys.orig_argv[1 : -len(arguments)]]
    resumes = "--resume=auto" in arguments or "--resume auto" in " ".join(arguments)
    if not resumes and "--plan-only" not in arguments:  # a plan saves nothing: it is made again
        arguments = [*_without_resume(arguments), "--resume", "auto"]
    # What is printed ends up in logs: no key among it.
    shown = secrets.arguments([*start, *arguments])
    return f"to go on, in {os.getcwd()}: {shlex.join(shown)}"


def _without_resume(arguments: Sequence[str]) -> list[str]:
    """--resume never, given, would contradict what goes on."""
    kept = [argument for argument in arguments if not argument.startswith("--resume=")]
    if "--resume" in kept:
        place = kept.index("--resume")
        del kept[place : place + 2]
    return kept


# ---- output that nobody reads any more -------------------------------------------------------


class _Output(io.FileIO):
    """A standard stream; what cannot be written is dropped, and the work goes on."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError:
            # `| head` has seen enough, the terminal is gone, or the log's disk is full.
            return len(data)


def outlive_readers() -> None:
    """Standard output and error for the rest of the process; not those of a test."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        raw = _Output(stream.fileno(), "w", closefd=False)
        is_buffered = isinstance(stream.buffer, io.BufferedWriter)
        tolerant = io.TextIOWrapper(
            io.BufferedWriter(raw) if is_buffered else raw,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, tolerant)
