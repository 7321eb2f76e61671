"""Image augmentation of supervised fine-tuning, never of RL.

What openpi's training does with augmax 0.4.1: same keys, same numbers.  Geometry only on fixed
cameras: a wrist camera moves with the arm, so its framing carries information.  Knows no
observation.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

CROP = 0.95  # fraction of each side that is kept
MAX_ROTATION_DEG = 5.0
# Half-widths of the uniform draws.
BRIGHTNESS = 0.3
CONTRAST = 0.4
HUE = 0.1  # in turns
JITTER_PROBABILITY = 0.5


def augment(key: Array, images_BVYX3: Array, wrist: tuple[bool, ...] = (False, True)) -> Array:
    """float images in [-1, 1] -> augmented, same shape.

    wrist: per camera whether it is a wrist camera.
    """
    chex.assert_axis_dimension(images_BVYX3, 1, len(wrist))
    chex.assert_type(images_BVYX3, float)
    # One key per row, the same for all its cameras.
    keys_B = jax.random.split(key, images_BVYX3.shape[0])
    unit_BVYX3 = images_BVYX3 / 2.0 + 0.5
    views = []
    for camera, is_wrist in enumerate(wrist):
        augmented = jax.vmap(_augment_wrist if is_wrist else _augment_fixed)
        views.append(augmented(keys_B, unit_BVYX3[:, camera]))
    return jnp.stack(views, axis=1) * 2.0 - 1.0


def _augment_fixed(key: Array, image_YX3: Array) -> Array:
    geometry_key, colour_key = jax.random.split(key, 2)
    centre, angle_rad = draw_geometry(geometry_key, image_YX3.shape[:2])
    moved_YX3 = _resample(image_YX3, centre, angle_rad)
    return _jitter(moved_YX3, *draw_jitter(colour_key))


def _augment_wrist(key: Array, image_YX3: Array) -> Array:
    (colour_key,) = jax.random.split(key, 1)
    return _jitter(image_YX3, *draw_jitter(colour_key))


def draw_geometry(key: Array, size_yx: tuple[int, int]) -> tuple[Array, Array]:
    """-> offset of the crop's centre (y, x) in pixels, rotation in rad."""
    crop_key, _, rotation_key = jax.random.split(key, 3)  # augmax gives the resize a key, too
    limit = jnp.array([(side - int(CROP * side)) / 2 for side in size_yx])
    centre = jax.random.uniform(crop_key, (2,), minval=-limit, maxval=limit)
    max_rad = jnp.deg2rad(MAX_ROTATION_DEG)
    angle_rad = jax.random.uniform(rotation_key, minval=-max_rad, maxval=max_rad)
    return centre, angle_rad


def draw_jitter(key: Array) -> tuple[Array, ...]:
    """-> brightness, contrast, hue shift (turns), whether the jitter is applied at all."""
    (key,) = jax.random.split(key, 1)
    # The fourth is saturation, which augmax draws and never uses.
    keys = jax.random.split(key, 5)
    draws = []
    for number, limit in enumerate((BRIGHTNESS, CONTRAST, HUE)):
        drawn = jax.random.uniform(keys[number], minval=-limit, maxval=limit)
        draws.append(drawn)
    is_applied = jax.random.bernoulli(key, JITTER_PROBABILITY)
    return *draws, is_applied


def _resample(image_YX3: Array, centre: Array, angle_rad: Array) -> Array:
    """Crop, scale back to full size and rotate as one bilinear lookup; outside the image is 0."""
    size_y, size_x, _ = image_YX3.shape
    middle_y = (size_y - 1) / 2
    middle_x = (size_x - 1) / 2
    from_middle_y = jnp.arange(size_y) - middle_y
    from_middle_x = jnp.arange(size_x) - middle_x
    y, x = jnp.meshgrid(from_middle_y, from_middle_x, indexing="ij")
    cos = jnp.cos(angle_rad)
    sin = jnp.sin(angle_rad)
    # Whole pixels of the crop, as augmax cuts it.
    scale_y = int(CROP * size_y) / size_y
    scale_x = int(CROP * size_x) / size_x
    turned_y = cos * y + sin * x
    turned_x = cos * x - sin * y
    source_y = turned_y * scale_y + centre[0] + middle_y
    source_x = turned_x * scale_x + centre[1] + middle_x

    def lookup(channel_YX: Array) -> Array:
        source = [source_y, source_x]
        return jax.scipy.ndimage.map_coordinates(channel_YX, source, order=1, cval=0.0)

    return jax.vmap(lookup, in_axes=-1, out_axes=-1)(image_YX3)


def _jitter(
    image_YX3: Array, brightness: Array, contrast: Array, hue_shift: Array, is_applied: Array
) -> Array:
    hue, saturation, value = _rgb_to_hsv(image_YX3)
    darker = value * (1 + brightness)
    brighter = value * (1 - brightness) + brightness
    value = jnp.where(brightness < 0, darker, brighter)
    value = _stretch_contrast(value, contrast)
    jittered_YX3 = _hsv_to_rgb(hue + hue_shift, saturation, value)
    return jnp.where(is_applied, jittered_YX3, image_YX3)


def _stretch_contrast(value: Array, contrast: Array) -> Array:
    """A line of slope s through the middle grey, joined to slope 1/s towards black and white."""
    s = jnp.tan((contrast + 1) * jnp.pi / 4)
    knee = s / (2 * (1 + s))  # augmax's (s - s^2) / (2 (1 - s^2)), without its 0/0 at s = 1
    dark = value / s
    bright = value / s + 1 - 1 / s
    middle = s * (value - 0.5) + 0.5
    not_dark = jnp.where(value > 1 - knee, bright, middle)
    return jnp.where(value < knee, dark, not_dark)


def _rgb_to_hsv(image_YX3: Array) -> tuple[Array, Array, Array]:
    red, green, blue = jnp.moveaxis(image_YX3, -1, 0)
    value = jnp.max(image_YX3, axis=-1)
    chroma = value - jnp.min(image_YX3, axis=-1)
    safe_chroma = jnp.where(chroma > 0, chroma, 1.0)  # grey has no hue; any will do
    # Order, not `value == red`: a compiler may compute the image twice, rounded differently, and
    # then no channel equals the maximum.  At a tie both formulas give the same hue.
    is_red = (red >= green) & (red >= blue)
    from_red = (green - blue) / safe_chroma
    from_green = 2 + (blue - red) / safe_chroma
    from_blue = 4 + (red - green) / safe_chroma
    sextant = jnp.where(is_red, from_red, jnp.where(green >= blue, from_green, from_blue))
    safe_value = jnp.where(value > 0, value, 1.0)  # black has no saturation
    saturation = jnp.where(value > 0, chroma / safe_value, 0.0)
    return sextant / 6, saturation, value


def _hsv_to_rgb(hue: Array, saturation: Array, value: Array) -> Array:
    def channel(offset: int) -> Array:
        k = (offset + hue * 6) % 6
        share = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
        return value - value * saturation * share

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)
