"""What an env may answer: every way in which its numbers can be none, by name."""

import dataclasses

import numpy as np
import pytest

from pirl_jax.envs import base, probes

SPEC = probes.make("action", image_size_px=4).spec
GOOD = base.TimeStep(
    images=np.zeros((2, 4, 4, 3), np.uint8),
    state=np.zeros(8, np.float32),
    reward=0.5,
    terminated=False,
    truncated=False,
    num_steps=5,
)


def state(value, dtype=np.float32):
    changed = np.zeros(8, dtype)
    changed[3] = value
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        dict(reward=1),
        dict(reward=True),
        dict(reward=np.float32(-1.5)),
        dict(reward=-3.4e38),
        dict(state=state(2, np.int64)),
        dict(state=state(-3.4e38, np.float64)),
        dict(terminated=np.True_, num_steps=np.int64(0)),
        dict(frames=[]),
        dict(frames=[np.zeros((7, 9, 3), np.uint8)] * 5),
    ],
    ids=str,
)
def test_what_is_sound(changes):
    assert base.fault(dataclasses.replace(GOOD, **changes), SPEC, 5) == ""


FAULTY = {
    "reward": [np.nan, np.inf, -np.inf, 1e39, None, "1", 1j, np.ones(1), [1.0]],
    "state": [
        *(state(value) for value in (np.nan, np.inf, -np.inf)),
        state(1e39, np.float64),
        np.zeros(7, np.float32),
        np.zeros((1, 8), np.float32),
        np.float32(0),
        np.zeros(8, bool),
        np.zeros(8, complex),
        np.array([None] * 8),
        [0.0] * 8,
        None,
    ],
    "images": [
        np.full((2, 4, 4, 3), np.nan, np.float32),
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.int8),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.uint8(0),
        None,
    ],
    "terminated": [np.nan, 1, None, np.array([True])],
    "truncated": [np.nan, 0.0, None],
    "num_steps": [-1, 6, 2.0, np.nan, None],
    "frames": [[np.zeros((4, 4, 3), np.float32)], [None], [np.zeros((4, 4), np.uint8)]],
}


@pytest.mark.parametrize("field", FAULTY)
def test_what_is_faulty(field):
    for value in FAULTY[field]:
        said = base.fault(dataclasses.replace(GOOD, **{field: value}), SPEC, 5)
        assert field.removesuffix("s") in said and len(said) < 250, (value, said)


def test_a_reset_has_taken_no_step():
    assert "num_steps" in base.fault(GOOD, SPEC, 0)
    assert base.fault(dataclasses.replace(GOOD, num_steps=0), SPEC, 0) == ""
