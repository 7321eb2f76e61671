"""What XLA makes of our programs on eight v5e chips and eight H100 that are not here.

compile_targets.py compiles them once per target, without the flags of this suite.  Every test below
is a claim about accelerators that a compiler confirms; nothing is run.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from pirl_jax.run import accelerators, estimates, hlo, hlo_text, topology
from tests.run import exchanges

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = ("tpu:v5e:2x4", "cuda:h100:8")
MINUTES = 12  # of both targets together, on two cores

pytestmark = [pytest.mark.slow, pytest.mark.compiled]


class Compiled(NamedTuple):
    """A program of compile_targets.PROGRAMS."""

    estimate: estimates.Estimate
    program: hlo.Program  # its text, read
    facts: dict[str, Any]


class OnTarget(NamedTuple):
    target: accelerators.Target
    programs: dict[str, Compiled]
    too_large: dict[str, Any]  # what became of a program that cannot fit
    hosts: dict[str, list[int]]  # compile_targets.hosts_of_slices
    errors: str  # what the compiler wrote to stderr


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request, tmp_path_factory):
    target = accelerators.parse(request.param)
    missing = topology.missing_wheel(target.platform)
    if missing:
        pytest.skip(f"{missing} is not installed (pip install 'pirl_jax[targets]')")
    folder = tmp_path_factory.mktemp(target.name)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    # Warnings of the partitioner are what one test looks for.
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "0", "TPU_STDERR_LOG_LEVEL": "0"}
    environment |= {"TPU_MIN_LOG_LEVEL": "0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.run.compile_targets", target.text, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    programs = {}
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text())
        program = hlo.Program(path.with_suffix(".hlo").read_text())
        programs[path.stem] = Compiled(estimates.from_dict(facts["estimate"]), program, facts)
    too_large = json.loads((folder / "too_large.txt").read_text())
    hosts = json.loads((folder / "hosts.txt").read_text())
    return OnTarget(target, programs, too_large, hosts, done.stderr)


def test_the_partitioner_never_gives_up(compiled):
    """It would say that it copies a whole array to every device."""
    assert "nvoluntary full rematerialization" not in compiled.errors


def test_programs_are_within_the_memory_of_the_device(compiled):
    for name, program in compiled.programs.items():
        memory = program.estimate.memory
        assert 0 < memory.arguments + memory.temporary <= compiled.target.chip.limit, name
        assert memory.peak <= compiled.target.chip.limit, name


def test_the_sums_of_gradients_are_donated(compiled):
    """A microbatch adds to them where they lie."""
    microbatch = compiled.programs["microbatch"]
    assert microbatch.estimate.memory.donated >= 0.99 * microbatch.facts["learned"]
    decision = compiled.programs["decision"]
    assert decision.estimate.memory.donated == 0


def test_a_microbatch_exchanges_nothing_between_copies_of_the_parameters(compiled):
    """So what an optimiser step exchanges does not depend on how many microbatches it has."""
    microbatch = compiled.programs["microbatch"]
    found = [one for _, one in exchanges.collectives(microbatch.program)]
    assert found
    fsdp = microbatch.facts["fsdp"]
    beyond = [one.name for one in found if exchanges.along_data(one, fsdp)]
    assert not beyond


def test_a_step_reduces_every_gradient_once_in_float32(compiled):
    step = compiled.programs["step"]
    kinds, reduced = exchanges.reduced_along_data(step.program, step.facts["fsdp"])
    assert kinds == {"f32"}
    # Beside gradients there are metrics.
    assert step.facts["learned"] <= reduced <= 1.001 * step.facts["learned"]


def test_split_weights_are_gathered_and_their_gradients_scattered(compiled):
    """Activations stay where they are: in bfloat16 every weight comes once for each direction."""
    microbatch = compiled.programs["microbatch"]
    learned = microbatch.facts["learned everywhere"]  # in float32
    exchanged = microbatch.estimate.collectives
    assert set(exchanged) <= {"all-gather", "reduce-scatter", "all-reduce"}
    gathered = exchanged["all-gather"]
    scattered = exchanged["reduce-scatter"]
    assert gathered <= 1.1 * 2 * learned / 2
    assert 0.4 * learned <= scattered <= 1.1 * learned
    # What is not worth scattering, and metrics.
    assert exchanged.get("all-reduce", 0) <= 0.02 * learned


def test_the_frozen_model_is_no_argument_of_the_update(compiled):
    """Kept prefixes stand for it; the decision has all of it."""
    facts = compiled.programs["microbatch"].facts
    arguments = compiled.programs["microbatch"].estimate.memory.arguments
    assert arguments < facts["learned"] * 2 + 2 * facts["rows"] + facts["frozen"] / 2
    decision = compiled.programs["decision"]
    assert decision.estimate.memory.arguments > decision.facts["frozen"]


def test_rows_and_tokens_stay_one_axis_where_they_are_widest(compiled):
    """51 tokens are no multiple of eight: to tell a row's from the next one's is a copy, which took
    12 % of a decision and 22 % of a microbatch by XLA:TPU's estimate."""
    for name in ("decision", "microbatch"):
        program = compiled.programs[name]
        wide = program.facts["widest"]
        copied = []
        for _, one in program.program.instructions():
            kind, dimensions = (hlo_text.arrays(one.shape) or [("", ())])[0]
            is_wide = kind == "bf16" and dimensions[-1:] == (wide,)
            if is_wide and one.opcode in ("copy", "slice") and hlo.CYCLES.search(one.attributes):
                copied.append(one.name)
        assert not copied, name


def test_every_loop_can_be_counted(compiled):
    for name, program in compiled.programs.items():
        assert program.estimate.unknown_loops == 0, name
        assert not program.estimate.not_counted, name


def test_a_target_has_the_estimates_that_its_compiler_makes(compiled):
    is_tpu = compiled.target.platform == "tpu"
    for name in ("decision", "microbatch"):
        estimate = compiled.programs[name].estimate
        assert estimate.flops > 0
        assert (estimate.cycles > 0) == is_tpu
        seconds = estimate.estimated_s(compiled.target.chip)
        if is_tpu:
            assert seconds >= 0.9 * estimate.flops / compiled.target.chip.peak


def test_products_are_those_of_the_network(compiled):
    """As policy/flops.py counts them from shapes; padding and recomputation would show."""
    for name in ("decision", "microbatch"):
        program = compiled.programs[name]
        assert program.estimate.flops == pytest.approx(program.facts["counted flops"], rel=0.005)


def test_a_slice_stands_in_the_hosts_that_its_text_says(compiled):
    """And who plans is one of them."""
    for text, (said, found, own) in compiled.hosts.items():
        assert said == found, text
        assert own * found == accelerators.parse(text).count, text
    assert compiled.target.platform != "tpu" or compiled.hosts["tpu:v5e:4x4"] == [4, 4, 4]


def test_what_is_too_large_is_an_answer(compiled):
    """XLA:TPU refuses it, XLA:GPU tells what it would need."""
    if compiled.target.platform == "tpu":
        assert compiled.too_large["refused"].startswith("RESOURCE_EXHAUSTED")
    else:
        assert compiled.too_large["peak"] > compiled.target.chip.limit
