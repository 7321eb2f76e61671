import dataclasses
import json

import numpy as np
import pytest
import reference_files

from pirl_jax.policy import images, normalize, observation, tokenizer

SETTINGS = {
    "pi0_libero": {"norm_mode": "zscore", "delta_actions": True},
    "pi05_libero": {"norm_mode": "quantile", "max_token_len": 200},
    "pi05_discrete_state": {"norm_mode": "quantile", "max_token_len": 200, "discrete_state": True},
}
PROMPT = "pick up the black bowl between the plate and the ramekin and place it on the plate"

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


@pytest.fixture(scope="module")
def data(vectors):
    return dict(np.load(vectors / "openpi" / "data_libero.npz"))


def _transform(data, **settings):
    names = ("mean", "std", "q01", "q99")
    parts = [
        normalize.Stats(*(data[f"stats/{key}/{name}"] for name in names))
        for key in ("state", "actions")
    ]
    stats = normalize.NormStats(*parts)
    return observation.Transform(tokenizer.ByteTokenizer(), stats, **FIELDS | settings)


@pytest.fixture(scope="module", params=SETTINGS)
def case(request, data):
    return request.param, _transform(data, **SETTINGS[request.param])


def test_encode_equals_openpi(case, data):
    name, transform = case
    state_BQ = data["in/observation/state"][None]
    # The two cameras of the reference case differ in size, so each goes through alone.
    cameras = {
        "base_0_rgb": "in/observation/image",
        "left_wrist_0_rgb": "in/observation/wrist_image",
    }
    recorded = [camera for camera in cameras if f"{name}/model_in/image/{camera}" in data]
    assert len(recorded) == 2 or not reference_files.COMPLETE
    for camera, source in cameras.items():
        obs = observation.encode(transform, data[source][None, None], state_BQ, [PROMPT])
        if camera in recorded:
            np.testing.assert_array_equal(obs.images[0, 0], data[f"{name}/model_in/image/{camera}"])
        assert obs.images.dtype == np.uint8 and obs.image_mask.tolist() == [[True]]
    assert obs.state.dtype == np.float32 and obs.tokens.dtype == np.int32
    np.testing.assert_array_equal(obs.state[0], data[f"{name}/model_in/state"].astype(np.float32))
    np.testing.assert_array_equal(obs.tokens[0], data[f"{name}/model_in/tokenized_prompt"])
    np.testing.assert_array_equal(obs.token_mask[0], data[f"{name}/model_in/tokenized_prompt_mask"])


def test_the_camera_we_leave_out_carries_nothing(case, data):
    name, _ = case
    assert not data[f"{name}/model_in/image/right_wrist_0_rgb"].any()
    assert not data[f"{name}/model_in/image_mask/right_wrist_0_rgb"]


def test_encode_actions_equals_openpi(case, data):
    name, transform = case
    got = observation.encode_actions(
        transform, data["in/actions"][None], data["in/observation/state"][None]
    )
    np.testing.assert_array_equal(got[0], data[f"{name}/model_in/actions"].astype(np.float32))


def test_decode_equals_openpi(case, data):
    name, transform = case
    got = observation.decode(
        transform, data[f"{name}/model_out/actions"][None], data["in/observation/state"][None]
    )
    assert got.dtype == np.float32
    # openpi adds a state that went through float32 normalisation and back; ours is the raw one.
    np.testing.assert_allclose(got[0], data[f"{name}/policy_out/actions"], rtol=1e-6, atol=1e-6)


def test_decode_inverts_encode_actions(case, data):
    _, transform = case
    rng = np.random.default_rng(0)
    actions_BHA, state_BQ = (
        rng.normal(size=(3, 5, 7)).astype(np.float32),
        rng.normal(size=(3, 8)).astype(np.float32),
    )
    encoded = observation.encode_actions(transform, actions_BHA, state_BQ)
    assert encoded.shape == (3, 5, 32) and not encoded[..., 7:].any()
    np.testing.assert_allclose(
        observation.decode(transform, encoded, state_BQ), actions_BHA, atol=1e-5
    )


