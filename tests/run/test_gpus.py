"""What JAX is told of GPUs before it starts, on a machine with a stand-in for nvidia-smi."""

import os
import sys

import jax
import pytest

from pirl_jax.core import page
from pirl_jax.run import config, devices, gpus

H100_MIB = 81559


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that puts GPUs with so much memory into this machine -> what JAX is told."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    for name in (*gpus.CHOSEN, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def put(*memory):
        program = tmp_path / "nvidia-smi"
        lines = "".join(f"print({size})\n" for size in memory)
        program.write_text(f"#!{sys.executable}\n{lines}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return told

    yield put
    os.environ.pop(gpus.FRACTION, None)


def settings(num_workers=8, **placement):
    fields = page.Page().as_dict()
    fields["placement"].update(placement)
    fields["env"]["num_workers"] = num_workers
    return config.settings(fields)


def test_without_a_placement_nothing_changes(machine):
    told = machine(*[H100_MIB] * 8)
    assert gpus.prepare(settings()) == [] and not told and gpus.FRACTION not in os.environ


def test_without_gpus_nothing_changes(monkeypatch, machine):
    told = machine()
    separate = settings(env="0-1", rollout="2-5", actor="6-7")
    assert gpus.prepare(separate) == [] and not told and gpus.FRACTION not in os.environ
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus.prepare(separate) == []


def test_gpus_that_only_draw_are_left_alone(machine):
    told = machine(*[H100_MIB] * 8)
    said = gpus.prepare(settings(env="0-1", rollout="2-5", actor="6-7"))
    assert told == {"jax_cuda_visible_devices": "2,3,4,5,6,7"}
    assert os.environ[gpus.FRACTION] == "0.95"
    assert said[0] == "placement: JAX opens GPUs 2-7 alone" and "0.95" in said[1]


def test_simulators_get_room_on_the_gpus_that_they_share(machine):
    told = machine(*[H100_MIB] * 8)
    gpus.prepare(settings(env="0-3", rollout="4-7", num_workers=64))
    assert not told
    # 16 processes on each of the four.
    assert os.environ[gpus.FRACTION] == "0.87"


def test_the_smallest_gpu_decides_and_who_has_chosen_is_heard(machine, monkeypatch):
    machine(H100_MIB, 24564)
    gpus.prepare(settings(env="all", num_workers=8))
    assert os.environ[gpus.FRACTION] == "0.83"
    monkeypatch.setenv(gpus.FRACTION, "0.5")
    assert gpus.prepare(settings(env="all", num_workers=8)) == []
    assert os.environ[gpus.FRACTION] == "0.5"


def test_there_is_always_something_left_for_jax():
    assert gpus.fraction([4096], [0], [0], 100) == 0.1


def test_a_gpu_that_is_not_here_is_named_before_jax_starts(machine, monkeypatch):
    machine(*[H100_MIB] * 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-11")
    assert gpus.memory_mib() == [H100_MIB] * 3
    with pytest.raises(ValueError, match=r"placement.actor='3' names device 3, .* has 3 devices"):
        devices.setup_jax(settings(actor="3"))


def test_numbers_of_the_placement_are_those_of_the_host(monkeypatch):
    """Also where JAX opens only some of its GPUs."""
    separate = settings(rollout="4-7", actor="8-11")
    opened = jax.config.values | {"jax_cuda_visible_devices": "4,5,6,7,8,9,10,11"}
    monkeypatch.setattr(type(jax.config), "values", opened)
    monkeypatch.setattr(devices.meshes, "platform", lambda: "gpu")
    learns = devices.mesh(separate)
    assert [device.id for device in learns.devices.flat] == [4, 5, 6, 7]
    assert [device.id for device in devices.playing(separate, learns).devices.flat] == [0, 1, 2, 3]
