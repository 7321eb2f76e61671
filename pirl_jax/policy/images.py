"""Camera images at the size and range the model reads, on the host.  Pillow's fixed-point bilinear resize is what openpi's data
and simulator images go through; the model resizes what arrives at another size (models/resize.py)."""

import numpy as np
from PIL import Image

from pirl_jax.models import resize


def parse_image(image: np.ndarray) -> np.ndarray:
    """A client's image, float in [0, 1] or uint8, [3,Y,X] or [Y,X,3] -> uint8 [Y,X,3]; floats are truncated."""
    if np.issubdtype(image.dtype, np.floating):
        image = (255 * image).astype(np.uint8)
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image


def resize_with_pad(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [..., Y,X,3] -> [..., height,width,3]: keeps the aspect ratio, centres, pads with black."""
    y, x = images.shape[-3:-1]
    if (y, x) == (height, width):
        return images
    new_y, new_x, top, left = resize.letterbox(y, x, height, width)
    out = np.zeros((*images.shape[:-3], height, width, 3), np.uint8)
    for index in np.ndindex(images.shape[:-3]):
        # Rows, then columns, whichever order Pillow would choose (it changed; the rounding differs by 1 in 255).
        narrow = Image.fromarray(images[index]).resize((new_x, y), Image.Resampling.BILINEAR)
        small = narrow.resize((new_x, new_y), Image.Resampling.BILINEAR)
        out[index][top : top + new_y, left : left + new_x] = small
    return out
