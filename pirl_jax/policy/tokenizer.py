"""Instruction (and, for the discrete-state form, robot state) -> token ids.

Host only; knows no model.

Two tokenizers: SentencePieceTokenizer reads PaliGemma's file and is what pretrained checkpoints
need; ByteTokenizer needs no download and serves models trained from scratch.  A tokenizer has
``vocab_size`` and ``encode(text, add_bos)``.
"""

from collections.abc import Iterable
import pathlib
from typing import Protocol

import numpy as np
import sentencepiece

NUM_STATE_BINS = 256
PAD_ID = 0


class Tokenizer(Protocol):
    """What both tokenizers are."""

    vocab_size: int

    def encode(self, text: str, add_bos: bool) -> list[int]: ...


class ByteTokenizer:
    """One token per UTF-8 byte: BOS is 2, byte b is 10 + b."""

    vocab_size = 266

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Token ids of a text, as it is."""
        return [2] * add_bos + [10 + byte for byte in text.encode("utf-8")]


class SentencePieceTokenizer:
    """A SentencePiece model file, e.g. paligemma_tokenizer.model."""

    def __init__(self, path: str | pathlib.Path):
        path = pathlib.Path(path)
        if not path.is_file():
            raise ValueError(
                f"no tokenizer file at {path}; put PaliGemma's paligemma_tokenizer.model there"
            )
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size = self._processor.vocab_size()

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Token ids of a text, as it is."""
        return self._processor.encode(text, add_bos=add_bos)


def load(name: str) -> Tokenizer:
    """`name`: "byte", or the path of a SentencePiece model.

    Raises: ValueError for no name or no file.
    """
    if not name:
        raise ValueError(
            "model.tokenizer is empty; set it to the path of PaliGemma's"
            " paligemma_tokenizer.model or to 'byte'"
        )
    return ByteTokenizer() if name == "byte" else SentencePieceTokenizer(name)


def discretize_state(state: np.ndarray) -> np.ndarray:
    """Normalised state -> bin 0..255 of [-1, 1]; -1 below the range, 255 above it."""
    edges = np.linspace(-1, 1, NUM_STATE_BINS + 1)
    return np.digitize(state, edges[:-1]) - 1


def prompt_ids(
    tokenizer: Tokenizer, instruction: str, state_Q: np.ndarray | None = None
) -> list[int]:
    """All token ids of one prompt, neither padded nor cut.

    The discrete-state form if given a (normalised) state.
    """
    text = instruction.strip().replace("_", " ").replace("\n", " ")
    if state_Q is None:
        # The newline is a call of its own: joined to the text, SentencePiece could merge it into
        # another token.
        return tokenizer.encode(text, add_bos=True) + tokenizer.encode("\n", add_bos=False)
    bins = " ".join(map(str, discretize_state(state_Q)))
    return tokenizer.encode(f"Task: {text}, State: {bins};\nAction: ", add_bos=True)


def tokenize(
    tokenizer: Tokenizer, instruction: str, max_len: int, state_Q: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """-> (tokens_P int32, token_mask_P bool), P = max_len.

    Cuts longer prompts; check_prompts refuses them before.
    """
    ids = prompt_ids(tokenizer, instruction, state_Q)[:max_len]
    tokens_P = np.full(max_len, PAD_ID, np.int32)
    tokens_P[: len(ids)] = ids
    return tokens_P, np.arange(max_len) < len(ids)


def check_prompts(
    tokenizer: Tokenizer, instructions: Iterable[str], max_len: int, discrete_state_dim: int = 0
) -> int:
    """Length in tokens of the longest prompt.  Called once, before a run.

    Raises: ValueError when it does not fit.
    """
    # A state in the topmost bin has three digits in every dimension: no state makes a longer
    # prompt.
    state_Q = np.ones(discrete_state_dim) if discrete_state_dim else None
    lengths = {text: len(prompt_ids(tokenizer, text, state_Q)) for text in instructions}
    worst = max(lengths, key=lengths.get)
    if lengths[worst] > max_len:
        raise ValueError(
            f"the prompt {worst!r} needs {lengths[worst]} tokens, but model.max_token_len is"
            f" {max_len}; set model.max_token_len to at least {lengths[worst]}"
        )
    return lengths[worst]
