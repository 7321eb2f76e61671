"""What compilers said is kept by program, refusals and what was given up included."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pirl_jax.run import accelerators, estimates, plan

V5E = accelerators.parse("tpu:v5e:1")


@pytest.fixture(scope="module")
def lowered():
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    return jax.jit(lambda x: x @ x.T).lower(x)


@pytest.fixture
def estimator(tmp_path, monkeypatch):
    """Its compiler is that of this machine; .begun: the programs that it compiled."""
    begun = []
    made = estimates.Estimator(V5E, tmp_path / "kept", 60.0, begins=begun.append)
    made.begun = begun
    return made


def test_a_program_is_compiled_once(estimator, lowered):
    first = estimator.of(lowered)
    assert first.flops == 2 * 8 * 16 * 8
    assert first.memory.arguments == 8 * 16 * 4 and first.memory.outputs == 8 * 8 * 4
    assert estimator.of(lowered) == first and estimator.memory(lowered) == first.memory
    assert len(estimator.begun) == 1


def test_another_program_target_or_compiler_is_compiled_for_itself(estimator, lowered, monkeypatch):
    estimator.of(lowered)
    other = jax.jit(lambda x: x @ x.T + 1).lower(jax.ShapeDtypeStruct((8, 16), jnp.float32))
    estimator.of(other)
    v5p = dataclasses.replace(estimator, target=accelerators.parse("tpu:v5p:1"))
    v5p.of(lowered)
    monkeypatch.setattr(estimates, "compilers", lambda: ["libtpu 99"])
    estimator.of(lowered)
    assert len(set(estimator.begun)) == 4


def test_a_refusal_is_kept_in_the_compiler_s_words(estimator, lowered, monkeypatch):
    def exhausted(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 67.0G exceeds 15.75G\nand more")

    monkeypatch.setattr(jax.stages.Lowered, "compile", exhausted)
    for _ in range(2):
        with pytest.raises(plan.TooLarge, match=r"^RESOURCE_EXHAUSTED: 67\.0G exceeds 15\.75G$"):
            estimator.of(lowered)
    assert len(estimator.begun) == 1


def test_what_was_given_up_is_tried_again_only_with_more_time(estimator, lowered):
    key = estimator.key(lowered)
    estimates.give_up(estimator.folder, key, 60.0)
    with pytest.raises(estimates.TooLong, match="was given up after 1 minutes"):
        estimator.of(lowered)
    assert not estimator.begun
    patient = dataclasses.replace(estimator, limit_s=120.0)
    assert patient.of(lowered).flops and estimator.begun == [key]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0}'])
def test_a_damaged_or_older_file_is_compiled_again(estimator, lowered, text):
    first = estimator.of(lowered)
    (file,) = estimator.folder.iterdir()
    file.write_text(text)
    again = estimator.of(lowered)
    assert again.memory == first.memory and len(estimator.begun) == 2


def test_times_follow_from_the_table():
    memory = plan.Memory(arguments=600, outputs=219, donated=0, temporary=0, peak=1)
    made = estimates.Estimate(
        memory=memory,
        flops=197e9,
        cycles=3e6,
        collectives={"all-gather": 150e6, "all-reduce": 50e6},
        calls={"all-gather": 1, "all-reduce": 1},
        unknown_loops=0,
        not_counted=[],
        compile_s=1.0,
    )
    chip = V5E.chip
    assert made.estimated_s(chip) == pytest.approx(2e-3)
    assert made.roofline_s(chip) == pytest.approx(1e-3)
    assert made.share_of_peak(chip) == pytest.approx(0.5)
    assert made.exchange_s(chip) == pytest.approx(1e-3)
    moving = dataclasses.replace(made, flops=0.0, cycles=0.0)
    assert moving.roofline_s(chip) == pytest.approx(1e-9)
    assert moving.estimated_s(chip) is None and moving.share_of_peak(chip) is None
    assert estimates.from_dict(made.as_dict()) == made
