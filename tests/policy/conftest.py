"""What the tests of prompts share."""

import pytest


class Recorder:
    """A tokenizer that writes down what it is asked to encode."""

    def __init__(self):
        self.calls = []

    def encode(self, text, add_bos):
        self.calls.append({"text": text, "add_bos": add_bos, "add_eos": False})
        return []


@pytest.fixture
def make_recorder():
    return Recorder
