"""LIBERO-Plus's noise on pictures: motion blur, Gaussian blur, zoom blur, fog, glass.

Kind and strength are the benchmark's, as numbers of pixels.  What it draws from numpy's global
generator, here comes of a seed, and where it calls ImageMagick or scikit-image, scipy does the
same: alike to the eye, not in the bits.
"""

from collections.abc import Callable, Sequence

import numba
import numpy as np
from scipy import ndimage, signal

LEVELS = 10  # of each kind
# By severity, from 1 on.
MOTION_RADIUS_PX = (
    5,
    8,
    10,
    12,
    15,
    18,
    20,
    25,
    30,
    35,
)
MOTION_SIGMA_PX = (
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    15,
    20,
)
MOST_MOTION_DEG = 45
ZOOM_MOST = (
    1.11,
    1.16,
    1.21,
    1.26,
    1.31,
    1.36,
    1.41,
    1.46,
    1.51,
    1.56,
)
ZOOM_STEP = (
    0.01,
    0.01,
    0.02,
    0.02,
    0.03,
    0.01,
    0.01,
    0.02,
    0.02,
    0.03,
)
FOG_THICKNESS = (
    0.5,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    3.5,
    4.0,
    4.5,
    5.0,
)
FOG_DECAY = (
    3,
    2.8,
    2.5,
    2.2,
    2.0,
    1.8,
    1.6,
    1.5,
    1.4,
    1.3,
)
GLASS_SIGMA_PX = (
    0.5,
    0.7,
    0.9,
    1.0,
    1.1,
    1.3,
    1.5,
    1.8,
    2.2,
    2.5,
)
GLASS_REACH_PX = (
    1,
    1,
    2,
    2,
    3,
    3,
    4,
    4,
    5,
    5,
)
GLASS_ROUNDS = (
    3,
    3,
    3,
    2,
    2,
    2,
    2,
    2,
    1,
    1,
)
WIBBLE = 100  # of the coarsest squares of a fog


def apply(image: np.ndarray, number: int, seed: Sequence[int]) -> np.ndarray:
    """The picture [Y,X,3] uint8 with the noise of this number, from 1 to 50."""
    kind, level = divmod(number - 1, LEVELS)
    generator = np.random.default_rng([*seed, number])
    result = KINDS[kind](image / 255, level, generator)
    return np.round(result.clip(0, 1) * 255).astype(np.uint8)


def motion(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """Smeared to one side, along a direction drawn anew."""
    angle_rad = np.radians(generator.uniform(-MOST_MOTION_DEG, MOST_MOTION_DEG))
    steps = np.arange(2 * MOTION_RADIUS_PX[level] + 1)
    weights = np.exp(-(steps**2) / (2 * MOTION_SIGMA_PX[level] ** 2))
    reach = steps[-1] + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    down = reach + steps * np.sin(angle_rad)
    aside = reach + steps * np.cos(angle_rad)
    # Each step falls between four pixels.
    for y in (np.floor(down).astype(int), np.floor(down).astype(int) + 1):
        for x in (np.floor(aside).astype(int), np.floor(aside).astype(int) + 1):
            nearness = (1 - np.abs(down - y)) * (1 - np.abs(aside - x))
            np.add.at(kernel, (y, x), weights * nearness)
    kernel /= kernel.sum()
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return signal.fftconvolve(wide, kernel[:, :, None], mode="valid", axes=(0, 1))


def gaussian(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """Blurred by 1 to 10 pixels."""
    return _blurred(image, level + 1)


def zoom(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """The mean of the picture and of enlarged ones."""
    factors = np.arange(1, ZOOM_MOST[level], ZOOM_STEP[level])
    return (image + sum(_enlarged(image, factor) for factor in factors)) / (len(factors) + 1)


def fog(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """Behind a plasma fractal."""
    thickness = FOG_THICKNESS[level]
    brightest = image.max()
    height, width = image.shape[:2]
    size = 1 << (max(height, width, 2) - 1).bit_length()
    cloud = _plasma(size, FOG_DECAY[level], generator)[:height, :width, None]
    return (image + thickness * cloud) * brightest / (brightest + thickness)


def glass(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """Blurred, pixels exchanged with near ones, blurred again."""
    reach = GLASS_REACH_PX[level]
    pixels = _blurred(image, GLASS_SIGMA_PX[level])
    height, width = image.shape[:2]
    for _ in range(GLASS_ROUNDS[level]):
        offsets = generator.integers(-reach, reach, (height, width, 2))
        _exchange(pixels, offsets, reach)
    return _blurred(pixels, GLASS_SIGMA_PX[level])


@numba.njit(cache=True)
def _exchange(pixels: np.ndarray, offsets: np.ndarray, reach: int) -> None:
    """Each pixel with one near it, in the benchmark's order, which carries some far."""
    height, width, colours = pixels.shape
    for y in range(height - reach - 1, reach, -1):
        for x in range(width - reach - 1, reach, -1):
            there_y = y + offsets[y, x, 0]
            there_x = x + offsets[y, x, 1]
            for colour in range(colours):
                kept = pixels[there_y, there_x, colour]
                pixels[there_y, there_x, colour] = pixels[y, x, colour]
                pixels[y, x, colour] = kept


def _blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (sigma_px, sigma_px, 0), mode="nearest")


def _enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the picture, stretched over all of it."""
    size = image.shape[0]
    cut = int(np.ceil(size / factor))
    first = (size - cut) // 2
    middle = image[first : first + cut, first : first + cut]
    stretched = ndimage.zoom(middle, (factor, factor, 1), order=1)
    trim = max((stretched.shape[0] - size) // 2, 0)
    stretched = stretched[trim : trim + size, trim : trim + size]
    missing = size - stretched.shape[0]
    return np.pad(stretched, ((0, missing), (0, missing), (0, 0)), mode="edge")


def _plasma(size: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """[size,size] heights from 0 to 1 by the diamond-square algorithm; size is a power of two."""
    heights = np.zeros((size, size))
    wibble = float(WIBBLE)

    def mean_of_four(total: np.ndarray) -> np.ndarray:
        return total / 4 + wibble * generator.uniform(-wibble, wibble, total.shape)

    step = size
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        square = corners + np.roll(corners, -1, axis=0)
        square = square + np.roll(square, -1, axis=1)
        heights[half::step, half::step] = mean_of_four(square)
        middles = heights[half::step, half::step]
        across = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = mean_of_four(across)
        down = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = mean_of_four(down)
        step = half
        wibble /= decay
    heights -= heights.min()
    return heights / heights.max()


KINDS: tuple[Callable[[np.ndarray, int, np.random.Generator], np.ndarray], ...] = (
    motion,
    gaussian,
    zoom,
    fog,
    glass,
)
