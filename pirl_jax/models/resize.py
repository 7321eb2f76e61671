"""Images that arrive at another size than the model's, resized on the device.

An antialiased linear filter, as in openpi's model: of 8-bit images at most one grey level from
Pillow's, which rounds after each axis (policy/images.py).
"""

import jax
from jax import Array
import jax.numpy as jnp


def letterbox(y: int, x: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Where an image [y,x] lies inside [height,width] when it keeps its aspect ratio.

    Returns its rows and columns, and those of black above and left of it, in px.
    """
    ratio = max(x / width, y / height)
    rows = int(y / ratio)
    columns = int(x / ratio)
    return rows, columns, (height - rows) // 2, (width - columns) // 2


def with_pad(images: Array, height: int, width: int) -> Array:
    """[..., Y,X,3] uint8 or float in [-1, 1] -> [..., height,width,3], same dtype; pads black."""
    *lead, y, x, _ = images.shape
    if (y, x) == (height, width):
        return images
    rows, columns, top, left = letterbox(y, x, height, width)
    shape = (*lead, rows, columns, 3)
    small = jax.image.resize(images.astype(jnp.float32), shape, "linear")
    if images.dtype == jnp.uint8:
        black = 0
        small = jnp.clip(jnp.round(small), black, 255)
    else:
        black = -1.0
        small = jnp.clip(small, black, 1.0)

    borders = [(0, 0)] * len(lead)
    borders.append((top, height - rows - top))
    borders.append((left, width - columns - left))
    borders.append((0, 0))
    return jnp.pad(small.astype(images.dtype), borders, constant_values=black)
