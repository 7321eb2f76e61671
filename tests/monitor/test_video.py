import cv2
import numpy as np
import pytest

from pirl_jax.monitor import video


def read_video(path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])  # cv2 gives blue, green, red
    capture.release()
    return np.stack(frames)


def test_video_reads_back_with_all_frames_and_even_sides(tmp_path):
    frames = [np.full((63, 65, 3), 40 * k, np.uint8) for k in range(5)]
    path = video.write(tmp_path / "new" / "a.mp4", frames, ["lift the red cube\nstep 1"] * 5, fps=10)
    read = read_video(path)
    assert read.shape == (5, *video.annotate(frames[0], "").shape)
    assert read.shape[1] % 2 == 0 and read.shape[2] % 2 == 0 and read.shape[2] >= video.MIN_SIDE_PX
    np.testing.assert_allclose(read[:, 50, 50].mean(-1), [0, 40, 80, 120, 160], atol=6)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_enlarging_repeats_pixels_and_text_is_drawn_below():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain, text = video.annotate(frame, ""), video.annotate(frame, "step 3")
    np.testing.assert_array_equal(plain[:384:6, :384:6], frame)
    np.testing.assert_array_equal(text[:384], plain[:384])
    assert (text[384:] != plain[384:]).any()


def test_episodes_follow_each_other_and_show_their_outcome(tmp_path):
    episodes = [
        {"frames": [np.zeros((64, 64, 3), np.uint8)] * 3, "instruction": "stack the red cube", "success": success}
        for success in (True, False)
    ]
    path = video.write_episodes(tmp_path / "final.mp4", episodes, fps=4, hold_s=0.5)
    strips = read_video(path)[:, 390:].astype(int)
    assert len(strips) == 2 * (3 + 2)
    green, red = (np.unravel_index(s.sum(-1).argmax(), s.shape[:2]) for s in (strips[4], strips[9]))
    assert strips[4][green][1] > strips[4][green][0] and strips[9][red][0] > strips[9][red][1]


def test_long_instruction_is_cut_and_the_step_stays():
    font = video.ImageFont.load_default(size=video.FONT_PX)
    lines = video._wrap("pick up the black bowl " * 9 + "\nstep 12", font, 300)
    assert len(lines) == video.LINES and lines[-1] == "step 12"


def test_wrong_frames_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"uint8, got float32\[2, 2, 3\]"):
        video.annotate(np.zeros((2, 2, 3), np.float32), "")
    with pytest.raises(ValueError, match="at least one frame"):
        video.write(tmp_path / "a.mp4", [], [])
