"""GL backends and devices: a real frame; for all that can be missing a sentence with the remedy."""

import logging
import os
import subprocess
import sys

import pytest

from pirl_jax.envs import child
from pirl_jax.envs.gl import backends

BACKEND = os.environ["MUJOCO_GL"]


@pytest.fixture(scope="module")
def rendered():
    return backends.probe(BACKEND)


def test_a_frame_of_the_backend_of_these_tests(rendered):
    assert rendered.ok
    assert rendered.remedy == ""
    assert rendered.pixel_std > 10
    assert rendered.renderer and rendered.renderer in str(rendered)
    assert f"({BACKEND})" in str(rendered)


def test_missing_library_names_library_and_package(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "egl", ("libNoSuchEGL.so.1", "libegl1"))
    sentence = r"libNoSuchEGL.so.1 is missing \(MUJOCO_GL=egl\); run: apt-get install -y libegl1"
    with pytest.raises(ValueError, match=sentence):
        backends.require("egl")
    probed = backends.probe("egl")
    assert probed.reason == "libNoSuchEGL.so.1 is missing (MUJOCO_GL=egl)"
    assert probed.remedy == "run: apt-get install -y libegl1"


@pytest.mark.skipif(BACKEND != "egl", reason="MUJOCO_GL is not egl")
def test_devices_are_listed_and_a_wrong_number_is_told():
    found = backends.devices()
    assert found
    assert [device.egl for device in found] == list(range(len(found)))
    wrong = backends.probe("egl", 9)
    assert wrong.reason == "EGL lists no such device"
    assert "correct MUJOCO_EGL_DEVICE_ID" in wrong.remedy
    with pytest.raises(ValueError, match="egl device 9 does not render"):
        backends.choose("egl", devices=(9,))


def test_no_driver_and_the_remedy_of_each_kind_of_machine(monkeypatch, tmp_path):
    error = child.ChildError(
        "ImportError: Cannot initialize a EGL device display. This likely means that ..."
    )

    def fail(*_):
        raise error

    monkeypatch.setattr(backends.child, "ask", fail)
    monkeypatch.setattr(backends, "require", lambda backend: None)
    monkeypatch.setattr(backends, "NVIDIA", tmp_path / "absent")
    assert backends.probe("egl").reason == "EGL opens no display"
    assert "apt-get install -y libegl1" in backends.probe("egl").remedy
    monkeypatch.setattr(backends, "NVIDIA", tmp_path)
    remedy = backends.probe("egl").remedy
    assert "NVIDIA_DRIVER_CAPABILITIES=all" in remedy and "10_nvidia.json" in remedy
    error = child.ChildError(
        "RuntimeError: The MUJOCO_EGL_DEVICE_ID ... must be an integer between 0 and -1 (inclusive)"
    )
    assert backends.probe("egl").reason == "EGL opens no display", "EGL's list is empty"
    error = child.ChildError("crashed with SIGSEGV")
    crashed = backends.probe("egl")
    assert crashed.reason == "crashed with SIGSEGV"
    assert "MUJOCO_GL=osmesa" in crashed.remedy


def test_a_blank_frame_is_a_failure(monkeypatch):
    strings = {"vendor": "v", "renderer": "r", "version": "1"}
    monkeypatch.setattr(backends, "require", lambda backend: None)
    monkeypatch.setattr(backends.child, "ask", lambda *_: strings | {"pixel_std": 0.5})
    assert backends.probe("egl").reason == "the frame is blank"
    monkeypatch.setattr(backends.child, "ask", lambda *_: strings | {"pixel_std": 20.0})
    assert backends.probe("egl").ok


def _fake(rendering: set):
    """A machine on which only these (backend, device) render."""

    def probe(backend, device=None, timeout_s=0.0):
        reason = "" if (backend, device) in rendering else "broken"
        return backends.Probe(backend, device, reason, "mend it")

    return probe


def test_choose_takes_the_wanted_else_osmesa_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(backends, "probe", _fake({("egl", None), ("osmesa", None)}))
    assert backends.choose("egl") == "egl" and not caplog.records
    monkeypatch.setattr(backends, "probe", _fake({("osmesa", None)}))
    with caplog.at_level(logging.WARNING):
        assert backends.choose("egl") == "osmesa"
    assert "egl does not render: broken; mend it; RENDERING IN SOFTWARE" in caplog.text
    assert backends.choose("osmesa", devices=(3,)) == "osmesa", "osmesa has no devices"


def test_choose_never_falls_back_from_devices_that_were_asked_for(monkeypatch):
    monkeypatch.setattr(backends, "probe", _fake({("egl", 0), ("osmesa", None)}))
    assert backends.choose("egl", devices=(0,)) == "egl"
    with pytest.raises(ValueError, match=r"^egl device 1 does not render: broken; mend it$"):
        backends.choose("egl", devices=(0, 1, 0))
    monkeypatch.setattr(backends, "probe", _fake(set()))
    with pytest.raises(ValueError, match=r"egl does not render.*and osmesa does not render"):
        backends.choose("egl")
    with pytest.raises(ValueError, match=r"^nonsense does not render: broken; mend it$"):
        backends.choose("nonsense")  # not what osmesa lacks: that is no remedy


# An eight-slot machine in small: EGL lists CUDA 2 first, then 0, a software device, then 1.
DEVICES = [
    backends.Device(0, 2),
    backends.Device(1, 0),
    backends.Device(2, None, software=True),
    backends.Device(3, 1),
]


