"""LeRobot's data sets: numbers in parquet, pictures there too or in videos.

    v2.0, v2.1   data/chunk-000/episode_000000.parquet, videos/chunk-000/KEY/episode_000000.mp4
    v3.0         data/chunk-000/file-000.parquet, videos/KEY/chunk-000/file-000.mp4, many episodes
                 in each

Where an episode lies is said by lerobot_meta.py.  Knows no policy.
"""

import pathlib

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import episodes, kept, lerobot_meta, pictures, tables, video

# Names of openpi's LIBERO data, of LeRobot's, and of what its converters write.
KNOWN = {
    "agentview": (
        *("image", "observation.images.image", "observation.image"),
        *("agentview", "observation.images.agentview", "observation.images.agentview_rgb"),
    ),
    "wrist": (
        *("wrist_image", "observation.images.wrist_image", "observation.wrist_image"),
        *("observation.images.image2", "wrist", "observation.images.wrist"),
        "observation.images.eye_in_hand_rgb",
    ),
    episodes.STATE: ("state", "observation.state"),
    episodes.ACTIONS: ("actions", "action"),
}
OPEN_FILES = 16  # of each kind


class LeRobot:
    """See episodes.Source."""

    def __init__(self, path: pathlib.Path, wanted: episodes.Wanted) -> None:
        """Reads the folder meta.

        Raises: ValueError for what it lacks, or what does not fit.
        """
        self.path = path
        self._meta = lerobot_meta.read(path)
        self.kind = f"LeRobot {self._meta.version}"
        self._wanted = wanted
        self.hz = episodes.rate(wanted, self._meta.fps, path)
        features = self._meta.features
        has = {
            "pictures": [key for key in features if features[key].is_picture],
            "numbers": [key for key in features if features[key].is_number],
        }
        self.keys = episodes.resolve(wanted, KNOWN, has, path)
        self._require_dims(episodes.STATE, wanted.state_dim)
        self._require_dims(episodes.ACTIONS, wanted.action_dim)
        self.lengths = np.array([episode.length for episode in self._meta.episodes], np.int64)
        self._tables = kept.Kept(OPEN_FILES, close=tables.Table.close)
        self._videos = kept.Kept(OPEN_FILES, close=video.Video.close)

    def check(self, episode: int) -> None:
        """See episodes.Source."""
        place = self._meta.episodes[episode]
        table = self._table(place.table)
        if table.num_rows != place.rows_of_table:
            raise ValueError(
                f"{place.table} has {table.num_rows} rows, and {self._meta.index} says that its "
                f"episodes have {place.rows_of_table} steps; {outside.AGAIN}"
            )
        for camera in self._wanted.cameras:
            key = self.keys[camera]
            if not self._meta.features[key].is_video:
                table.require([key])
                continue
            self._check_video(self._meta.clip(episode, key), place.length)

    def numbers(self, episode: int) -> episodes.Numbers:
        """See episodes.Source."""
        place = self._meta.episodes[episode]
        table = self._table(place.table)
        rows = (place.first_row, place.length)
        numbered = table.integers("episode_index", *rows)
        if (numbered != place.number).any():
            raise ValueError(
                f"rows {place.first_row} and on of {place.table} are of episode {numbered[0]}, and "
                f"{self._meta.index} says {place.number}; {outside.AGAIN}"
            )
        tasks = table.integers("task_index", *rows)
        unknown = [task for task in set(tasks.tolist()) if task not in self._meta.tasks]
        if unknown:
            raise ValueError(
                f"{place.table} has task {min(unknown)}, which {self._meta.index_of_tasks} lacks; "
                f"{outside.AGAIN}"
            )
        return episodes.Numbers(
            state_TQ=self._vectors(table, episodes.STATE, place),
            actions_TA=self._vectors(table, episodes.ACTIONS, place),
            instructions=tuple(self._meta.tasks[task] for task in tasks.tolist()),
        )

    def images(self, episode: int, step: int) -> list[np.ndarray]:
        """See episodes.Source."""
        place = self._meta.episodes[episode]
        found = []
        for camera in self._wanted.cameras:
            key = self.keys[camera]
            if self._meta.features[key].is_video:
                clip = self._meta.clip(episode, key)
                opened = self._video(clip.path)
                picture = opened.frame(round(clip.start_s * opened.hz) + step)
            else:
                picture = self._table(place.table).picture(key, place.first_row + step)
            found.append(pictures.turned(picture) if self._wanted.turned else picture)
        return found

    def close(self) -> None:
        """See episodes.Source."""
        self._tables.clear()
        self._videos.clear()

    def _table(self, path: pathlib.Path) -> tables.Table:
        return self._tables.get(path, lambda: tables.Table(path))

    def _video(self, path: pathlib.Path) -> video.Video:
        return self._videos.get(path, lambda: video.Video(path))

    def _vectors(self, table: tables.Table, name: str, place: lerobot_meta.Episode) -> np.ndarray:
        columns = []
        for key in episodes.parts(self.keys[name]):
            dim = self._meta.features[key].dim
            columns.append(table.vectors(key, dim, place.first_row, place.length))
        return np.concatenate(columns, axis=1)

    def _require_dims(self, name: str, dim: int) -> None:
        key = self.keys[name]
        found = sum(self._meta.features[part].dim for part in episodes.parts(key))
        if found != dim:
            raise ValueError(
                f"{key} of {self.path} has {found} dims, and {name} of the suite has {dim}; give "
                f"demonstrations of the same robot, or choose with "
                f"{episodes.FIELD}={name}=NAME+NAME"
            )

    def _check_video(self, clip: lerobot_meta.Clip, length: int) -> None:
        opened = self._video(clip.path)
        if abs(opened.hz - self._meta.fps) > episodes.RATE_TOLERANCE * self._meta.fps:
            raise ValueError(
                f"{clip.path} has {opened.hz:g} frames a second, and {self._meta.info} says "
                f"{self._meta.fps:g}; {outside.AGAIN}"
            )
        first = round(clip.start_s * opened.hz)
        there = opened.num_frames - first
        if there < length or (clip.alone and there > length):
            raise ValueError(
                f"{clip.path} has {max(there, 0)} frames from {clip.start_s:g} s on, and its "
                f"episode has {length} steps; {outside.AGAIN}"
            )
