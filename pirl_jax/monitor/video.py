"""Writes MP4 videos from uint8 frames, with text below the picture.

Frames go to the ffmpeg program of the imageio-ffmpeg package through a pipe.  Not through imageio
itself: it forks with a Python hook, which a process that runs JAX threads must not do.
Knows nothing of policies or simulators.
"""

from collections.abc import Sequence
import errno
import os
import pathlib
import signal
import subprocess
import textwrap

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pirl_jax.core import atomic

# Smaller frames are enlarged by a whole factor, without smoothing: what the policy sees, larger.
MIN_SIDE_PX = 384
FONT_PX = 16
LINE_PX = FONT_PX + 6
LINES = 4  # of text: the longest instructions of LIBERO fit
MARGIN_PX = 8  # of the text, on every side but the top
BACKGROUND = (20, 20, 24)
# What ffmpeg tells of the disk, in the words of the C library.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
COLOURS = {
    True: (90, 210, 120),  # success
    False: (235, 110, 100),  # failure
    None: (225, 225, 225),  # running
}


def write(
    path: str | os.PathLike,
    frames: Sequence[np.ndarray],
    captions: Sequence[str] | None,
    outcomes: Sequence[bool | None] | None = None,
    fps: float = 20,
) -> pathlib.Path:
    """Write [frames] of [Y,X,3] uint8 with one caption each; the file appears when it is complete.

    captions: None leaves them and their strip out.
    outcomes: [frames] True (success), False (failure) or None (running); picks the colour of the
      text.

    Raises:
      ValueError: no frames, or not a caption for each; frames of another form.
    """
    path = pathlib.Path(path)
    captions = [None] * len(frames) if captions is None else captions
    if len(frames) == 0 or len(frames) != len(captions):
        raise ValueError(
            f"video {path} needs one caption per frame and at least one frame, "
            f"got {len(frames)} frames"
        )
    outcomes = outcomes or [None] * len(frames)
    pictures = [
        annotate(frame, caption, COLOURS[outcome])
        for frame, caption, outcome in zip(frames, captions, outcomes, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path) as temporary:
        _encode(temporary, pictures, fps)
    return path


def write_episode(
    path: str | os.PathLike,
    frames: Sequence[np.ndarray],
    title: str,
    success: bool,
    fps: int = 20,
    hold_s: float = 1.0,
) -> pathlib.Path:
    """Video of one episode: every frame with title and step, the last one held with the outcome."""
    count = len(frames)
    # Players stop at the end of a file, often before anyone has read it.
    held = round(hold_s * fps)
    outcome = "success" if success else "failure"
    captions = [f"{title}\nstep {number}" for number in range(1, count + 1)]
    captions += [f"{title}\nstep {count}: {outcome}"] * held
    outcomes = [None] * count + [bool(success)] * held
    shown = [*frames, *[frames[-1]] * held]
    return write(path, shown, captions, outcomes, fps)


def annotate(
    frame: np.ndarray, caption: str | None, colour: tuple[int, int, int] = COLOURS[None]
) -> np.ndarray:
    """[Y,X,3] uint8 -> the enlarged frame above a dark strip with the caption.

    The sides are even, as yuv420p needs them.

    Raises:
      ValueError: another shape or dtype.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"video frames are [Y,X,3] uint8, got {frame.dtype}{list(frame.shape)}")
    longest_px = max(frame.shape[:2])
    factor = max(1, -(-MIN_SIDE_PX // longest_px))
    # Every pixel becomes a square: smoothing would show what the policy does not see.
    picture = Image.fromarray(frame.repeat(factor, axis=0).repeat(factor, axis=1))
    width = picture.width
    strip_px = 0 if caption is None else LINES * LINE_PX + MARGIN_PX
    height = picture.height + strip_px
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    canvas.paste(picture, (0, 0))
    if caption is None:
        return np.asarray(canvas)
    font = ImageFont.load_default(size=FONT_PX)
    draw = ImageDraw.Draw(canvas)
    top_px = picture.height + MARGIN_PX // 2
    for number, line in enumerate(_wrap(caption, font, width - 2 * MARGIN_PX)):
        draw.text((MARGIN_PX, top_px + number * LINE_PX), line, fill=colour, font=font)
    return np.asarray(canvas)


def _encode(path: pathlib.Path, pictures: Sequence[np.ndarray], fps: float) -> None:
    """H.264 with yuv420p, which every player shows."""
    height, width = pictures[0].shape[:2]
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20"]
    # faststart: a browser plays it before the whole file is there.
    # The format by name: the file's suffix says nothing until it is complete.
    container = ["-movflags", "+faststart", "-f", "mp4"]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    done = subprocess.run(
        [*ffmpeg, *form, "-i", "-", *codec, *container, str(path)],
        input=b"".join(picture.tobytes() for picture in pictures),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        if done.returncode == -signal.SIGXFSZ:
            reason = os.strerror(errno.EFBIG)
        for number in STORAGE_ERRORS:
            if os.strerror(number) in reason:
                raise OSError(number, os.strerror(number), str(path))
        raise RuntimeError(f"ffmpeg could not write {path}: {reason}")


def _wrap(caption: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """At most LINES lines.

    The last paragraph (the step) always stays, a long instruction is cut.
    """
    letter_px = font.getlength("n")
    # By an average letter; a narrow picture keeps a few columns all the same.
    columns = max(8, int(width_px / letter_px))
    *paragraphs, last = caption.split("\n")
    instruction = " ".join(paragraphs)
    above = textwrap.wrap(instruction, columns, max_lines=LINES - 1, placeholder=" ...")
    below = textwrap.wrap(last, columns) or [""]
    return [*above, below[0]]
