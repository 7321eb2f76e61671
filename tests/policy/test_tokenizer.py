import json

import numpy as np
import pytest
import reference_files

from pirl_jax.policy import tokenizer


@pytest.fixture(scope="module")
def cases(vectors):
    return json.loads((vectors / "openpi" / "tokenizer.json").read_text())["cases"]


@pytest.fixture(scope="module")
def sentence_piece(vectors):
    return tokenizer.SentencePieceTokenizer(vectors / "openpi" / "tiny_spm.model")


def _state(case):
    return None if case["state"] is None else np.array(case["state"], case["state_dtype"])


def test_texts_equal_openpi(cases, make_recorder):
    for case in cases:
        recorder = make_recorder()
        tokenizer.prompt_ids(recorder, case["prompt"], _state(case))
        assert recorder.calls == case["encode_calls"]


@pytest.mark.parametrize("kind", ["byte", "spm"])
def test_tokens_equal_openpi(cases, sentence_piece, kind):
    tokens = {"byte": tokenizer.ByteTokenizer(), "spm": sentence_piece}[kind]
    assert len(cases) > reference_files.enough(100)
    for case in cases:
        got, mask = tokenizer.tokenize(tokens, case["prompt"], case["max_len"], _state(case))
        assert got.dtype == np.int32 and mask.dtype == bool
        np.testing.assert_array_equal(got, case[f"{kind}_tokens"])
        np.testing.assert_array_equal(mask, case[f"{kind}_mask"])


def test_state_bins_equal_openpi(vectors):
    data = np.load(vectors / "openpi" / "data_discretize.npz")
    np.testing.assert_array_equal(tokenizer.discretize_state(data["state"]), data["bucket"])
    np.testing.assert_array_equal(
        np.linspace(-1, 1, tokenizer.NUM_STATE_BINS + 1)[:-1], data["bins"]
    )
    assert data["bucket"].min() == -1 and data["bucket"].max() == 255


def test_vocabulary_covers_all_tokens(sentence_piece):
    ids = tokenizer.prompt_ids(tokenizer.ByteTokenizer(), "é \U0001f600")
    assert max(ids) < tokenizer.ByteTokenizer.vocab_size == 10 + 256
    assert sentence_piece.vocab_size == 560


def test_check_prompts_refuses_what_would_be_cut():
    tokens = tokenizer.ByteTokenizer()
    texts = ["stack", "push it"]
    assert tokenizer.check_prompts(tokens, texts, 9) == 9  # BOS + 7 bytes + newline
    with pytest.raises(
        ValueError,
        match=r"'push it' needs 9 tokens, but model.max_token_len is 8; set .* at least 9",
    ):
        tokenizer.check_prompts(tokens, texts, 8)


def test_check_prompts_bounds_every_state():
    tokens, rng = tokenizer.ByteTokenizer(), np.random.default_rng(0)
    bound = tokenizer.check_prompts(tokens, ["push"], 200, discrete_state_dim=8)
    lengths = [len(tokenizer.prompt_ids(tokens, "push", rng.normal(size=8))) for _ in range(200)]
    assert max(lengths) <= bound


def test_missing_file_says_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer file at .*paligemma.model; put"):
        tokenizer.SentencePieceTokenizer(tmp_path / "paligemma.model")
