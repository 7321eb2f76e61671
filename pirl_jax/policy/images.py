"""Camera images at the size and range the model reads, on the host.

Pillow's fixed-point bilinear resize is what openpi's data and simulator images go through; the
model resizes what arrives at another size (models/resize.py).  Knows no camera's name.
"""

import numpy as np
from PIL import Image

from pirl_jax.models import resize


def parse_image(image: np.ndarray) -> np.ndarray:
    """A client's image, float in [0, 1] or uint8, [3,Y,X] or [Y,X,3] -> uint8 [Y,X,3].

    Floats are truncated, as openpi does.
    """
    if np.issubdtype(image.dtype, np.floating):
        image = (255 * image).astype(np.uint8)
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image


def resize_with_pad(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [..., Y,X,3] -> [..., height,width,3].

    Keeps the aspect ratio, centres, pads with black.
    """
    *lead, y, x, _ = images.shape
    if (y, x) == (height, width):
        return images
    rows, columns, top, left = resize.letterbox(y, x, height, width)
    out = np.zeros((*lead, height, width, 3), np.uint8)
    bottom = top + rows
    right = left + columns
    inside = out[..., top:bottom, left:right, :]
    bilinear = Image.Resampling.BILINEAR
    for index in np.ndindex(*lead):
        # Rows, then columns, whichever order Pillow would choose (it changed; the rounding differs
        # by 1 in 255).
        narrow = Image.fromarray(images[index]).resize((columns, y), bilinear)
        inside[index] = narrow.resize((columns, rows), bilinear)
    return out
