"""Videos of rollouts: which episodes, in the time that they took, with what was known."""

import cv2
import numpy as np
import pytest

from pirl_jax.envs import base
from pirl_jax.monitor import video
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import film
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config, films

SPEC = base.EnvSpec("fake", ("push the cube",), 6, max_episode_steps=18, image_size_px=16)


def raw(tmp_path, **video_fields):
    page = recipe.get_config()
    page.run.directory = str(tmp_path / "run")
    page.video.update(video_fields)
    return config.settings(page).raw


def taken(count=4):
    found = film.Film([0, 1])
    for k in range(count):
        frame = np.full((16, 16, 3), 60 * k, np.uint8)
        value = 0.25 * k if k < count - 1 else float("nan")
        found.shots[0].append(film.Shot(frame, 5 * k, float(k == count - 1), value))
    return found


def played(**first):
    return [streams.Result(streams.Episode(0, 3), **first), streams.Result(streams.Episode(0, 4))]


def test_one_episode_of_each_group_and_none_by_default(tmp_path):
    assert films.begin(raw(tmp_path)) is None
    assert list(films.begin(raw(tmp_path, train=3)).shots) == [0, 1, 2]
    page = recipe.get_config()
    page.video.train = 2
    page.algorithm.update({"adv_type": "grpo", "group_size": 4})
    page.model.add_value_head = False
    assert list(films.begin(config.settings(page).raw).shots) == [0, 4]


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_a_film_runs_as_fast_as_the_robot_and_says_so(tmp_path, monkeypatch, where):
    captions = []
    annotate = video.annotate

    def noted(frame, caption, colour):
        captions.append(caption)
        return annotate(frame, caption, colour)

    monkeypatch.setattr(video, "annotate", noted)
    page = raw(tmp_path, train=2, directory=where and str(tmp_path / where))
    chunk = page.model.action_chunk
    made = films.write(taken(), page, 7, played(success=True), SPEC)
    folder = tmp_path / where if where else tmp_path / "run" / "video" / "train"
    (path,) = folder.iterdir()
    assert made == {"rollout/episode_0": path}
    assert path.name == "iteration_7_episode_0_task_0_init_3.mp4", "the other was never seen"
    file = cv2.VideoCapture(str(path))
    frames_per_s = 20 / chunk
    assert file.get(cv2.CAP_PROP_FPS) == pytest.approx(frames_per_s)
    assert file.get(cv2.CAP_PROP_FRAME_COUNT) == 4 + np.ceil(frames_per_s)
    title = f"push the cube, policy 7, {frames_per_s:g} frames/s"
    assert captions[:2] == [
        f"{title}\nstep 0, reward 0, value 0.00",
        f"{title}\nstep 5, reward 0, value 0.25",
    ]
    assert captions[3] == f"{title}\nstep 15, reward 1"
    assert captions[-1] == f"{title}\nstep 15, reward 1, success"


def test_without_the_overlay_there_is_the_picture_alone(tmp_path):
    page = raw(tmp_path, train=1, info=False)
    films.write(taken(), page, 0, played(), SPEC)
    (path,) = films.directory(page).iterdir()
    file = cv2.VideoCapture(str(path))
    sides = [file.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    assert sides == [video.MIN_SIDE_PX, video.MIN_SIDE_PX]


def test_a_protocol_that_sets_the_chunk_sets_the_frame_rate(tmp_path):
    page = recipe.get_config()
    page.env.update(suite="libero_spatial", protocol="openpi")  # replans after 5 control steps
    page.model.update(action_horizon=10, action_chunk=10)
    page.run.directory = str(tmp_path / "run")
    page.video.update(train=1, info=False)
    settings = config.settings(page)
    films.write(taken(), settings.raw, 0, played(), SPEC)
    (path,) = films.directory(settings.raw).iterdir()
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == SPEC.control_hz / 5


def test_a_lost_episode_has_no_film(tmp_path):
    page = raw(tmp_path, train=1)
    films.write(taken(), page, 0, played(lost=True), SPEC)
    assert not films.directory(page).exists()
