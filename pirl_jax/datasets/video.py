"""Single frames of a video file, by their time.

Needs av.  Knows no data set.
"""

import pathlib

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import needs, pictures, reading


class Video:
    """One open file, of which nothing is decoded but what is asked for."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the table of contents alone.

        Raises: ValueError for what is no whole video.
        """
        av = needs.library("av")
        outside.require_file(path)
        self._faults = (av.FFmpegError, EOFError)
        self.path = path
        with reading.reading(path, "mp4 video", *self._faults):
            # By its reader's name: others would open files that it names.
            self._container = av.open(str(path), format="mp4")
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        streams = self._container.streams.video
        # Without a codec that is known, a stream has not even a size.
        if not streams or streams[0].codec_context is None:
            raise ValueError(
                f"{self.path} has no video in it, or is a part of one; {outside.AGAIN}"
            )
        self._stream = streams[0]
        pictures.require_size(self._stream.height, self._stream.width, self.path)
        entries = self._stream.index_entries
        self.num_frames = len(entries)
        self.hz = float(self._stream.average_rate or 0)
        size = self.path.stat().st_size
        behind = [entry for entry in entries if entry.pos + entry.size > size]
        if behind or not self.num_frames or not self.hz:
            raise ValueError(
                f"{self.path} is a part of a video: {len(behind)} of its {self.num_frames} frames "
                f"lie behind its end; {outside.AGAIN}"
            )

    def frame(self, number: int) -> np.ndarray:
        """uint8 [Y,X,3].

        Raises: ValueError where there is none, or it is damaged.
        """
        start = self._stream.start_time or 0
        moment = start + round(number / self.hz / self._stream.time_base)
        half = 0.5 / self.hz / float(self._stream.time_base)
        with reading.reading(self.path, "mp4 video", *self._faults, where=f"frame {number}"):
            frame = self._decoded(moment, moment - half)
            # Where frames are stored in another order, the key frame may lie behind.
            if frame is None or abs(frame.pts - moment) > half:
                frame = self._decoded(start, moment - half)
            if frame is not None and abs(frame.pts - moment) <= half:
                return frame.to_ndarray(format="rgb24")
        raise ValueError(
            f"{self.path} has no frame at {number / self.hz:.3f} s; its frames do not follow at "
            f"{self.hz:g} a second; {outside.AGAIN}"
        )

    def _decoded(self, seek: int, earliest: float) -> object | None:
        """The first frame from a time on, looked for from the key frame before `seek`."""
        self._container.seek(seek, stream=self._stream, backward=True)
        for frame in self._container.decode(self._stream):
            pictures.require_size(frame.height, frame.width, self.path)
            if frame.pts is not None and frame.pts >= earliest:
                return frame
        return None

    def close(self) -> None:
        self._container.close()
