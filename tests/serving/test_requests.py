"""Observations under openpi's keys: model inputs as by openpi's transforms, else a sentence."""

import numpy as np
import pytest
import reference_files

from pirl_jax.policy import normalize, observation, tokenizer
from pirl_jax.serving import requests

IDENTITY = normalize.identity(8, 7)
FIELDS = dict(
    norm_mode="quantile",
    delta_actions=False,
    discrete_state=False,
    image_size_px=224,
    resize="host",
    max_token_len=48,
    action_dim=32,
    env_action_dim=7,
)
TRANSFORM = observation.Transform(
    tokenizer.ByteTokenizer(), IDENTITY, **FIELDS | dict(image_size_px=16, max_token_len=16)
)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
GOOD = requests.write(np.stack([IMAGE, IMAGE[::-1]]), np.arange(8, dtype=np.float32), "push", 24)


def read(message, transform=TRANSFORM, arrival=0):
    return requests.read(message, transform, arrival)


def test_what_is_read_equals_openpis_transforms(vectors):
    """Its cameras differ in size and the second is float."""
    data = np.load(vectors / "openpi" / "data_libero.npz")
    names = ("mean", "std", "q01", "q99")

    def stats(key):
        return normalize.Stats(*(data[f"stats/{key}/{name}"] for name in names))

    given = normalize.NormStats(stats("state"), stats("actions"))
    transform = observation.Transform(
        tokenizer.ByteTokenizer(), given, **FIELDS | dict(norm_mode="zscore", max_token_len=100)
    )
    prompt = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    message = {key: data[f"in/{key}"] for key in (*requests.IMAGES, requests.STATE)}
    message[requests.PROMPT] = prompt
    request = read(message, transform)
    obs = observation.encode(transform, request.images[None], request.state[None], [request.prompt])
    for view, camera in enumerate(("base_0_rgb", "left_wrist_0_rgb")):
        recorded = f"pi0_libero/model_in/image/{camera}"
        if reference_files.COMPLETE or recorded in data.files:
            np.testing.assert_array_equal(obs.images[0, view], data[recorded])
    state = data["pi0_libero/model_in/state"].astype(np.float32)
    np.testing.assert_array_equal(obs.state[0], state)


def test_a_client_writes_what_a_server_reads():
    """Images of the wanted size pass through; the state keeps its value, as float64 (openpi's)."""
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    state_Q = np.random.default_rng(1).normal(size=8).astype(np.float32)
    message = requests.write(images, state_Q, "push", 16)
    assert message["observation/state"].dtype == np.float64
    request = read(message | {"noise_id": 5})
    np.testing.assert_array_equal(request.images, images)
    np.testing.assert_array_equal(request.state, state_Q)
    assert request.prompt == "push"
    assert request.noise_id == 5


def test_accepted_forms():
    whole = read(GOOD)
    chw = GOOD | {"observation/image": np.moveaxis(GOOD["observation/image"], -1, 0)}
    unit = GOOD | {"observation/image": GOOD["observation/image"].astype(np.float64) / 255}
    np.testing.assert_array_equal(read(chw).images, whole.images)
    assert np.abs(read(unit).images.astype(int) - whole.images).max() <= 1  # openpi truncates
    for prompt in (np.array("push"), np.str_("push")):
        assert read(GOOD | {"prompt": prompt}).prompt == "push"
    integers = GOOD | {"observation/state": np.arange(8)}
    np.testing.assert_array_equal(read(integers).state, whole.state)
    assert read(GOOD | {"more": 1}).noise_id == 2**31


def test_the_start_noise_without_a_number_goes_by_arrival():
    assert [read(GOOD, arrival=k).noise_id for k in (0, 7, 2**31)] == [2**31, 2**31 + 7, 2**31]
    assert read(GOOD | {"noise_id": np.int64(2**31 - 1)}, arrival=7).noise_id == 2**31 - 1


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


BAD = {
    "nothing": (
        {},
        "lacks observation/image, observation/wrist_image, observation/state, prompt; "
        "it has nothing",
    ),
    "no wrist": (
        without("observation/wrist_image"),
        "lacks observation/wrist_image; it has observation/image",
    ),
    "number keys": ({1: 2}, "it has 1$"),
    "number prompt": (GOOD | {"prompt": 3}, "prompt is a int; send a string"),
    "bytes prompt": (GOOD | {"prompt": b"push"}, "prompt is a bytes"),
    "prompts": (GOOD | {"prompt": np.array(["push"])}, "prompt is a ndarray"),
    "long prompt": (GOOD | {"prompt": "push " * 9}, "max_token_len is 16"),
    "list state": (
        GOOD | {"observation/state": [0.0] * 8},
        r"state is a list and no array; send 8 finite numbers",
    ),
    "short state": (
        GOOD | {"observation/state": np.zeros(7)},
        r"dtype float64 and shape \[7\]; send 8",
    ),
    "batched state": (GOOD | {"observation/state": np.zeros((1, 8))}, r"shape \[1, 8\]"),
    "text state": (GOOD | {"observation/state": np.array(["x"] * 8)}, "dtype <U1"),
    "NaN state": (
        GOOD | {"observation/state": np.full(8, np.nan)},
        r"state: an array of shape \[8\] has values that are not finite; send 8 finite numbers",
    ),
    "infinite state": (GOOD | {"observation/state": np.full(8, np.inf)}, "finite"),
    "no image": (
        GOOD | {"observation/image": "x.png"},
        "observation/image is a str and no array; send uint8",
    ),
    "batched image": (
        GOOD | {"observation/image": IMAGE[None]},
        r"shape \[1, 24, 20, 3\]; send uint8",
    ),
    "grey image": (
        GOOD | {"observation/wrist_image": IMAGE[..., :1]},
        r"dtype uint8 and shape \[24, 20, 1\]",
    ),
    "int image": (GOOD | {"observation/image": IMAGE.astype(np.int64)}, "dtype int64"),
    "255 floats": (GOOD | {"observation/image": IMAGE.astype(np.float32)}, r"outside \[0, 1\]"),
    "NaN image": (GOOD | {"observation/image": np.full((8, 8, 3), np.nan)}, "not finite"),
    "empty image": (
        GOOD | {"observation/image": IMAGE[:0]},
        r"shape \[0, 20, 3\], which is no picture",
    ),
    "empty floats": (GOOD | {"observation/image": np.zeros((0, 0, 3))}, "no picture"),
    "a line": (GOOD | {"observation/image": np.zeros((1, 1000, 3), np.uint8)}, "no picture"),
    "text id": (GOOD | {"noise_id": "a"}, "noise_id is a str that names no noise; send an integer"),
    "true id": (GOOD | {"noise_id": True}, "noise_id is a bool"),
    "negative id": (GOOD | {"noise_id": -1}, "noise_id is a int"),
    "large id": (GOOD | {"noise_id": 2**31}, "noise_id is a int"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_gets_a_sentence(name):
    message, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        read(message)
