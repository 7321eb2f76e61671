"""A recipe on devices that are not there: what fits, what is chosen, and every program of a run.

All of it is compiled and nothing is run.  Compiling happens in a process of its own, because nobody
can stop a compiler in this one; what that process was doing when its time was over is given up.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
import multiprocessing
from multiprocessing import connection
import os
import pathlib
import traceback
from typing import Any

import jax

from pirl_jax.core import atomic, endings, paths, placement
from pirl_jax.core import mesh as meshes
from pirl_jax.envs import base, caches
from pirl_jax.envs.libero import files
from pirl_jax.learner import state as states
from pirl_jax.monitor import progress
from pirl_jax.run import (
    accelerators,
    candidates,
    capacity,
    command,
    config,
    devices,
    estimates,
    placed_outlook,
    plan,
    program_table,
    shapes,
    simulators,
    steps,
    topology,
)

LIMIT_S = 20 * 60.0  # of one program
PROMPT_TOKENS = 32  # LIBERO's prompts have no more
NUM_INIT_STATES = 50  # of every LIBERO task
NEED_TARGET = ("compiled", "programs", "cores", "steps_per_core", "simulators")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked: a recipe on a target."""

    settings: config.Settings
    target: accelerators.Target
    env_spec: base.EnvSpec
    prompt_tokens: int
    folder: pathlib.Path  # where results are kept by program
    limit_s: float = LIMIT_S
    programs: str = ""  # how the names of those begin that are compiled alone; "": all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `request` reads."""
    parser.add_argument(
        "--target",
        type=command.text,
        help="devices that are not here, as tpu:v5e:2x4 or cuda:h100:8 (docs/targets.md)",
    )
    parser.add_argument(
        "--programs",
        type=command.text,
        help="compile those alone whose names begin so, as served, and choose nothing",
    )
    add_request_arguments(parser)
    capacity.add_arguments(parser)


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """How programs are compiled, whatever they are."""
    parser.add_argument(
        "--prompt-tokens",
        type=command.number(int, 1, 10_000),
        default=PROMPT_TOKENS,
        help="padded prompt; LIBERO's prompts have at most 32 tokens",
    )
    parser.add_argument(
        "--compile-minutes",
        type=command.number(float, 0.01, 10_000),
        default=LIMIT_S / 60,
        help="a program that takes longer is given up, and said to be",
    )
    parser.add_argument(
        "--compiled",
        type=command.path,
        help="folder that keeps what compilers said, by program (default: in the user's cache)",
    )


def require_target(options: argparse.Namespace, *others: str) -> None:
    """Flags that are read with a --target alone.

    others: of the command's own flags.

    Raises:
      ValueError: one is given without it.
    """
    for name in (*NEED_TARGET, *others):
        value = getattr(options, name)
        if value is not None and not options.target:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}={value} has no effect without --target; give one, too")


def request(options: argparse.Namespace, settings: config.Settings) -> Request:
    """What the flags ask for.

    Raises:
      ValueError: no such target, or its compiler is not installed.
    """
    target = accelerators.parse(options.target)
    if options.programs and options.cores:
        raise ValueError(
            f"--programs={options.programs} compiles some programs, and --cores={options.cores}"
            f" needs all; drop one"
        )
    everywhere = {"placement.rollout": placement.ALL, "placement.actor": placement.ALL}
    if placed_outlook.differs(settings.raw):  # what they need follows from those of all devices
        placed_outlook.placed(
            settings.raw, target.count // target.hosts, target.hosts
        )  # or an error
        everywhere["mesh.data"] = -1
    topology.require_wheel(target)
    return Request(
        settings=config.changed(settings, everywhere),
        target=target,
        env_spec=env_spec(settings),
        prompt_tokens=options.prompt_tokens,
        folder=options.compiled or caches.folder("targets"),
        limit_s=60 * options.compile_minutes,
        programs=options.programs or "",
    )


def env_spec(settings: config.Settings) -> base.EnvSpec:
    """What the programs depend on of a suite; of LIBERO without a simulator."""
    env = settings.raw.env
    if not files.members(env.suite):
        simulator = simulators.env_factory(settings)()
        try:
            return simulator.spec
        finally:
            simulator.close()
    limit = env.max_episode_steps
    if not limit:
        limit = max(map(files.PROTOCOLS[env.protocol].limit, files.members(env.suite)))
    return base.EnvSpec(
        suite=env.suite,
        instructions=(),
        num_init_states=NUM_INIT_STATES,
        max_episode_steps=limit,
        image_size_px=env.image_size_px,
    )


