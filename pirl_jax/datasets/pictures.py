"""A picture as a file holds it -> uint8 [Y,X,3], within bounds.  Knows no data set."""

import io
from typing import Any

import numpy as np
from PIL import Image

from pirl_jax.core import outside

MOST_PIXELS = 1 << 24  # 4096 x 4096
MOST_BYTES = 1 << 26  # of an encoded one
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def decode(content: bytes, where: Any) -> np.ndarray:
    """An encoded one.

    where: for the error.
    Raises: ValueError for what is none, is cut off or too large.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{where} is a picture of more than {MOST_BYTES:,} bytes; {outside.AGAIN}")
    try:
        # Only the head is read before the size is known.
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        require_size(image.height, image.width, where)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{where} is no picture, or a part of one ({outside.shown(error)}); {outside.AGAIN}"
        ) from error


def require_size(height: int, width: int, where: Any) -> None:
    """That a picture of this size may be decoded."""
    if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
        raise ValueError(
            f"{where} is a picture of {width} x {height} px, and at most {MOST_PIXELS:,} px are "
            f"read; make it smaller"
        )


def turned(image_YX3: np.ndarray) -> np.ndarray:
    """By 180 degrees: what LIBERO's simulator draws <-> what openpi's policies see."""
    return image_YX3[::-1, ::-1]
