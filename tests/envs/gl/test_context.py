"""An offscreen GL context of the backend that MUJOCO_GL names."""

import pytest

from pirl_jax.envs.gl import context


def test_a_backend_that_needs_a_display_is_refused(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match=r"MUJOCO_GL='glfw' .*choose egl or osmesa"):
        context.create(8, 8)
