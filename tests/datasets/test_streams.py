"""Demonstrations of every format give the rows that were written, a few files open at a time."""

import dataclasses

import numpy as np
import pytest

from pirl_jax.datasets import chunks, episodes, lerobot, opened, pictures, summary, tables, video
from pirl_jax.run import teach
from tests import written_datasets as written

pytest.importorskip("pyarrow", reason="the extra datasets (pyarrow) is not installed")
h5py = pytest.importorskip("h5py", reason="the extra datasets (h5py) is not installed")
av = pytest.importorskip("av", reason="the extra datasets (av) is not installed")

WANTED = episodes.Wanted(cameras=("agentview", "wrist"), state_dim=8, action_dim=7, control_hz=20)
HORIZON = 4
EXACT = {
    "v2.0": lambda folder, made: written.lerobot_v2(folder, made, version="v2.0"),
    "v2.1": written.lerobot_v2,
    "v3.0": lambda folder, made: written.lerobot_v3(folder, made, "image"),
    "hdf5": lambda folder, made: written.libero_hdf5(folder / "a_demo.hdf5", made),
}
FILMED = {
    "v2.1": lambda folder, made, codec: written.lerobot_v2(folder, made, "video", codec=codec),
    "v3.0": lambda folder, made, codec: written.lerobot_v3(folder, made, "video", codec=codec),
}
CODECS = [name for name in ("libx264", "libsvtav1", "mpeg4") if name in av.codecs_available]


def open_hdf5():
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def open_chunks(path, size_px=16, wanted=WANTED, **kwargs):
    source = opened.open_source(path, wanted)
    return source, chunks.Chunks(source, HORIZON, size_px, **kwargs)


@pytest.mark.parametrize("format_", EXACT)
def test_rows_are_those_of_the_episodes(format_, tmp_path):
    made = written.episodes()
    source, rows = open_chunks(EXACT[format_](tmp_path / "data", made))
    expected = teach.as_rows(made, HORIZON)
    index = np.random.default_rng(0).permutation(rows.count)
    taken = rows.take(index)
    assert rows.count == 18 and source.lengths.tolist() == [7, 5, 6]
    np.testing.assert_array_equal(taken.images, expected.images[index])
    np.testing.assert_array_equal(taken.state, expected.state[index])
    np.testing.assert_array_equal(taken.actions, expected.actions[index])
    assert taken.actions.dtype == taken.state.dtype == np.float32
    assert taken.instructions == [expected.instructions[row] for row in index]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("format_", FILMED)
def test_frames_of_videos(format_, codec, tmp_path):
    """Each its own grey, which a codec keeps to within a step; in any order."""
    made = written.episodes(size_px=64, smooth=True)
    _, rows = open_chunks(FILMED[format_](tmp_path / "data", made, codec), size_px=64)
    expected = teach.as_rows(made, HORIZON)
    for index in (np.arange(rows.count), np.arange(rows.count)[::-1], np.array([9, 2, 17, 2])):
        taken = rows.take(index).images.astype(float)
        # Frames are 8 greys apart: nearer to their own than to any other.
        assert np.abs(taken - expected.images[index]).mean((1, 2, 3, 4)).max() < 4


