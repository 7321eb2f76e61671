"""What docs/checkpoints.md tells people to type is understood, and what it says is read is read."""

import pathlib
import re
import shlex

import pytest

from pirl_jax import convert, evaluate, serve, train
from pirl_jax.run import command, recipes
from pirl_jax.weights import claims, lerobot, torch_names

TEXT = pathlib.Path(__file__, "../../../docs/checkpoints.md").resolve().read_text(encoding="utf-8")
COMMANDS = {"train": train, "evaluate": evaluate, "serve": serve, "convert": convert}
# A command goes on in lines that are indented.
TYPED = re.findall(r"^pirl (\w+) +(.+(?:\n +.+)*)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("name, arguments", TYPED)
def test_every_command_is_understood(name, arguments):
    words = shlex.split(arguments.replace("\\\n", " "), comments=True)
    overrides, own = command._split(words)
    parser = COMMANDS[name]._parser()
    parser.add_argument("--config")
    options = parser.parse_args(own)
    if options.config and options.config != "RECIPE":
        command.override(recipes.load_recipe(options.config), overrides)
    assert options.config or name == "convert"


def test_all_commands_are_there():
    assert {name for name, _ in TYPED} == set(COMMANDS) and len(TYPED) >= 12


def test_the_keys_and_wrappers_that_it_names_are_those_of_the_code():
    for key in (*claims.LEROBOT_KEYS, lerobot.TRAIN_CONFIG, *lerobot.PROCESSORS, *claims.MODES):
        assert f"`{key}`" in TEXT, key
    for field in claims.OUR_FIELDS:
        assert f"`{field}`" in TEXT or "| horizon, " in TEXT
    for wrapper in (*torch_names.WRAPPERS, "model"):
        assert f"`{wrapper}.`" in TEXT, wrapper
