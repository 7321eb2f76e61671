"""Images that arrive at another size than the model's.  An antialiased linear filter, as in openpi's model: of 8-bit images at most
one grey level from Pillow's, which rounds after each axis (policy/images.py)."""

import jax
import jax.numpy as jnp


def letterbox(y: int, x: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns of an image [y,x] inside [height,width] that keeps its aspect ratio, and those of black above and left of it."""
    ratio = max(x / width, y / height)
    new_y, new_x = int(y / ratio), int(x / ratio)
    return new_y, new_x, (height - new_y) // 2, (width - new_x) // 2


def with_pad(images: jax.Array, height: int, width: int) -> jax.Array:
    """uint8 or float in [-1, 1] [..., Y,X,3] -> [..., height,width,3], same dtype; pads with black."""
    y, x = images.shape[-3:-1]
    if (y, x) == (height, width):
        return images
    new_y, new_x, top, left = letterbox(y, x, height, width)
    shape = (*images.shape[:-3], new_y, new_x, 3)
    small = jax.image.resize(images.astype(jnp.float32), shape, "linear")
    is_uint8 = images.dtype == jnp.uint8
    low, high = (0, 255) if is_uint8 else (-1.0, 1.0)
    small = jnp.clip(jnp.round(small) if is_uint8 else small, low, high).astype(images.dtype)
    pad = [(0, 0)] * (images.ndim - 3) + [
        (top, height - new_y - top),
        (left, width - new_x - left),
        (0, 0),
    ]
    return jnp.pad(small, pad, constant_values=low)
