"""Every command of README.md and of docs/ is one that works, tried in its cheapest form.

The blocks of shell are run by bash, loops and all, with stand-ins for the programs that write down
what they are asked; what they were asked is then read by the command itself, recipe, fields and
values included.  Commands in running text are read the same way, with their capitals filled in.
"""

import ast
import importlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
import types

import pytest

from pirl_jax import __main__ as pirl
from pirl_jax.recipes import quickstart
from pirl_jax.run import command, config, recipes

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:pirl|python|bash|srun|pip) [^`]+)`")
BASH = shutil.which("bash")
PROGRAMS = ("pirl", "python", "bash", "srun", "pip", "ruff", "pirl-jax")
STAND_IN = f"""#!{BASH}
printf '%s\\037' "${{0##*/}}" "$@" >>"$ASKED"
printf '\\036' >>"$ASKED"
"""
# What the capitals of running text stand for.
FILLED_IN = {
    "RUN_DIR": "runs/quickstart",
    "RUN": "runs/quickstart",
    "RUN|EVALUATION": "runs/quickstart",
    "CHECKPOINT": "runs/quickstart",
    "RECIPE": "quickstart",
    "NAME": "quickstart",
    "HOST:PORT": "localhost:8000",
    "CERT": "README.md",
    "KEY": "README.md",
    "FILE": "README.md",
    "DIR": "runs",
    "N": "24",
    "COMMAND": "doctor",
}
WITH_RECIPES = ("train", "evaluate", "serve")


class Read(BaseException):
    """The command line was read: nothing more is asked of the command."""


def blocks(page, language):
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(body) for _, name, body in found if name == language]


@pytest.fixture
def asked(tmp_path):
    """asked(shell text) -> the programs that it calls, each a list of words."""
    for name in PROGRAMS:
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    note = tmp_path / "asked"
    environment = {"PATH": str(tmp_path), "ASKED": str(note)}

    def calls(text):
        note.write_text("")
        script = f'source() {{ bash source {BASH} "$@"; }}\n{text}'
        options = {"capture_output": True, "text": True, "check": False, "env": environment}
        done = subprocess.run([BASH, "-euc", script], **options)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [words.split("\037")[:-1] for words in note.read_text().split("\036")[:-1]]

    return calls


@pytest.fixture
def works(monkeypatch):
    """works(words): fails where a command line is none; with is_whole=False where it is no part of
    one either: then a recipe may be left out."""
    read = command.Parser.parse_args
    understand = command.parse
    now = types.SimpleNamespace(command="", is_whole=True)

    def options_alone(self, *args, **kwargs):
        options = read(self, *args, **kwargs)
        if now.command in WITH_RECIPES:
            return options
        raise Read

    def recipe_too(argv, parser, **how):
        _, page = understand(argv, parser, **how)
        if page is not None:
            config.settings(page)
        raise Read

    monkeypatch.setattr(command.Parser, "parse_args", options_alone)
    monkeypatch.setattr(command, "parse", recipe_too)
    # The run that earlier lines of the page have made.
    monkeypatch.setattr(recipes, "load_run", lambda run: quickstart.get_config())

    def run(name, arguments):
        now.command = name
        is_partial = not now.is_whole and not {"--config", "--checkpoint"} & set(arguments)
        if is_partial and name in WITH_RECIPES:
            arguments = [*arguments, "--config", "quickstart"]
        module = "pirl_jax.bench.__main__" if name == "bench" else f"pirl_jax.{name}"
        with pytest.raises(Read):
            importlib.import_module(module).main([f"pirl {name}", *arguments])

    def check(words, is_whole=True):
        now.is_whole = is_whole
        program, *arguments = words
        if program == "python":
            _python(arguments, run)
        elif program == "bash":
            _script(arguments, run)
        elif program == "srun":
            _script(arguments[arguments.index("bash") + 1 :], run)
        elif program == "pip":
            _pip(arguments)
        elif program == "pirl" and arguments:
            run(arguments[0], arguments[1:])

    return check


def _python(arguments, run):
    if arguments[0] == "-m" and arguments[1].removeprefix("pirl_jax.") in pirl.COMMANDS:
        run(arguments[1].removeprefix("pirl_jax."), arguments[2:])
    elif arguments[0] == "-c":
        ast.parse(arguments[1])
    elif arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments
    else:
        assert (ROOT / arguments[0]).is_file(), arguments


