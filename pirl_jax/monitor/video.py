"""Writes MP4 videos from uint8 frames, with text below the picture.  Knows nothing of policies or simulators.

Frames go to the ffmpeg program of the imageio-ffmpeg package through a pipe.  Not through imageio itself: it forks with
a Python hook, which a process that runs JAX threads must not do.
"""

import os
import pathlib
import subprocess
import textwrap

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_SIDE_PX = 384  # smaller frames are enlarged by a whole factor, without smoothing: what the policy sees, only larger
FONT_PX = 16
LINES = 4  # of text: the longest instructions of LIBERO fit
COLOURS = {
    True: (90, 210, 120),
    False: (235, 110, 100),
    None: (225, 225, 225),
}  # success, failure, running


def write(path, frames, captions, outcomes=None, fps: int = 20) -> pathlib.Path:
    """Write frames [N] of [Y,X,3] uint8 with one caption each; the file appears when it is complete.

    outcomes: [N] True (success), False (failure) or None (running); picks the colour of the text.
    """
    path = pathlib.Path(path)
    if len(frames) == 0 or len(frames) != len(captions):
        raise ValueError(
            f"video {path} needs one caption per frame and at least one frame, got {len(frames)} frames"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        path.stem + ".partial" + path.suffix
    )  # ffmpeg picks the format by the suffix
    outcomes = outcomes or [None] * len(frames)
    pictures = [
        annotate(*row) for row in zip(frames, captions, map(COLOURS.get, outcomes), strict=True)
    ]
    _encode(partial, pictures, fps)
    os.replace(partial, path)
    return path


def write_episode(
    path, frames, title: str, success: bool, fps: int = 20, hold_s: float = 1.0
) -> pathlib.Path:
    """Video of one episode: every frame with title and step; the last one stays for `hold_s` with the outcome."""
    count, hold = len(frames), round(hold_s * fps)
    captions = [f"{title}\nstep {step + 1}" for step in range(count)]
    captions += [f"{title}\nstep {count}: {'success' if success else 'failure'}"] * hold
    outcomes = [None] * count + [bool(success)] * hold
    return write(path, [*frames, *[frames[-1]] * hold], captions, outcomes, fps)


def annotate(frame: np.ndarray, caption: str, colour=COLOURS[None]) -> np.ndarray:
    """[Y,X,3] uint8 -> the enlarged frame above a dark strip with the caption; even sides."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"video frames are [Y,X,3] uint8, got {frame.dtype}{list(frame.shape)}")
    factor = max(1, -(-MIN_SIDE_PX // max(frame.shape[:2])))
    picture = Image.fromarray(frame.repeat(factor, axis=0).repeat(factor, axis=1))
    line_px = FONT_PX + 6
    strip_px = LINES * line_px + 8
    width, height = picture.width + picture.width % 2, picture.height + strip_px
    canvas = Image.new("RGB", (width, height + height % 2), (20, 20, 24))
    canvas.paste(picture, (0, 0))
    font = ImageFont.load_default(size=FONT_PX)
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(_wrap(caption, font, picture.width - 16)):
        draw.text((8, picture.height + 4 + row * line_px), line, fill=colour, font=font)
    return np.asarray(canvas)


def _encode(path: pathlib.Path, pictures: list[np.ndarray], fps: int) -> None:
    """H.264 with yuv420p, which every player shows."""
    height, width = pictures[0].shape[:2]
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        str(fps),
        "-i",
        "-",
    ]
    target = [
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-crf",
        "20",
        "-movflags",
        "+faststart",
        str(path),
    ]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target]
    done = subprocess.run(
        command, input=b"".join(p.tobytes() for p in pictures), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace').strip()}"
        )


def _wrap(caption: str, font, width_px: float) -> list[str]:
    """At most LINES lines; the last paragraph (the step) always stays, a long instruction is cut."""
    columns = max(8, int(width_px / font.getlength("n")))
    *paragraphs, last = caption.split("\n")
    above = textwrap.wrap(" ".join(paragraphs), columns, max_lines=LINES - 1, placeholder=" ...")
    return above + (textwrap.wrap(last, columns)[:1] or [""])