def plan_only(options: argparse.Namespace, settings: config.Settings) -> None:
    """Prints the plan of a run instead of running it, for its target or for the devices here.

    Raises:
      ValueError: the request makes no sense, or nothing fits here.
    """
    if not options.target:
        mesh = devices.mesh(settings)
        spec = env_spec(settings)
        with progress.track("compiling"):
            _, planned = plan.choose(settings, mesh, options.prompt_tokens, spec)
        print(planned)
        return
    if options.output:  # before hours of compiling
        paths.require_writable_file(options.output, "--output")
    result = answer(options, settings)
    print(program_table.as_text(result))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(options.output, result)
        print(f"results in {options.output}")


def answer(options: argparse.Namespace, settings: config.Settings) -> dict[str, Any]:
    """What `report` says; "capacity" (run/capacity.py) where the flags ask for it; of roles that
    differ both that and "placement" (run/placed_outlook.py).

    Raises:
      ValueError: the request makes no sense.
    """
    # A plan is made on a laptop as on a machine whose devices are somebody's.
    jax.config.update("jax_platforms", "cpu")
    asked = request(options, settings)
    played_by = capacity.simulators(options, settings)
    result = report(asked)
    is_placed = placed_outlook.differs(settings.raw) and not asked.programs
    if is_placed:
        count = math.prod(result["choices"]["mesh"]) // result["hosts"]
        result["placement"] = placed_outlook.memory(
            settings.raw, result["plan"], _whole(asked.settings), count, result["hosts"]
        )
    if played_by is None and not is_placed:
        return result
    names = ("algorithm.microbatch_size", "rollout.prefix_cache")
    chosen = config.changed(settings, {name: result["choices"][name] for name in names})
    assumed = (options.episode_share, options.of_roofline)
    if played_by is None:
        result["capacity"] = capacity.of_devices(chosen, asked.env_spec, result, *assumed)
    else:
        result["capacity"] = capacity.iteration(chosen, asked.env_spec, result, played_by, *assumed)
    return result


def _whole(settings: config.Settings) -> placed_outlook.Whole:
    """Parameters as one device holds them."""
    alone = config.changed(settings, {"mesh.data": 1, "mesh.fsdp": 1})
    params, _ = shapes.state(alone, meshes.make_mesh(1, 1, jax.devices()[:1]))
    learned, frozen = states.partition(params, steps.trainable(settings))
    return placed_outlook.Whole(frozen=shapes.size(frozen), learned=shapes.size(learned))


# ---- the process that compiles -----------------------------------------------------------------


def report(request: Request) -> dict[str, Any]:
    """{"target", "hosts", "fits", "why", "changes", "plan", "choices", "programs": {name: {...}},
    "notes"}

    Where the recipe does not fit and some changes do, plan, choices and programs are those with
    them.  Of some programs alone, nothing is chosen: fits and plan are None, and choices those that
    need least memory.  Prints what is being compiled.

    Raises:
      ValueError: the request makes no sense, in one sentence.
      endings.Failure: the compiler ended.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no device is no news
    context = multiprocessing.get_context("spawn")
    while True:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(send, request), daemon=True)
        child.start()
        send.close()
        try:
            result = _followed(receive, request)
        finally:
            child.kill()
            child.join()
        if result is not None:
            return result


def _followed(receive: connection.Connection, request: Request) -> dict[str, Any] | None:
    """The result; None: a program was given up, and the next process will know of it."""
    under_way = None
    while True:
        if not receive.poll(request.limit_s):
            if under_way is None:
                raise endings.Failure(
                    f"the programs for {request.target.text} could not be prepared in "
                    f"{request.limit_s / 60:.0f} minutes; try on a machine with less to do"
                )
            estimates.give_up(request.folder, under_way, request.limit_s)
            return None
        try:
            kind, value = receive.recv()
        except EOFError as error:
            raise endings.Failure(
                f"the compiler for {request.target.text} ended without a word; "
                f"it needs 2 GB of memory"
            ) from error
        if kind == "begin":
            under_way = value
        elif kind == "end":
            under_way = None
        elif kind == "say":
            print(value, flush=True)
        elif kind == "error":
            raise value
        else:
            return value


def _work(send: connection.Connection, request: Request) -> None:
    """In the process that compiles."""

    def tell(kind: str, value: object) -> None:
        send.send((kind, value))

    try:
        tell("result", _report(request, tell))
    except Exception as error:
        error.add_note(traceback.format_exc())
        tell("error", error)


def _report(request: Request, tell: Any) -> dict[str, Any]:
    settings = request.settings
    target = request.target
    mesh = topology.mesh(target, settings.raw.mesh.data, settings.raw.mesh.fsdp)
    own = devices.playing(settings, mesh).size
    config.check_batches(settings.raw, mesh.size, meshes.hosts(mesh), own)
    estimator = estimates.Estimator(
        target,
        request.folder,
        request.limit_s,
        begins=functools.partial(tell, "begin"),
        ends=functools.partial(tell, "end"),
    )
    made = _choice(request, mesh, estimator, tell)
    settings = made.settings
    rows = {}
    names = []
    for name, lower in _programs(settings, mesh, request):
        names.append(name)
        if name.startswith(request.programs):
            tell("say", f"{target.text}: {name}")
            rows[name] = _row(estimator, lower(), target.chip)
    if not rows:
        raise ValueError(
            f"--programs={request.programs} begins no program's name; there are: {'; '.join(names)}"
        )
    return {
        "target": target.text,
        "hosts": meshes.hosts(mesh),
        "fits": None if request.programs else not made.why,
        "why": made.why,
        "changes": made.changes,
        "plan": _as_dict(made.planned),
        "choices": {
            "algorithm.microbatch_size": settings.raw.algorithm.microbatch_size,
            "rollout.prefix_cache": settings.prefix_cache,
            "model.gradient_checkpointing": settings.raw.model.gradient_checkpointing,
            "model.attention": settings.raw.model.attention,
            "mesh": list(mesh.devices.shape),
        },
        "programs": rows,
        "limit": target.chip.limit,
        "compilers": estimates.compilers(),
        "notes": target.notes,
    }


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Settings without open choices, and how they came about."""

    settings: config.Settings
    planned: plan.Plan | None = None  # None: nothing fits, or nobody asked
    why: str = ""  # the recipe does not fit
    changes: dict = dataclasses.field(default_factory=dict)  # with which it does