@pytest.mark.parametrize(
    "visible, expected",
    [(None, {0: 1, 1: 3, 2: 0}), ("2,0", {2: 0, 0: 1}), (" 1 ", {1: 3}), ("", {}), ("-1", {})],
)
def test_cuda_to_egl(visible, expected):
    found = backends.cuda_to_egl(DEVICES, visible)
    assert found == expected and list(found) == list(expected), "in CUDA_VISIBLE_DEVICES' order"


def test_cuda_to_egl_where_it_cannot_know():
    assert backends.cuda_to_egl([backends.Device(0, None)], "0") == {}, "no NVIDIA device at all"
    with pytest.raises(ValueError, match="EGL lists no CUDA device 5"):
        backends.cuda_to_egl(DEVICES, "0,5")


@pytest.mark.parametrize(
    "visible, unknown",
    [
        ("GPU-8f3c1a2b-0000-0000-0000-000000000000", ["GPU-8f3c1a2b-0000-0000-0000-000000000000"]),
        (
            "MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f,1",
            ["MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"],
        ),
        ("MIG-GPU-7f3a/1/0", ["MIG-GPU-7f3a/1/0"]),
        ("0, 1", []),
        ("NoDevFiles", []),
        (None, []),
    ],
)
def test_devices_that_are_named_and_not_numbered(visible, unknown):
    assert backends.without_number(visible) == unknown
    expected = {1: 3} if visible and visible.endswith(",1") else None
    if expected or unknown:
        assert backends.cuda_to_egl(DEVICES, visible) == (expected or {})


@pytest.mark.parametrize("text", ["egl", "EGL", " egl ", "", "  ", "on", "True", "1", "enabled"])
def test_mujoco_gl_as_mujoco_reads_it(text, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", text)
    assert backends.wanted() == backends.wanted(text) == "egl"
    monkeypatch.setitem(backends.BACKENDS, "egl", ("libc.so.6", ""))
    backends.require(text)
    monkeypatch.delenv("MUJOCO_GL")
    assert backends.wanted() == "egl"
    assert backends.wanted(" OSMesa ") == "osmesa"


@pytest.mark.parametrize("text", ["glfw", "GLX", "off", "0", "disabled", "wgl", "nonsense"])
def test_mujoco_gl_that_draws_nothing(text):
    sentence = f"MUJOCO_GL='{text}' draws nothing without a display; unset it, or set it to one of:"
    with pytest.raises(ValueError, match=sentence):
        backends.require(text)
    assert not backends.probe(text).ok


def test_an_empty_device_is_none(monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", " ")
    backends.drop_empty()
    assert "MUJOCO_EGL_DEVICE_ID" not in os.environ
    backends.drop_empty()
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    backends.drop_empty()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"


def test_variables_of_a_worker():
    assert backends.variables("osmesa") == {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    chosen = backends.variables("egl", 3)
    assert chosen["MUJOCO_EGL_DEVICE_ID"] == "3"
    assert chosen["CUDA_VISIBLE_DEVICES"] == "", (
        "robosuite refuses an EGL device that is not among the CUDA numbers"
    )


def test_description_for_result_files(monkeypatch, rendered):
    backends.describe.cache_clear()
    monkeypatch.setattr(backends, "probe", lambda *_: rendered)
    assert backends.describe(BACKEND) == str(rendered)
    backends.describe.cache_clear()
    monkeypatch.setattr(backends, "probe", _fake(set()))
    with pytest.raises(ValueError, match="egl does not render"):
        backends.describe("egl")
    backends.describe.cache_clear()


def test_the_command_that_setup_calls(tmp_path):
    """From another folder, as launch/setup.sh does; a failure is one sentence on stderr."""
    environment = os.environ | {"PYTHONPATH": str(child.ROOT)}
    command = [sys.executable, "-m", "pirl_jax.envs.gl.backends", "glfw"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("glfw does not render")
    assert done.stderr.count("\n") == 1


# ---- renderers by CUDA's numbers ------------------------------------------------------------

# A container with four of eight cards: CUDA's 0 to 3 are EGL's 2, 3, 0 and 1.
FOUR = [
    backends.Device(0, 2),
    backends.Device(1, 3),
    backends.Device(2, 0),
    backends.Device(3, 1),
    backends.Device(4, None, software=True),
]


@pytest.mark.parametrize(
    "visible, ordinals, egl",
    [
        (None, (0, 1), (2, 3)),
        (None, (3, 0), (1, 2)),
        (None, None, (2, 3, 0, 1)),
        ("2,3", (0, 1), (0, 1)),
        ("3,0", None, (1, 2)),
        ("", None, ()),
    ],
)
def test_renderers_are_counted_as_a_cuda_program_counts(monkeypatch, visible, ordinals, egl):
    monkeypatch.setattr(backends, "devices", lambda: FOUR)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert backends.egl_of(ordinals) == egl


@pytest.mark.parametrize(
    "visible, ordinals, found, said",
    [
        ("2,3", (0, 2), FOUR, "CUDA device 2 is to draw, but EGL has 2 of them here; name others"),
        ("0", (0,), FOUR[4:], "CUDA device 0 is to draw, but EGL lists none here; name others, or"),
        ("GPU-1f", None, FOUR, "has GPU-1f, which EGL has no number for; name EGL devices in env."),
    ],
)
def test_renderers_that_are_not_there(monkeypatch, visible, ordinals, found, said):
    monkeypatch.setattr(backends, "devices", lambda: found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match=said):
        backends.egl_of(ordinals)


def test_without_a_gpu_mesa_draws(monkeypatch):
    monkeypatch.setattr(backends, "devices", lambda: FOUR)
    assert backends.without_gpu() == ("egl", (4,))
    for answer in (lambda: FOUR[:4], lambda: backends.require("no such backend")):
        monkeypatch.setattr(backends, "devices", answer)
        assert backends.without_gpu() == ("osmesa", ())
