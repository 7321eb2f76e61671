"""The page of a folder that work goes on in: report.html, written anew as results come.

It is for looking at: whatever is wrong with it is said once and ends nothing.
"""

import pathlib
import sys

from pirl_jax.core import outside
from pirl_jax.monitor import timeline
from pirl_jax.run import records, story

NAME = "report.html"


class Page:
    """report.html in the folder of a run or an evaluation."""

    def __init__(self, folder: pathlib.Path, every: int = 0) -> None:
        """every: iterations between refreshes; 0: none."""
        self.path = folder / NAME
        self._every = every
        self._failed = False

    def follow(self, iteration: int, timers: timeline.Timers) -> None:
        """After an iteration.  timers: measures "report"."""
        if self._every and (iteration + 1) % self._every == 0:
            with timers.measure("report"):
                self.refresh()

    def refresh(self) -> None:
        """While work goes on: videos stay the files that they are."""
        self._write(0)

    def finish(self) -> None:
        """With the videos in it."""
        self._write(story.MOST_VIDEO_BYTES)

    def _write(self, most_video_bytes: int) -> None:
        try:
            story.write(self.path, [records.read(self.path.parent)], most_video_bytes)
        # Whatever it is, a mistake of ours as well: days of training are worth more than a page.
        except Exception as error:
            if not self._failed:
                why = outside.shown(f"{type(error).__name__}: {error}")
                print(f"warning: {self.path} is not written ({why})", file=sys.stderr)
            self._failed = True