def _choice(
    request: Request, mesh: jax.sharding.Mesh, estimator: estimates.Estimator, tell: Any
) -> _Choice:
    """What fits the target."""
    settings = request.settings
    target = request.target
    if request.programs:
        return _Choice(candidates.least(settings, mesh))
    tell("say", f"{target.text}: choosing what fits {target.chip.limit / 1e9:.1f} GB per device")

    def chosen(settings: config.Settings) -> tuple[config.Settings, plan.Plan]:
        return plan.choose(
            settings, mesh, request.prompt_tokens, request.env_spec, compiling=estimator.memory
        )

    try:
        return _Choice(*chosen(settings))
    except plan.DoesNotFit as error:
        if not error.changes:
            return _Choice(candidates.least(settings, mesh), why=str(error))
        changed = config.changed(settings, error.changes)
        return _Choice(*chosen(changed), str(error), error.changes)


def _as_dict(planned: plan.Plan | None) -> dict[str, Any] | None:
    if planned is None:
        return None
    return dataclasses.asdict(planned) | {"total": planned.total}


def _programs(
    settings: config.Settings, mesh: jax.sharding.Mesh, request: Request
) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
    """Every program of a run and of a policy server, by name; lowered where it is called."""
    tokens = request.prompt_tokens
    spec = request.env_spec
    params, state = shapes.state(settings, mesh)
    args, context = shapes.decision(settings, mesh, tokens, spec, params)
    rows = shapes.batch_size(settings)
    count = settings.raw.algorithm.microbatch_rows(mesh.size)

    @functools.cache
    def learner() -> dict[str, jax.stages.Lowered]:
        lowered, _ = shapes.update(settings, mesh, state, args, context)
        return lowered

    @functools.cache
    def kept() -> dict[str, jax.stages.Lowered]:
        return shapes.kept(settings, mesh, spec, context)

    def served() -> jax.stages.Lowered:
        """A server has one device, and the weights as a checkpoint brings them."""
        one = meshes.make_mesh(1, 1, [mesh.devices.flat[0]])
        acting = shapes.params(settings, one, acts=True)
        args, _ = shapes.decision(settings, one, tokens, spec, acting, rows=1)
        return shapes.evaluation(settings, one, args)

    yield f"rollout decision, {rows} rows", lambda: shapes.rollout(settings, mesh, args)
    yield f"evaluation decision, {rows} rows", lambda: shapes.evaluation(settings, mesh, args)
    yield "served decision, 1 row, 1 device", served
    yield f"update microbatch, {count} rows", lambda: learner()["microbatch"]
    yield "optimiser step", lambda: learner()["step"]
    if settings.prefix_cache == "device":
        yield f"writing of kept prefixes, {rows} rows", lambda: kept()["write"]
        yield f"reading of kept prefixes, {count} rows", lambda: kept()["read"]


def _row(
    estimator: estimates.Estimator, lowered: jax.stages.Lowered, chip: accelerators.Chip
) -> dict[str, Any]:
    """A program as JSON, with what follows from the table of targets."""
    try:
        estimate = estimator.of(lowered)
    except plan.TooLarge as error:
        return {"digest": estimator.key(lowered), "refused": str(error)}
    return estimate.as_dict() | {
        "digest": estimator.key(lowered),
        "fits": estimate.memory.peak <= chip.limit,
        "estimated_s": estimate.estimated_s(chip),
        "roofline_s": estimate.roofline_s(chip),
        "exchange_s": estimate.exchange_s(chip),
        "share_of_peak": estimate.share_of_peak(chip),
    }