def _script(arguments, run):
    """Of launch/; what goes to the trainer is read by the trainer."""
    name, *rest = arguments
    if name == "source":
        assert rest[1:] == [".venv/bin/activate"], rest
        return
    script = ROOT / name
    assert script.is_file() and script.parent.name in ("launch", ".ci"), arguments
    if script.name == "quickstart.sh":
        run("train", ["--config=quickstart", *[word for word in rest if word != "libero"]])
    elif script.name == "hosts.sh":
        run("train", rest[1:])
    elif script.name == "learning.sh":
        assert re.search(rf"\b{rest[0]}( \||\))", script.read_text()), rest
    else:
        files = [word for word in rest if word.endswith(".py")]
        assert not [word for word in files if not (ROOT / word).is_file()], rest


def _pip(arguments):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"pirl_jax\[(\w+)\]", " ".join(arguments)):
        assert extra in extras["optional-dependencies"]
    if "-r" in arguments:
        assert (ROOT / arguments[arguments.index("-r") + 1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_block_of_shell(page, asked, works):
    for block in blocks(page, "bash"):
        calls = asked(block)
        assert calls, block
        for words in calls:
            works(words)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_command_in_running_text(page, works):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for line in INLINE.findall(text):
        line = re.sub(r"\s+|\[|\]|\.\.\.", " ", line.partition(" > ")[0])
        words = []
        for word in shlex.split(line):
            for capitals, value in FILLED_IN.items():
                word = re.sub(rf"\b{capitals}\b", value, word)
            words.append(word)
        if words != ["pirl", "bench"]:
            works(words, is_whole=False)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_field_and_value_exists(page):
    """`section.field` and `section.field=value`, wherever they stand in code."""
    base = quickstart.get_config()
    sections = [name for name, value in base.items() if hasattr(value, "keys")]
    fields = recipes.field_names(base)
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    if page.name == "rlinf.md":  # the keys of its table are RLinf's
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    named = re.findall(rf"`(?:--config\.)?((?:{'|'.join(sections)})\.\w+)(=[^` ]*)?`", text)
    assert [name for name, _ in named if name not in fields] == []
    for name, value in named:
        if value and "|" not in value and not value.isupper():
            command.override(quickstart.get_config(), [f"--config.{name}{value}"])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_variable_is_read_somewhere(page):
    named = set(re.findall(r"\bPIRL_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    folders = [ROOT / "launch", ROOT / "pirl_jax", ROOT / "tests"]
    texts = []
    for folder in folders if named else []:
        texts += [file.read_text() for file in folder.rglob("*") if file.suffix in (".sh", ".py")]
    read = set(re.findall(r"\bPIRL_[A-Z_]*[A-Z]\b", "".join(texts)))
    assert named <= read


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_block_of_python_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_what_does_not_work_is_found(asked, works):
    """The tests above can fail: each of these has one mistake."""
    for line in (
        "pirl train --config libero_spatial_ppo_pi0 --resum auto",
        "pirl train --config libero_spatial_ppo_pi0 --config.optim.rate=1",
        "pirl train --config libero_spatial_ppo",
        "pirl train --config quickstart --config.model.num_steps=0",
        "pirl download RLinf-Pi0",
        "bash launch/quickstarts.sh",
        "bash launch/hosts.sh a,b --config nothing",
    ):
        (words,) = asked(line)
        with pytest.raises((AssertionError, SystemExit)):
            works(words)
    with pytest.raises(AssertionError):
        asked("curl somewhere")


# ---- for real, as far as a CPU goes ------------------------------------------------------------


@pytest.mark.slow
def test_the_steps_of_the_readme_follow_each_other(asked, tmp_path):
    """Train, diagnose, evaluate and resume as written, on a probe instead of LIBERO."""
    (block,) = [block for block in blocks(ROOT / "README.md", "bash") if "pirl evaluate" in block]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = []
    for words in asked(block):
        if words[0] != "pirl" or words[1] in ("download", "bench", "doctor"):
            continue
        line = " ".join(words).replace("--config libero_spatial_ppo_pi0", "--config probe")
        words = [word for word in line.split() if not word.startswith("--config.model.")]
        if words[1] == "train":
            words += ["--config.run.directory=runs/libero_spatial_ppo_pi0"]
            words += ["--config.num_iterations=1"]
        done = subprocess.run(
            [sys.executable, "-m", "pirl_jax", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ran.append(words[1])
    assert ran == ["train", "diagnose", "evaluate"]