@pytest.mark.parametrize("gop, group", [(250, "closed"), (8, "open")])
def test_a_video_whose_frames_are_stored_in_another_order(gop, group, tmp_path):
    """x264 looks ahead: a frame may lie behind a later one, even behind the next key frame."""
    encoder = {"x264-params": f"open-gop={int(group == 'open')}:bframes=3:scenecut=0"}
    images = written.episodes((40,), 64, smooth=True)[0]["images"][:, 0]
    images = (images.astype(int) // 2).astype(np.uint8)
    written.video(tmp_path / "a.mp4", images, gop=gop, encoder=encoder)
    opened_video = video.Video(tmp_path / "a.mp4")
    for number in (39, 0, 20, 1, 38, *range(40)):
        assert abs(opened_video.frame(number).mean() - images[number].mean()) < 2, number
    opened_video.close()


@pytest.mark.parametrize("format_", EXACT)
def test_tasks_are_those_of_each_step(format_, tmp_path):
    tasks = ("push", "pull")
    if format_ == "hdf5":
        for task in tasks:
            made = written.episodes((4, 3), tasks=(task,))
            written.libero_hdf5(tmp_path / "data" / f"{task}_demo.hdf5", made)
        _, rows = open_chunks(tmp_path / "data")
        expected = ["pull"] * 7 + ["push"] * 7
    else:
        _, rows = open_chunks(EXACT[format_](tmp_path / "data", written.episodes(tasks=tasks)))
        expected = ["push"] * 7 + ["pull"] * 5 + ["push"] * 6
    assert rows.take(np.arange(rows.count)).instructions == expected


def test_libero_is_turned_and_others_are_not(tmp_path):
    made = written.episodes((3,))
    places = {
        "hdf5": EXACT["hdf5"](tmp_path / "a", made),
        "lerobot": EXACT["v2.1"](tmp_path / "b", made),
    }
    for name, path in places.items():
        found = {}
        for turned in (None, True, False):
            wanted = dataclasses.replace(WANTED, turned=turned)
            _, rows = open_chunks(path, wanted=wanted)
            found[turned] = rows.take(np.arange(3)).images
        np.testing.assert_array_equal(found[None], found[name == "hdf5"])
        np.testing.assert_array_equal(found[True], found[False][:, :, ::-1, ::-1])
        np.testing.assert_array_equal(found[None], made[0]["images"])


def test_names_that_a_user_gives(tmp_path):
    keys = written.KEYS | {"agentview": "front", "wrist": "hand.view", "state": "robot"}
    made = written.episodes((3,))
    path = written.lerobot_v2(tmp_path / "data", made, keys=keys)
    said = "agentview=front, wrist=hand.view,state=robot"
    wanted = dataclasses.replace(WANTED, keys=episodes.parse_keys(said, WANTED.cameras))
    _, rows = open_chunks(path, wanted=wanted)
    np.testing.assert_array_equal(rows.take(np.arange(3)).images, made[0]["images"])


def test_pictures_get_the_size_of_the_model(tmp_path):
    _, rows = open_chunks(EXACT["v2.1"](tmp_path / "data", written.episodes((3,))), size_px=8)
    assert rows.take(np.array([0, 2])).images.shape == (2, 2, 8, 8, 3)


# ---- bounded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["v2.1 image", "v2.1 video", "hdf5"])
def test_few_files_are_open_and_few_pictures_kept(format_, tmp_path, monkeypatch):
    made = written.episodes((3,) * 30, size_px=32)
    if format_ == "hdf5":
        for number, episode in enumerate(made):
            written.libero_hdf5(tmp_path / f"{number:02d}_demo.hdf5", [episode])
    else:
        written.lerobot_v2(tmp_path / "data", made, format_.split()[1])
        tmp_path /= "data"
    counts = {"open": 0, "most": 0}
    before = open_hdf5()

    def counted(kind, name):
        first = kind.__init__
        last = getattr(kind, name)

        def start(self, *args):
            counts["open"] += 1
            counts["most"] = max(counts["most"], counts["open"])
            first(self, *args)

        def end(self):
            counts["open"] -= 1
            last(self)

        monkeypatch.setattr(kind, "__init__", start)
        monkeypatch.setattr(kind, name, end)

    for kind in (tables.Table, video.Video):
        counted(kind, "close")
    of_one = 2 * 16 * 16 * 3
    source, rows = open_chunks(tmp_path, kept_bytes=10 * of_one)
    summary.examine(source, HORIZON, False, lambda count: None)
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows.take(generator.integers(0, rows.count, 8))
        assert rows._images.weight <= 10 * of_one
        assert open_hdf5() <= before + 16
    if format_ == "hdf5":
        assert open_hdf5() == before + 16
    else:
        # Tables and videos have a bound each.
        assert 16 <= counts["most"] <= 2 * lerobot.OPEN_FILES + 1
    source.close()
    assert counts["open"] == 0
    assert open_hdf5() == before


def test_pictures_that_are_kept_are_not_decoded_again(tmp_path):
    source, rows = open_chunks(EXACT["v2.1"](tmp_path / "data", written.episodes()))
    decoded = []
    images = source.images
    source.images = lambda *place: decoded.append(place) or images(*place)
    index = np.array([3, 9, 3, 0])
    first = rows.take(index)
    again = rows.take(index)
    assert len(decoded) == 3
    np.testing.assert_array_equal(first.images, again.images)


def test_numbers_alone_are_read_for_statistics(tmp_path, monkeypatch):
    path = EXACT["v2.1"](tmp_path / "data", written.episodes())

    def decode(*args):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(pictures, "decode", decode)
    source, _ = open_chunks(path)
    assert summary.examine(source, HORIZON, False, lambda count: None).steps == 18
