"""Image augmentation of supervised fine-tuning (never of RL): what openpi's training does with augmax 0.4.1, same keys,
same numbers.  Geometry only on fixed cameras: a wrist camera moves with the arm, so its framing carries information.
"""

import chex
import jax
import jax.numpy as jnp

CROP = 0.95  # fraction of each side that is kept
MAX_ROTATION_DEG = 5.0
BRIGHTNESS, CONTRAST, HUE = 0.3, 0.4, 0.1  # half-widths of the uniform draws; hue in turns
JITTER_PROBABILITY = 0.5


def augment(key, images_BVYX3: jax.Array, wrist: tuple[bool, ...] = (False, True)) -> jax.Array:
    """float images in [-1, 1] -> augmented, same shape; ``wrist`` says per camera whether it is a wrist camera."""
    chex.assert_axis_dimension(images_BVYX3, 1, len(wrist))
    chex.assert_type(images_BVYX3, float)
    keys_B = jax.random.split(
        key, images_BVYX3.shape[0]
    )  # one key per row, the same for all its cameras
    unit_BVYX3 = images_BVYX3 / 2.0 + 0.5
    views = [
        jax.vmap(_augment_wrist if is_wrist else _augment_fixed)(keys_B, unit_BVYX3[:, v])
        for v, is_wrist in enumerate(wrist)
    ]
    return jnp.stack(views, axis=1) * 2.0 - 1.0


def _augment_fixed(key, image_YX3):
    geometry_key, colour_key = jax.random.split(key, 2)
    centre, angle_rad = draw_geometry(geometry_key, image_YX3.shape[:2])
    return _jitter(_resample(image_YX3, centre, angle_rad), *draw_jitter(colour_key))


def _augment_wrist(key, image_YX3):
    return _jitter(image_YX3, *draw_jitter(jax.random.split(key, 1)[0]))


def draw_geometry(key, size_yx):
    """-> offset of the crop's centre (y, x) in pixels, rotation in rad."""
    crop_key, _, rotation_key = jax.random.split(key, 3)  # augmax gives the resize a key, too
    limit = jnp.array([(side - int(CROP * side)) / 2 for side in size_yx])
    centre = jax.random.uniform(crop_key, (2,), minval=-limit, maxval=limit)
    max_rad = jnp.deg2rad(MAX_ROTATION_DEG)
    return centre, jax.random.uniform(rotation_key, minval=-max_rad, maxval=max_rad)


def draw_jitter(key):
    """-> brightness, contrast, hue shift (turns), whether the jitter is applied at all."""
    key = jax.random.split(key, 1)[0]
    keys = jax.random.split(key, 5)  # the fourth is saturation, which augmax draws and never uses
    limits = (BRIGHTNESS, CONTRAST, HUE)
    draws = [jax.random.uniform(k, minval=-limit, maxval=limit) for k, limit in zip(keys, limits)]
    return *draws, jax.random.bernoulli(key, JITTER_PROBABILITY)


def _resample(image_YX3, centre, angle_rad):
    """Crop, scale back to full size and rotate as one bilinear lookup; outside the image is 0."""
    size_y, size_x = image_YX3.shape[:2]
    middle_y, middle_x = (size_y - 1) / 2, (size_x - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(size_y) - middle_y, jnp.arange(size_x) - middle_x, indexing="ij")
    cos, sin = jnp.cos(angle_rad), jnp.sin(angle_rad)
    source_y = (cos * y + sin * x) * (int(CROP * size_y) / size_y) + centre[0] + middle_y
    source_x = (cos * x - sin * y) * (int(CROP * size_x) / size_x) + centre[1] + middle_x

    def lookup(channel_YX):
        return jax.scipy.ndimage.map_coordinates(
            channel_YX, [source_y, source_x], order=1, cval=0.0
        )

    return jax.vmap(lookup, in_axes=-1, out_axes=-1)(image_YX3)


def _jitter(image_YX3, brightness, contrast, hue_shift, applied):
    hue, saturation, value = _rgb_to_hsv(image_YX3)
    value = jnp.where(
        brightness < 0, value * (1 + brightness), value * (1 - brightness) + brightness
    )
    value = _stretch_contrast(value, contrast)
    return jnp.where(applied, _hsv_to_rgb(hue + hue_shift, saturation, value), image_YX3)


def _stretch_contrast(value, contrast):
    """A line of slope s through the middle grey, joined to slope 1/s towards black and white."""
    s = jnp.tan((contrast + 1) * jnp.pi / 4)
    knee = s / (2 * (1 + s))  # augmax's (s - s^2) / (2 (1 - s^2)), without its 0/0 at s = 1
    middle = s * (value - 0.5) + 0.5
    return jnp.where(
        value < knee, value / s, jnp.where(value > 1 - knee, value / s + 1 - 1 / s, middle)
    )


def _rgb_to_hsv(image_YX3):
    red, green, blue = jnp.moveaxis(image_YX3, -1, 0)
    value = jnp.max(image_YX3, axis=-1)
    chroma = value - jnp.min(image_YX3, axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)  # grey has no hue; any will do
    # Order, not `value == red`: a compiler may compute the image twice, rounded differently, and then no channel equals the
    # maximum.  At a tie both formulas give the same hue.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return sextant / 6, jnp.where(value > 0, chroma / jnp.where(value > 0, value, 1.0), 0.0), value


def _hsv_to_rgb(hue, saturation, value):
    def channel(offset):
        k = (offset + hue * 6) % 6
        return value - value * saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)
