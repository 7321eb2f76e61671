"""What is taken for a secret, and what stays readable beside it."""

import pytest

from pirl_jax.core import secrets


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Variables of the tests alone: those of this machine are nobody's business."""
    monkeypatch.setattr(secrets.os, "environ", {})
    monkeypatch.setattr(secrets, "_told", set())
    return secrets.os.environ


@pytest.mark.parametrize(
    "name",
    ["--api-key", "-api_key", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"],
)
def test_names_of_secrets(name):
    assert secrets.names_one(name)


@pytest.mark.parametrize(
    "name", ["--tokenizer", "TOKENIZERS_PARALLELISM", "--keep", "MONKEY", "--prompt-tokens", "HOME"]
)
def test_names_of_other_things(name):
    assert not secrets.names_one(name)


@pytest.mark.parametrize(
    "argv, shown",
    [
        (["--api-key", "abc", "--port=1"], ["--api-key", "***", "--port=1"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["-api_key=abc"], ["-api_key=***"]),
        (["--api-key", "--port"], ["--api-key", "***"]),
        (["--api-key", "--api-key", "x"], ["--api-key", "***", "x"]),
        (["--config.model.max_token_len=48"], ["--config.model.max_token_len=48"]),
        (["--config.model.max_token_len", "48"], ["--config.model.max_token_len", "48"]),
        (["--policy=ws://me:abc@host:80/x"], ["--policy=ws://***@host:80/x"]),
        (["ws://host?token=abc&size=3"], ["ws://host?token=***&size=3"]),
        (["https://host/a?sig=abc;b=c"], ["https://host/a?sig=***;b=c"]),
        (["a@b.de"], ["a@b.de"]),
    ],
)
def test_a_command_line(argv, shown):
    assert secrets.arguments(["train", *argv]) == ["train", *shown]


def test_values_of_variables_wherever_they_stand(environment):
    environment |= {
        "HF_TOKEN": "hf_abcdefgh",
        "SHORT_KEY": "robot",
        "TINY_KEY": "on",
        "KEY_FILE": __file__,
        "SLASHED_KEY": "/9j4AAQSkZJRg",
        "HOME": "a_home_of_mine",
    }
    said = f"Ahf_abcdefghZ robot robots on {__file__} a_home_of_mine /9j4AAQSkZJRg"
    assert secrets.text(said) == f"A***Z *** robots on {__file__} a_home_of_mine ***"


def test_the_longer_of_two_is_hidden_whole(environment):
    environment |= {"A_KEY": "abcdefgh", "B_KEY": "abcdefghijkl"}
    assert secrets.text("abcdefghijkl") == "***"


def test_what_came_with_a_flag():
    secrets.tell("a-key-of-mine")
    secrets.tell(None)
    assert secrets.text("refused: a-key-of-mine") == "refused: ***"


@pytest.mark.parametrize("header", ["Api-Key abcdef", "Bearer abc.def-123", "basic YWJjOmRlZg=="])
def test_headers(header):
    shown = secrets.text(f"sent Authorization: {header}")
    assert shown == f"sent Authorization: {header.split()[0]} ***"


def test_any_depth_of_json(environment):
    environment["PIRL_API_KEY"] = "open sesame"
    value = {
        "policy": ["ws://me:abc@host", 3, None, ("open sesame", True)],
        "server": {"api_key": "abc", "max_token_len": 48, "open sesame": 1.5},
    }
    assert secrets.cleaned(value) == {
        "policy": ["ws://***@host", 3, None, ("***", True)],
        "server": {"api_key": "***", "max_token_len": 48, "***": 1.5},
    }
    assert value["server"]["api_key"] == "abc", "the program goes on with what it was given"


def test_numbers_are_not_secrets(environment):
    """The rows of metrics.jsonl and the counts of evaluation.json stay numbers."""
    environment["A_TOKEN"] = "12345678"
    assert secrets.cleaned({"steps": 12345678}) == {"steps": 12345678}
