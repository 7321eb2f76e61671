import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.models import pi0, resize
from pirl_jax.policy import images

resize_on_device = jax.jit(resize.with_pad, static_argnums=(1, 2))

SIZES = {"to_224x224": (224, 224), "to_64x96": (64, 96)}


@pytest.fixture(scope="module")
def data(vectors):
    with np.load(vectors / "openpi" / "data_images.npz") as opened:
        yield opened


def _cases(data, suffix):
    """-> (case name, input uint8, (height, width), expected) of every case that has this output."""
    for name in data.files:
        if name.endswith(suffix):
            _, index, size, _ = name.split("/")
            yield name, data[f"resize/{index}/in_u8"], SIZES[size], data[name]


def test_host_resize_equals_openpi(data):
    cases = list(_cases(data, "/pil_u8"))
    assert len(cases) >= reference_files.enough(14) - 1
    for name, x, size, want in cases:
        np.testing.assert_array_equal(images.resize_with_pad(x, *size), want, err_msg=name)


def test_host_resize_keeps_leading_axes_and_fitting_images(data):
    x = data["resize/2/in_u8"]
    batch = np.stack([x, x[::-1]])
    out = images.resize_with_pad(batch, 64, 96)
    np.testing.assert_array_equal(out[1, 0], data["resize/2/to_64x96/pil_u8"][-1])
    assert images.resize_with_pad(x, *x.shape[1:3]) is x


def test_device_resize_of_uint8_equals_openpi(data):
    for name, x, size, want in _cases(data, "/jax_u8"):
        got = resize_on_device(jnp.asarray(x), *size)
        assert got.dtype == jnp.uint8
        off = np.abs(np.asarray(got, int) - want)  # exact .5 ties may round either way
        assert off.max() <= 1 and off.mean() < 1e-3, name


def test_device_resize_of_float_equals_openpi(data):
    for name, x, size, want in _cases(data, "/jax_f32"):
        got = resize_on_device(jnp.asarray(pi0.to_float(x[:1])), *size)
        np.testing.assert_allclose(got, want, atol=2e-6, err_msg=name)


def test_device_resize_is_within_one_grey_level_of_pillow():
    """Noise is the worst case: neighbours differ by as much as they can."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    for x, size in (
        (noise, (224, 224)),
        (noise[:, :128], (64, 96)),
        (noise[:, :64, :64], (224, 224)),
    ):
        off = np.abs(np.asarray(resize_on_device(x, *size), int) - images.resize_with_pad(x, *size))
        assert off.max() == 1 and off.mean() < 0.3


def test_to_float_equals_openpi(data):
    for x in (data["from_dict/in_u8"], jnp.asarray(data["from_dict/in_u8"])):
        got = pi0.to_float(x)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, data["from_dict/out_f32"], atol=2e-7)
    assert isinstance(pi0.to_float(jnp.zeros((1,), jnp.uint8)), jax.Array)


@pytest.mark.parametrize("case", ["chw_f32", "hwc_u8", "h3_u8"])
def test_parse_image_equals_openpi(data, case):
    np.testing.assert_array_equal(
        images.parse_image(data[f"parse_image/in_{case}"]), data[f"parse_image/out_{case}"]
    )


def test_parse_image_truncates_floats(data):
    np.testing.assert_array_equal(
        images.parse_image(data["convert_to_uint8/in"]), data["convert_to_uint8/out"]
    )
