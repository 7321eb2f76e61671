"""Rotation vectors and the state that policies read."""

import numpy as np

from pirl_jax.envs import panda


def test_axis_angle():
    """By hand; a quaternion and its opposite are told apart."""
    no_turn = panda.axis_angle(np.array([0.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(no_turn, np.zeros(3))
    quat_xyzw = np.array([0.0, np.sin(0.3), 0.0, np.cos(0.3)])
    np.testing.assert_allclose(panda.axis_angle(quat_xyzw), [0, 0.6, 0], atol=1e-12)
    long_way = panda.axis_angle(-quat_xyzw)
    np.testing.assert_allclose(long_way, [0, 0.6 - 2 * np.pi, 0], atol=1e-12)


def test_rounding_beyond_one_is_no_turn():
    np.testing.assert_array_equal(panda.axis_angle(np.array([0.0, 0.0, 0.0, 1 + 1e-15])), 0.0)


def test_state_vector():
    quat_xyzw = np.array([0.0, np.sin(0.3), 0.0, np.cos(0.3)])
    state = panda.state_vector(np.array([1.0, 2.0, 3.0]), quat_xyzw, np.array([0.04, -0.04]))
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [1, 2, 3, 0, 0.6, 0, 0.04, -0.04], rtol=1e-6)
