"""Paths as people write them, and places where nothing can be written.

Tests run as root, for whom permissions prove nothing: other users, and disks that are read-only or
full, are tried in processes of their own.
"""

import ast
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from pirl_jax.core import bounds, endings, page, paths
from pirl_jax.envs import caches, places
from pirl_jax.envs.libero import files, perturbed
from pirl_jax.run import command
from tests import storage

ROOT = pathlib.Path(__file__).parents[2]
# envs/ knows no core.
MAY_EXPAND = {"core/paths.py", "envs/places.py"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


# ---- what people write -------------------------------------------------------------------------


def test_the_home_folder_and_the_working_directory(home, tmp_path):
    assert paths.absolute("~/runs/x") == home / "runs" / "x"
    assert paths.absolute("~") == home
    assert paths.absolute("runs/x") == tmp_path / "runs" / "x"
    assert paths.absolute("./~/x") == tmp_path / "~" / "x", "a folder of that name"
    assert paths.absolute("a b/ü") == tmp_path / "a b" / "ü"
    assert paths.absolute(tmp_path) == tmp_path


def test_links_stay_as_they_are(tmp_path):
    (tmp_path / "newest").symlink_to("home")
    assert paths.absolute("newest").name == "newest"


@pytest.mark.parametrize(
    "text", ["", "  ", "a\0b", "a\nb", "b\udcff", "a" * 256, "x/" * 3000, "~nobody_of_this_name/x"]
)
def test_what_is_no_path(text):
    with pytest.raises(ValueError, match=r"; (write|rename)") as error:
        paths.absolute(text)
    assert str(error.value).isprintable()


def test_variables(home, monkeypatch):
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", "~/assets")
    assert paths.of_variable("PIRL_LIBERO_ASSETS") == home / "assets"
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", "")
    assert paths.of_variable("PIRL_LIBERO_ASSETS") is None
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", "~nobody_of_this_name/x")
    with pytest.raises(ValueError, match=r"^\$PIRL_LIBERO_ASSETS: ~nobody"):
        paths.of_variable("PIRL_LIBERO_ASSETS")


WRITTEN = ["~/x", "~", "a/b", "./a b/", "a/../b", "~/ü x//y/", "./~/x", "/x/"]


@pytest.mark.parametrize("text", WRITTEN)
def test_the_environments_read_a_path_as_all_else_does(text, monkeypatch):
    """envs/ knows no core: it has a function of its own, and these two must not differ."""
    assert places.whole(text) == paths.absolute(text)
    monkeypatch.setenv("PIRL_X", text)
    assert places.of_variable("PIRL_X") == paths.of_variable("PIRL_X") == paths.absolute(text)


VARIABLES = {
    "PIRL_LIBERO_ASSETS": lambda: files.find_assets(None),
    "PIRL_LIBERO_PRO": lambda: perturbed.folders().pro,
    "PIRL_LIBERO_PLUS": lambda: perturbed.folders().plus,
    "PIRL_LIBERO_PLUS_ASSETS": lambda: perturbed.folders().plus_assets,
    "XDG_CACHE_HOME": lambda: caches.users("").parent,
    "NUMBA_CACHE_DIR": lambda: pathlib.Path(caches.variables()["NUMBA_CACHE_DIR"]),
}


def assets_in(folder):
    for name in files.ASSET_FOLDERS:
        (folder / name).mkdir(parents=True)


@pytest.mark.parametrize("text", ["~/my data", "./my data/", "home/my data", "home//my data/."])
@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_is_a_whole_path(variable, text, home, tmp_path, monkeypatch):
    folder = home / "my data"
    if text.startswith("./"):
        folder = tmp_path / "my data"
    assets_in(folder)
    monkeypatch.setenv(variable, text)
    assert VARIABLES[variable]() == folder


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_names_nobody(variable, monkeypatch):
    monkeypatch.setenv(variable, "~nobody_of_this_name/x")
    with pytest.raises(ValueError, match=rf"^\${variable}: ~nobody_of_this_name/x names a user"):
        VARIABLES[variable]()


@pytest.mark.parametrize("variable", sorted(VARIABLES.keys() - {"NUMBA_CACHE_DIR"}))
def test_a_blank_variable_is_unset(variable, home, monkeypatch):
    assets_in(home / "assets")
    monkeypatch.setattr(files, "installed_assets", lambda: [home / "assets"])
    monkeypatch.delenv(variable, raising=False)
    unset = VARIABLES[variable]()
    for blank in ("", " "):
        monkeypatch.setenv(variable, blank)
        assert VARIABLES[variable]() == unset


def test_all_variables_of_ours_that_are_paths_are_tried():
    """Whatever else reads one names it here."""
    known = {*VARIABLES, "PIRL_API_KEY"}  # a key
    text = "".join(path.read_text() for path in (ROOT / "pirl_jax").rglob("*.py"))
    assert set(re.findall(r"\bPIRL_[A-Z_]*[A-Z]\b", text)) <= known


# Flags whose values are neither paths nor numbers, or are read by a function of their own.
TEXTS = {
    "--policy",
    "--config",
    "--recipe",
    "--recipes",
    "--targets",
    "--tasks",
    "--workers",
    "--hosts",
    "rows",
}


@functools.cache
def _code():
    """{file of the package: every attribute, keyword and call in it}"""
    kinds = (ast.Attribute, ast.keyword, ast.Call)
    found = {}
    for file in sorted((ROOT / "pirl_jax").rglob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        name = str(file.relative_to(ROOT / "pirl_jax"))
        found[name] = [node for node in nodes if isinstance(node, kinds)]
    return found


def test_every_flag_says_what_it_is():
    """One without a type would be a text, and a path that nobody expands."""
    found = set()
    for nodes in _code().values():
        for node in nodes:
            is_flag = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument")
            if not is_flag or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            keywords = {keyword.arg for keyword in node.keywords}
            if not keywords & {"type", "action", "choices"}:
                found.add(node.args[0].value)
    assert found == TEXTS


def _places():
    for name, section in page.SECTIONS.items():
        for field in dataclasses.fields(section):
            if field.metadata["bound"].place:
                yield name, field


PLACES = [pytest.param(*place, id=f"{place[0]}.{place[1].name}") for place in _places()]


def test_which_fields_are_paths():
    names = {f"{section}.{field.name}" for section, field in _places()}
    assert names == {
        *(
            "env.assets",
            "env.pro_files",
            "env.plus_files",
            "env.plus_assets",
            "model.checkpoint",
            "model.norm_stats",
            "model.tokenizer",
            "sft.dataset",
        ),
        *("run.directory", "run.compilation_cache", "video.directory"),
    }


@pytest.mark.parametrize("section, field", PLACES)
def test_every_path_of_the_page_is_a_whole_one(section, field, home):
    fields = page.Page().as_dict()
    fields[section][field.name] = "~/x"
    assert getattr(getattr(page.from_dict(fields), section), field.name) == str(home / "x")
    for name in field.metadata["bound"].names:
        fields[section][field.name] = name
        assert getattr(getattr(page.from_dict(fields), section), field.name) == name
    fields[section][field.name] = "~nobody_of_this_name/x"
    with pytest.raises(ValueError, match=rf"^{section}.{field.name}: ~nobody_of_this_name/x"):
        page.from_dict(fields)


def test_values_that_are_no_text_are_anothers(home):
    made = bounds.with_whole_paths(page.Run, {"directory": 3, "compilation_cache": ""})
    assert made == {"directory": 3, "compilation_cache": ""}


def test_a_flag(home):
    parser = command.Parser("pirl x")
    parser.add_argument("--to", type=command.path)
    assert parser.parse_args(["--to=~/x"]).to == home / "x"


def test_nobody_else_expands_a_path():
    """A second function for it would be one that differs."""
    wrong = []
    for name, nodes in _code().items():
        for node in nodes:
            expands = isinstance(node, ast.Attribute) and node.attr == "expanduser"
            # What argparse hands over as it was typed.
            is_type = isinstance(node, ast.keyword) and node.arg == "type"
            raw = is_type and ast.unparse(node.value) == "pathlib.Path"
            if (expands or raw) and name not in MAY_EXPAND:
                wrong.append(f"{name}: {ast.unparse(node)}")
    assert not wrong, wrong


# ---- where nothing can be written --------------------------------------------------------------


@pytest.mark.parametrize(
    "place, reason",
    [
        ("/proc/pirl/run", "cannot be written"),
        ("/dev/null", "Not a directory: /dev/null"),
        ("file", "Not a directory: file"),
        ("file/run", "Not a directory: file"),
        ("loop", "Too many levels of symbolic links: loop"),
        ("dangling", "No such file or directory: dangling"),
    ],
)
def test_places_that_cannot_be_written(place, reason, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"^run\.directory={place} .*; choose another") as error:
        paths.require_writable(pathlib.Path(place), "run.directory")
    assert reason in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_can_be_written_stays_as_it_was(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    paths.require_writable(tmp_path, "run.directory")
    paths.require_writable(tmp_path / "a" / "b", "run.directory")
    assert sorted(tmp_path.rglob("*")) == before


TRY = """
import pathlib, sys
from pirl_jax.core import paths
try:
    paths.require_writable(pathlib.Path(sys.argv[1]), "--output")
except ValueError as error:
    print(error)
else:
    print("can be written")
"""


def tried(*before, place):
    """What require_writable says where `before` starts it."""
    argv = [*before, sys.executable, "-c", TRY, str(place)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _mounts(script, place, *, must="unshare"):
    """The same in a mount namespace of its own, after a line of shell; $0 is the place."""
    if os.geteuid() or shutil.which(must) is None:
        pytest.skip("mounting needs root and unshare")
    shell = f'{script} && exec "$@"'
    probe = ["unshare", "-m", "bash", "-c", f"{script} && true", str(place)]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    return tried("unshare", "-m", "bash", "-c", shell, str(place), place=place)


def test_a_read_only_disk(tmp_path):
    said = _mounts('mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"', tmp_path)
    assert said == (
        f"--output={tmp_path} cannot be written (Read-only file system: {tmp_path}); "
        f"choose another place"
    )


def test_a_full_disk(tmp_path):
    fill = (
        'mount -t tmpfs -o size=64k tmpfs "$0" && { cat /dev/zero >"$0/fill" 2>/dev/null; true; }'
    )
    said = _mounts(fill, tmp_path)
    assert f"--output={tmp_path} cannot be written (No space left on device: {tmp_path})" in said


def test_another_users_folder(tmp_path):
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("being somebody else needs root and setpriv")
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    sees = [*other, sys.executable, "-c", "import pirl_jax.core.paths"]
    if subprocess.run(sees, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("another user cannot read this checkout or its environment")
    (tmp_path / "mine").mkdir(mode=0o755)
    storage.let_others_in(tmp_path)
    place = tmp_path / "mine"
    assert f"--output={place} cannot be written (Permission denied: " in tried(*other, place=place)
    place.chmod(0o777)
    assert tried(*other, place=place) == "can be written"


# ---- what the machine refuses while a command works ----------------------------------------------


@pytest.mark.parametrize("number", endings.REMEDIES)
def test_what_the_machine_refuses_has_a_sentence(number, capsys):
    with pytest.raises(SystemExit) as exit_, command.known_endings():
        raise OSError(number, os.strerror(number), "/runs/x/metrics.jsonl")
    said = capsys.readouterr().err
    remedy = endings.REMEDIES[number]
    assert exit_.value.code == 2
    assert said == f"error: /runs/x/metrics.jsonl: {os.strerror(number)}; {remedy}\n"


def test_a_full_disk_needs_no_name(capsys):
    """A write to an open file raises without one."""
    with pytest.raises(SystemExit), command.known_endings():
        raise OSError(28, "No space left on device")
    said = capsys.readouterr().err
    assert said == "error: No space left on device; make space or choose another place\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a mistake of ours"),
        ValueError("a mistake of ours"),
        KeyError("params"),
        FileNotFoundError("without a place"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_a_real_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, command.known_endings():
        raise error
    assert raised.value is error
