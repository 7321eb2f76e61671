"""One dialect of flags, recipes by name, old spellings; the console script."""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from pirl_jax import __main__ as pirl
from pirl_jax import evaluate, serve, train
from pirl_jax.recipes import quickstart
from pirl_jax.run import command, machine, recipes

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = [train, evaluate, serve]


def parse(*arguments):
    parser = command.Parser("pirl example", "what it does")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--checkpoint")
    return command.parse(["example", *arguments], parser)


@pytest.mark.parametrize(
    "arguments",
    [("--max-batch=3",), ("--max-batch", "3"), ("--max_batch=3",), ("-max-batch", "3")],
)
def test_flags_in_every_spelling(arguments, capsys):
    options, _ = parse("--config=quickstart", *arguments)
    assert options.max_batch == 3
    old = arguments[0].startswith("--max-batch")
    assert ("is the old spelling of --max-batch" in capsys.readouterr().err) != old


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_flags_are_spelled_with_hyphens(module):
    names = module._parser()._option_string_actions
    assert not [name for name in names if "_" in name]


@pytest.mark.parametrize(
    "arguments, field, value",
    [
        (["--config.optim.lr=0.5"], "optim.lr", 0.5),
        (["--config.optim.lr", "0.5"], "optim.lr", 0.5),
        (["--config.mesh.data", "-1"], "mesh.data", -1),
        (["--config.run.tensorboard", "False"], "run.tensorboard", False),
        (["--config.run.wandb", "--max-batch=1"], "run.wandb", True),
        (["--noconfig.run.tensorboard"], "run.tensorboard", False),
        (["--config.run.directory=a b=c"], "run.directory", "a b=c"),
        (["--config.env.tasks=0,2"], "env.tasks", (0, 2)),
        (["--config.rollout.pipeline_stage_num=4"], "rollout.num_groups", 4),
        (["--config.rollout.pipeline_stage_num", "4"], "rollout.num_groups", 4),
    ],
)
def test_overrides(arguments, field, value):
    _, page = parse(*arguments, "--config=quickstart")
    section, _, name = field.partition(".")
    assert page[section][name] == value


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_path = recipes.load_recipe(ROOT / "configs" / f"{name}.py")
    assert recipes.load_recipe(name) == by_path


def test_a_recipe_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from pirl_jax.recipes import quickstart\n\n\ndef get_config():\n"
    text += "    page = quickstart.get_config()\n    page.seed = 11\n    return page\n"
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "mine.py").write_text(text)
    assert recipes.load_recipe("mine.py").seed == 11
    assert recipes.load_recipe("quickstart").seed != 11


def test_a_name_that_is_none_lists_the_recipes():
    with pytest.raises(ValueError, match=r"no file and no recipe of this package; it has: .*probe"):
        recipes.load_recipe("quickstrat")


@pytest.mark.parametrize(
    "line",
    ["from configs import base", "import configs.base", "from configs.base import get_config"],
)
def test_an_old_recipe_gets_one_sentence(tmp_path, line):
    (tmp_path / "old.py").write_text(
        f"{line}\n\n\ndef get_config():\n    return base.get_config()\n"
    )
    with pytest.raises(
        ValueError, match=r"old.py:1 imports configs, which is now pirl_jax.recipes"
    ):
        recipes.load_recipe(tmp_path / "old.py")


@pytest.mark.parametrize(
    "text, said",
    [
        ("def get_config(:\n", "is no Python"),
        ("x = 1\n", "does not fit the page: .*get_config"),
        ("def get_config():\n    return {}\n", "gives no page"),
        (
            "from pirl_jax.recipes import base\n\n\ndef get_config():\n"
            "    page = base.get_config()\n    page.optim.learning_rate = 3\n    return page\n",
            "does not fit the page: .*learning_rate",
        ),
    ],
)
def test_a_recipe_with_a_fault_gets_one_sentence(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=said):
        recipes.load_recipe(tmp_path / "mine.py")


def test_commands_start_without_openpi_client():
    """pip does not install it; evaluation of a served policy, and serving, say so."""
    code = "import sys; sys.modules['openpi_client'] = None\n"
    code += "from pirl_jax import evaluate, serve, train"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_needs_openpi_client_says_so(monkeypatch, capsys):
    monkeypatch.setattr(machine.packages, "version", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        serve.main(["serve", "--config=quickstart", "--checkpoint=nowhere"])
    assert exit_.value.code == 2
    assert "run: python -m pirl_jax.download simulators" in capsys.readouterr().err


def test_a_run_is_its_own_recipe(tmp_path):
    page = quickstart.get_config()
    page.seed = 7
    (tmp_path / "config.json").write_text(json.dumps(page.to_dict()))
    _, read = parse(f"--checkpoint={tmp_path}", "--config.optim.lr=1.0")
    assert (read.seed, read.optim.lr) == (7, 1.0)


# ---- the console script ------------------------------------------------------------------------


def test_pirl_alone_names_every_command(capsys):
    pirl.main(["pirl"])
    said = capsys.readouterr().out
    files = {path.stem for path in (ROOT / "pirl_jax").glob("*.py")} - {"__init__", "__main__"}
    modules = {name.replace("_", "-") for name in files}
    assert set(pirl.COMMANDS) == modules | {"bench"}
    assert all(f"pirl {name}" in said for name in pirl.COMMANDS)


@pytest.mark.parametrize("name", pirl.COMMANDS)
def test_every_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        pirl.main(["pirl", name, "--help"])
    assert exit_.value.code == 0
    assert f"pirl {name}" in capsys.readouterr().out


def test_a_command_that_is_none(capsys):
    with pytest.raises(SystemExit) as exit_:
        pirl.main(["pirl", "trian"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'trian' is no command; pirl has: train, ")


def test_pirl_loads_only_the_command_that_is_asked_for():
    code = "import sys, pirl_jax.__main__ as m; m.main(['pirl']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in pirl.COMMANDS if name != "bench"])
def test_python_m_stays(name):
    module = importlib.import_module(f"pirl_jax.{name.replace('-', '_')}")
    assert "if __name__ ==" in pathlib.Path(module.__file__).read_text()


def test_what_the_devices_say_is_no_mistake_of_the_user():
    """JAX wraps some errors of its runtime in a ValueError; a traceback, not a sentence."""
    lost = "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:24242"
    with pytest.raises(ValueError, match="Gloo"), command.user_errors():
        raise ValueError(lost)
    with pytest.raises(SystemExit) as ending, command.user_errors():
        raise ValueError("UNKNOWN is no suite")
    assert ending.value.code == 2
