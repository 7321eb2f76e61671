import cv2
import numpy as np
import pytest
import storage

from pirl_jax.monitor import video


def read_video(path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])  # cv2 gives blue, green, red
    capture.release()
    return np.stack(frames)


def test_video_reads_back_with_all_frames_and_even_sides(tmp_path):
    frames = [np.full((63, 65, 3), 40 * number, np.uint8) for number in range(5)]
    captions = ["lift the red cube\nstep 1"] * 5
    path = video.write(tmp_path / "new" / "a.mp4", frames, captions, fps=10)
    read = read_video(path)
    assert read.shape == (5, *video.annotate(frames[0], "").shape)
    assert read.shape[1] % 2 == 0 and read.shape[2] % 2 == 0 and read.shape[2] >= video.MIN_SIDE_PX
    np.testing.assert_allclose(read[:, 50, 50].mean(-1), [0, 40, 80, 120, 160], atol=6)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_enlarging_repeats_pixels_and_text_is_drawn_below():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = video.annotate(frame, "")
    with_text = video.annotate(frame, "step 3")
    np.testing.assert_array_equal(plain[:384:6, :384:6], frame)
    np.testing.assert_array_equal(with_text[:384], plain[:384])
    assert (with_text[384:] != plain[384:]).any()


@pytest.mark.parametrize("success", [True, False])
def test_an_episode_shows_task_step_and_outcome(tmp_path, monkeypatch, success):
    frames = [np.zeros((64, 64, 3), np.uint8)] * 3
    annotate = video.annotate
    shown = []

    def noted(frame, caption, colour):
        shown.append(caption)
        return annotate(frame, caption, colour)

    monkeypatch.setattr(video, "annotate", noted)
    path = tmp_path / "videos" / "a.mp4"
    title = "task 2: stack the red cube"
    video.write_episode(path, frames, title, success, fps=4, hold_s=0.5)
    outcome = "success" if success else "failure"
    playing = [f"{title}\nstep {number}" for number in (1, 2, 3)]
    assert shown == playing + [f"{title}\nstep 3: {outcome}"] * 2
    read = read_video(path)
    assert len(read) == 3 + 2
    strip = read[-1, 390:].astype(int)
    brightest = strip[np.unravel_index(strip.sum(-1).argmax(), strip.shape[:2])]
    assert brightest[int(success)] > brightest[1 - int(success)], "green or red"


def test_a_failed_video_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the one before")
    monkeypatch.setattr(video.imageio_ffmpeg, "get_ffmpeg_exe", lambda: "false")
    with pytest.raises(RuntimeError, match="ffmpeg could not write"):
        video.write(path, [np.zeros((64, 64, 3), np.uint8)], ["step 1"])
    assert path.read_bytes() == b"the one before" and list(tmp_path.iterdir()) == [path]


def test_long_instruction_is_cut_and_the_step_stays():
    font = video.ImageFont.load_default(size=video.FONT_PX)
    lines = video._wrap("pick up the black bowl " * 9 + "\nstep 12", font, 300)
    assert len(lines) == video.LINES and lines[-1] == "step 12" and lines[-2].endswith(" ...")
    assert max(font.getlength(line) for line in lines) <= 300
    assert video._wrap("open the drawer\nstep 1", font, 300) == ["open the drawer", "step 1"]


def test_wrong_frames_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"uint8, got float32\[2, 2, 3\]"):
        video.annotate(np.zeros((2, 2, 3), np.float32), "")
    with pytest.raises(ValueError, match="at least one frame"):
        video.write(tmp_path / "a.mp4", [], [])


FULL = """
import numpy as np
from pirl_jax.monitor import video
frames = list(np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8))
refuse()
try:
    video.write(place + "/videos/a.mp4", frames, ["caption"] * 30)
except OSError as error:
    print(error.strerror, error.filename, os.listdir(place + "/videos"))
"""


def test_a_full_disk_is_named_as_such(tmp_path):
    for refuse, run, words in (
        (
            "def refuse():\n    os.mkdir(place + '/videos')\n    fill()\n",
            storage.on_small_disk,
            "No space left on device",
        ),
        (
            "refuse = os.getpid\n",
            lambda program, place: storage.with_small_files(program, place, 1 << 14),
            "File too large",
        ),
    ):
        done = run(refuse + FULL, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{words} {tmp_path}/videos/a.mp4"), done.stdout
        assert done.stdout.endswith(" []\n"), "no half of a video"