def test_prompts_of_the_pipelines_equal_openpi(vectors, data, make_recorder):
    prompts = json.loads((vectors / "openpi" / "libero_prompts.json").read_text())
    assert set(prompts) == set(SETTINGS)
    for name, calls in prompts.items():
        transform = dataclasses.replace(
            _transform(data, **SETTINGS[name]), tokenizer=(recorder := make_recorder())
        )
        observation.encode(
            transform,
            np.zeros((1, 1, 224, 224, 3), np.uint8),
            data["in/observation/state"][None],
            [PROMPT],
        )
        assert recorder.calls == calls


@pytest.mark.parametrize("discrete_state", [False, True])
def test_rows_of_a_batch_do_not_mix(data, discrete_state):
    transform = _transform(data, image_size_px=32, max_token_len=120, discrete_state=discrete_state)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 2, 48, 40, 3), np.uint8)
    state_BQ, texts = rng.normal(size=(3, 8)).astype(np.float32), ["push", "stack it", "push"]
    batch = observation.encode(transform, images, state_BQ, texts)
    assert batch.images.shape == (3, 2, 32, 32, 3) and batch.image_mask.shape == (3, 2)
    for b in range(3):
        row = observation.encode(
            transform, images[b : b + 1], state_BQ[b : b + 1], texts[b : b + 1]
        )
        for field in dataclasses.fields(batch):
            np.testing.assert_array_equal(
                getattr(batch, field.name)[b], getattr(row, field.name)[0]
            )


def test_fitting_images_pass_through_untouched(data):
    images = np.zeros((2, 2, 224, 224, 3), np.uint8)
    obs = observation.encode(_transform(data), images, np.zeros((2, 8), np.float32), ["a", "b"])
    assert obs.images is images


def test_start_up_check_counts_the_state(data):
    assert observation.check(_transform(data), ["push"]) == len("push") + 2
    with pytest.raises(ValueError, match="max_token_len is 48"):
        observation.check(_transform(data, discrete_state=True), ["push"])


def test_wrong_shapes_are_refused(data):
    images, state_BQ = np.zeros((2, 2, 224, 224, 3), np.uint8), np.zeros((2, 8), np.float32)
    for bad in [
        (images, state_BQ[:1], ["a", "b"]),
        (images, state_BQ, ["a"]),
        (images * 1.0, state_BQ, ["a", "b"]),
    ]:
        with pytest.raises(AssertionError):
            observation.encode(_transform(data), *bad)


def test_cameras_pass_in_order_and_seven_actions_come_out_as_in_rlinf(vectors, data):
    """Its CHW and float images are other sources' formats: `encode` refuses them, see above."""
    reference = np.load(vectors / "rlinf" / "f_libero.npz")
    prefix = "libero_inputs_hwc_uint8"
    cameras = np.stack([reference[f"{prefix}/in/{name}"] for name in ("image", "wrist_image")])
    ours = images.resize_with_pad(cameras[None], *cameras.shape[1:3])[0]
    for image, name in zip(ours, ("base_0_rgb", "left_wrist_0_rgb"), strict=True):
        np.testing.assert_array_equal(image, reference[f"{prefix}/out/image.{name}"])
        assert reference[f"{prefix}/out/mask.{name}"]
    assert not reference[f"{prefix}/out/image.right_wrist_0_rgb"].any()
    actions_HA = reference["libero_outputs/in/actions"]
    identity = [
        normalize.Stats(np.zeros(dim), np.ones(dim), -np.ones(dim), np.ones(dim)) for dim in (8, 7)
    ]
    transform = observation.Transform(
        tokenizer.ByteTokenizer(), normalize.NormStats(*identity), **FIELDS
    )
    decoded = observation.decode(transform, actions_HA[None], np.zeros((1, 8)))[0]
    np.testing.assert_allclose(
        decoded, reference["libero_outputs/out/actions"], rtol=1e-5, atol=1e-6
    )
