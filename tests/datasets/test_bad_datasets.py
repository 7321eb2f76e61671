"""What is wrong with somebody's demonstrations is one sentence: file, what it is, what to do."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from pirl_jax.datasets import chunks, episodes, needs, opened, pictures, summary, tables
from tests import written_datasets as written

pytest.importorskip("pyarrow", reason="the extra datasets (pyarrow) is not installed")
h5py = pytest.importorskip("h5py", reason="the extra datasets (h5py) is not installed")
pytest.importorskip("av", reason="the extra datasets (av) is not installed")

WANTED = episodes.Wanted(cameras=("agentview", "wrist"), state_dim=8, action_dim=7, control_hz=20)
MAKERS = {
    "v2": written.lerobot_v2,
    "v2 video": lambda folder, made: written.lerobot_v2(folder, made, "video"),
    "v3": lambda folder, made: written.lerobot_v3(folder, made, "image"),
    "v3 video": written.lerobot_v3,
    "hdf5": lambda folder, made: written.libero_hdf5(folder / "a_demo.hdf5", made).parent,
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
TABLE_V2 = "data/chunk-000/episode_000001.parquet"
TABLE_V3 = "data/chunk-000/file-000.parquet"
VIDEO_V2 = "videos/chunk-000/wrist_image/episode_000001.mp4"
VIDEO_V3 = "videos/observation.images.image2/chunk-000/file-000.mp4"
HDF5 = "a_demo.hdf5"
INFO = "meta/info.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound data set of each format, to be copied."""
    root = tmp_path_factory.mktemp("whole")
    for name, make in MAKERS.items():
        make(root / name, written.episodes((3, 4), size_px=32, smooth=True))
    return root


@pytest.fixture
def copied(whole, tmp_path):
    def copy(name):
        for path in sorted((whole / name).rglob("*")):
            place = tmp_path / "data" / path.relative_to(whole / name)
            if path.is_dir():
                place.mkdir(parents=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
        return tmp_path / "data"

    return copy


def said(path, wanted=WANTED):
    """The sentence, after everything was looked at."""
    with pytest.raises(ValueError) as error:
        read(path, wanted)
    text = str(error.value)
    assert "\n" not in text and "; " in text and len(text) < 900, text
    return text


def read(path, wanted=WANTED):
    source = opened.open_source(path, wanted)
    try:
        summary.examine(source, 4, False, lambda count: None)
        rows = chunks.Chunks(source, 4, 16)
        rows.take(np.arange(rows.count))
    finally:
        source.close()


def edit(folder, change):
    """change: of the tree of info.json."""
    path = folder / INFO
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def table(path, change):
    """change: of the columns of a parquet file, {name: list}."""
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    columns = change(columns) or columns
    written._write(path, columns)


def demo(folder, change):
    """change: of data/demo_1 of the file."""
    with h5py.File(folder / HDF5, "r+") as file:
        change(file["data/demo_1"])


def replace(group, name, value):
    del group[name]
    group[name] = value


def with_value(columns, name, row, entry, value):
    columns[name][row][entry] = value


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_wrong_with_the_sound_ones(name, copied):
    read(copied(name))


# ---- kinds of damage: (format, what is done to it, file, what is said) ---------------------------

RATES = [
    ("v2", lambda f: edit(f, lambda t: t.update(fps=10)), "", "holds 10 frames .* at 20 Hz"),
    (
        "v3",
        lambda f: edit(f, lambda t: t.update(fps=30.0)),
        "",
        "holds 30 frames a second.*set sft.dataset_hz=20",
    ),
    ("v3", lambda f: edit(f, lambda t: t.update(fps=0)), INFO, "fps .* is 0 "),
    ("v2", lambda f: edit(f, lambda t: t.pop("fps")), INFO, "has no fps"),
    (
        "v2 video",
        lambda f: written.video(f / VIDEO_V2, np.zeros((4, 32, 32, 3), np.uint8), fps=30),
        VIDEO_V2,
        "has 30 frames a second, and .*info.json says 20",
    ),
    (
        "hdf5",
        lambda f: attribute(f, "env_args", json.dumps({"env_kwargs": {"control_freq": 10}})),
        HDF5,
        "holds 10 frames a second",
    ),
    ("hdf5", lambda f: attribute(f, "env_args", "{}"), HDF5, "does not say .*sft.dataset_hz=20"),
]


def attribute(folder, name, value):
    with h5py.File(folder / HDF5, "r+") as file:
        del file["data"].attrs[name]
        if value is not None:
            file["data"].attrs[name] = value


def renamed(old, new):
    return lambda tree: tree["features"].update({new: tree["features"].pop(old)})


CAMERAS = [
    (
        "v2",
        lambda f: edit(f, renamed("wrist_image", "hand")),
        "",
        "no camera known as wrist .* it has image, hand; .*sft.dataset_keys=wrist=NAME",
    ),
    (
        "v3 video",
        lambda f: edit(f, renamed("observation.images.image", "top")),
        "",
        "no camera known as agentview .* top",
    ),
    (
        "hdf5",
        lambda f: rename_in_all(f, "obs/eye_in_hand_rgb", "obs/hand"),
        HDF5,
        "no camera known as wrist .* obs/agentview_rgb, obs/hand; ",
    ),
    (
        "v2",
        lambda f: edit(f, lambda t: t["features"].update({"agentview": {**PICTURE}})),
        "",
        "has 2 camera that may be agentview .*image, agentview; choose with",
    ),
    (
        "v2",
        lambda f: edit(f, renamed("state", "joints")),
        "",
        "no numbers known as state .* joints",
    ),
]
PICTURE = {"dtype": "image", "shape": [32, 32, 3]}


def rename_in_all(folder, old, new):
    with h5py.File(folder / HDF5, "r+") as file:
        for group in file["data"].values():
            group.move(old, new)


DIMS = [
    (
        "v2",
        lambda f: edit(f, lambda t: t["features"]["actions"].update(shape=[8])),
        "",
        "actions .* has 8 dims, and actions of the suite has 7",
    ),
    (
        "v3",
        lambda f: edit(f, lambda t: t["features"]["observation.state"].update(shape=[7])),
        "",
        "observation.state .* has 7 dims, and state of the suite has 8",
    ),
    (
        "v2",
        lambda f: table(f / TABLE_V2, lambda c: c.update(actions=[a[:6] for a in c["actions"]])),
        TABLE_V2,
        "'actions' .* a row of 6 numbers and should have vectors of 7",
    ),
    (
        "v3",
        lambda f: table(f / TABLE_V3, lambda c: c.update(action=["a"] * 7)),
        TABLE_V3,
        "'action' .* has string and should have vectors of numbers",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: replace(d, "actions", np.zeros((4, 6)))),
        HDF5,
        "actions in demo_1 .* has 6 dims",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: replace(d, "obs/ee_states", np.zeros((4, 7)))),
        HDF5,
        r"obs/ee_states\+obs/gripper_states in demo_1 .* has 9 dims",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: replace(d, "actions", np.zeros(4))),
        HDF5,
        r"float64 of shape \[4\] and should be numbers of shape",
    ),
]
NUMBERS = [
    (
        "v2",
        lambda f: table(f / TABLE_V2, lambda c: with_value(c, "state", 2, 3, float("nan"))),
        "",
        r"state\[3\] in step 2 of episode 1 of .* is nan; mend",
    ),
    (
        "v3",
        lambda f: table(f / TABLE_V3, lambda c: with_value(c, "action", 1, 0, float("inf"))),
        "",
        r"action\[0\] in step 1 of episode 0 .* is inf",
    ),
    (
        "v2",
        lambda f: table(f / TABLE_V2, lambda c: with_value(c, "state", 0, 0, None)),
        "",
        r"state\[0\] in step 0 .* is nan",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: d["actions"].__setitem__((3, 6), np.nan)),
        "",
        r"actions\[6\] in step 3 of episode 1 .* is nan",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: d["obs/ee_states"].__setitem__((1, 2), 1e300)),
        "",
        r"\[2\] in step 1 of episode 1 .* is inf",
    ),
    (
        "v2",
        lambda f: table(f / TABLE_V2, lambda c: with_value(c, "actions", 2, 1, 1.5)),
        "",
        r"actions\[1\] in step 2 of episode 1 .* is 1.5, and actions of a suite lie in -1 to 1",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: d["actions"].__setitem__((0, 0), -255)),
        "",
        r"actions\[0\] in step 0 .* is -255",
    ),
]


def cut(share):
    def change(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return change


def swapped(old, new):
    def change(path):
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))

    return change


def at(name, change):
    return lambda folder: change(folder / name)


FILES = [
    ("v2", at(TABLE_V2, cut(0)), TABLE_V2, "is empty and should be a parquet file"),
    ("v2", at(TABLE_V2, cut(0.7)), TABLE_V2, "no parquet file, or a part of one"),
    ("v3", at("meta/tasks.parquet", cut(0.5)), "meta/tasks.parquet", "no parquet file"),
    (
        "v3",
        at("meta/episodes/chunk-000/file-000.parquet", cut(0)),
        "meta/episodes/chunk-000/file-000.parquet",
        "is empty",
    ),
    ("v2 video", at(VIDEO_V2, cut(0)), VIDEO_V2, "no mp4 video, or a part of one"),
    ("v2 video", at(VIDEO_V2, cut(0.6)), VIDEO_V2, "has no video in it, or is a part of one"),
    ("v2 video", lambda f: front_first(f / VIDEO_V2), VIDEO_V2, "1 of its 4 frames lie behind"),
    ("v3 video", at(VIDEO_V3, lambda p: p.write_bytes(b"RIFF" * 99)), VIDEO_V3, "no mp4 video"),
    ("v2 video", at(VIDEO_V2, swapped(b"avc1", b"zzzz")), VIDEO_V2, "has no video in it"),
    (
        "v3",
        at("meta/tasks.parquet", swapped(b"solve the", b"\xffolve the")),
        "meta/tasks.parquet",
        "no parquet file, or a part of one .*utf-8",
    ),
    (
        "hdf5",
        lambda f: demo(f, lambda d: replace(d, "obs/ee_states", np.dtype("f8"))),
        HDF5,
        "demo_1/obs/ee_states .* is no array",
    ),
    ("hdf5", at(HDF5, cut(0)), HDF5, "no HDF5 file, or a part of one"),
    ("hdf5", at(HDF5, cut(0.5)), HDF5, "no HDF5 file, or a part of one"),
    ("v2", at(INFO, cut(0)), INFO, "is empty"),
    ("v2", at(INFO, cut(0.5)), INFO, "is no JSON"),
    ("v2", at("meta/episodes.jsonl", cut(0.9)), "line 2 of .*meta/episodes.jsonl", "is no JSON"),
    ("v2", at("meta/episodes.jsonl", cut(0)), "meta/episodes.jsonl", "has 0 episodes"),
    ("v2", at(TABLE_V2, lambda p: p.unlink()), TABLE_V2, "is no file"),
    ("v3 video", at(VIDEO_V3, lambda p: p.unlink()), VIDEO_V3, "is no file"),
    (
        "v2",
        lambda f: table(
            f / TABLE_V2, lambda c: c["image"][1].update(bytes=c["image"][1]["bytes"][:60])
        ),
        f"image in row 1 of .*{TABLE_V2}",
        "no picture, or a part of one",
    ),
    (
        "v3",
        lambda f: table(f / TABLE_V3, lambda c: c[f"{IMAGES}2"][0].update(bytes=b"GIF89a")),
        f"row 0 of .*{TABLE_V3}",
        "no picture",
    ),
    (
        "v2",
        lambda f: table(f / TABLE_V2, lambda c: c["image"][0].update(bytes=None, path="a.png")),
        TABLE_V2,
        "without bytes and should have pictures, inside the file",
    ),
]
IMAGES = "observation.images.image"


def front_first(path):
    """Its table of contents is whole."""
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    written.video(path, pixels, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-1])


def shorter(columns):
    return {name: values[:-1] for name, values in columns.items()}


def frames(name, count):
    pixels = np.zeros((count, 32, 32, 3), np.uint8)
    return lambda folder: written.video(folder / name, pixels)


LENGTHS = [
    ("v2", lambda f: table(f / TABLE_V2, shorter), TABLE_V2, "has 3 rows, and .* have 4 steps"),
    ("v3", lambda f: table(f / TABLE_V3, shorter), TABLE_V3, "has 6 rows, and .* have 7 steps"),
    ("v2 video", frames(VIDEO_V2, 3), VIDEO_V2, "has 3 frames from 0 s on, .* has 4 steps"),
    ("v2 video", frames(VIDEO_V2, 9), VIDEO_V2, "has 9 frames from 0 s on, .* has 4 steps"),
    ("v3 video", frames(VIDEO_V3, 6), VIDEO_V3, "has 3 frames from 0.15 s on, .* has 4 steps"),
    (
        "hdf5",
        lambda f: demo(f, lambda d: replace(d, "obs/gripper_states", np.zeros((3, 2)))),
        HDF5,
        "demo_1/obs/gripper_states .* has 3 steps, and its actions 4",
    ),
    (
        "hdf5",
        lambda f: demo(
            f, lambda d: replace(d, "obs/agentview_rgb", np.zeros((5, 32, 32, 3), np.uint8))
        ),
        HDF5,
        "demo_1/obs/agentview_rgb .* has 5 steps",
    ),
    ("hdf5", lambda f: demo(f, lambda d: replace(d, "actions", np.zeros((0, 7)))), HDF5, "0 steps"),
    ("v2", lambda f: edit(f, lambda t: t.update(total_frames=8)), INFO, "total_frames=8, .* 7"),
    ("v3", lambda f: edit(f, lambda t: t.update(total_episodes=1)), INFO, "episodes=1, .* 2"),
    (
        "v3",
        lambda f: table(f / TABLE_V3, lambda c: c["episode_index"].__setitem__(3, 0)),
        TABLE_V3,
        "rows 3 and on of .* are of episode 0, and .* says 1",
    ),
]
POINTERS = [
    (kind, at(name, lambda path: path.write_text(POINTER)), name, "Git LFS pointer .*git lfs pull")
    for kind, name in (
        ("v2", TABLE_V2),
        ("v2", INFO),
        ("v2", "meta/tasks.jsonl"),
        ("v3", "meta/tasks.parquet"),
        ("v2 video", VIDEO_V2),
        ("v3 video", VIDEO_V3),
        ("hdf5", HDF5),
    )
]
VERSIONS = [
    (
        "v2",
        lambda f, version=version: edit(f, lambda t: t.update(codebase_version=version)),
        INFO,
        f"codebase_version '{re.escape(version)}', and v2.0, v2.1, v3.0 can be read",
    )
    for version in ("v1.6", "v4.0", "3.0", "")
] + [
    ("v3", lambda f: edit(f, lambda t: t.pop("codebase_version")), INFO, "has no codebase_version"),
    ("v3", lambda f: edit(f, lambda t: t.update(codebase_version=3)), INFO, "should be a text"),
]
TASKS = [
    ("v2", at("meta/tasks.jsonl", lambda p: p.unlink()), "meta/tasks.jsonl", "is no file"),
    ("v2", at("meta/tasks.jsonl", cut(0)), "meta/tasks.jsonl", "has no tasks"),
    (
        "v2",
        at("meta/tasks.jsonl", lambda p: p.write_text('{"task_index": 5, "task": "a"}')),
        "meta/tasks.jsonl",
        "has task 0, which .* lacks",
    ),
    (
        "v2",
        at("meta/tasks.jsonl", lambda p: p.write_text('{"task_index": 0, "task": " "}')),
        "meta/tasks.jsonl",
        "one without words",
    ),
    ("v3", at("meta/tasks.parquet", lambda p: p.unlink()), "meta/tasks.parquet", "is no file"),
    (
        "v3",
        lambda f: table(f / "meta/tasks.parquet", lambda c: {"task_index": c["task_index"]}),
        "meta/tasks.parquet",
        "no column of tasks beside task_index, but nothing",
    ),
    (
        "v3",
        lambda f: table(f / "meta/tasks.parquet", lambda c: c.update(__index_level_0__=[3])),
        "meta/tasks.parquet",
        "int64: 3 and should have texts",
    ),
    ("hdf5", lambda f: nameless(f, "{}"), "moved.hdf5", "has no instruction: .*_demo.hdf5"),
    ("hdf5", lambda f: nameless(f, "{"), "problem_info of .*moved.hdf5", "is no JSON"),
    (
        "hdf5",
        lambda f: nameless(f, json.dumps({"language_instruction": 5})),
        "moved.hdf5",
        "has no instruction",
    ),
]


def nameless(folder, info):
    attribute(folder, "problem_info", info)
    (folder / HDF5).rename(folder / "moved.hdf5")


def path_of_data(template):
    return lambda folder: edit(folder, lambda tree: tree.update(data_path=template))


def elsewhere(folder, link):
    other = folder.parent / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros((4, 7))
    demo(folder, lambda group: replace(group, "actions", link(other)))


def virtual(folder):
    layout = h5py.VirtualLayout((4, 7), "f8")
    layout[:] = h5py.VirtualSource(folder.parent / "other.hdf5", "x", (4, 7))

    def change(group):
        del group["actions"]
        group.create_virtual_dataset("actions", layout)

    demo(folder, change)


def external(folder):
    def change(group):
        del group["actions"]
        place = [(str(folder.parent / "raw"), 0, 4 * 7 * 8)]
        group.create_dataset("actions", (4, 7), "f8", external=place)

    demo(folder, change)


def one_chunk(group):
    del group["obs/agentview_rgb"]
    shape = (4, 4096, 4096, 3)
    group.create_dataset("obs/agentview_rgb", shape, "u1", chunks=(4, 4096, 4096, 3))


def large(group):
    del group["obs/agentview_rgb"]
    shape = (4, 8192, 8192, 3)
    group.create_dataset("obs/agentview_rgb", shape, "u1", chunks=(1, 64, 64, 3))


HOSTILE = [
    ("v2", path_of_data("../../x{episode_index}"), INFO, r"path ../../x0, which leads away"),
    ("v2", path_of_data("/etc/{episode_index}"), INFO, "which leads away"),
    ("v2", path_of_data("{episode_index.__class__}"), "", "is no file|leads away"),
    ("v2", path_of_data("{episode_index:099999999d}"), "", "is no file|leads away"),
    ("v3", path_of_data("{secret}"), INFO, "path with {secret}, which is not known"),
    ("v3", path_of_data(""), INFO, "leads away"),
    (
        "v2",
        at("meta/episodes.jsonl", lambda p: p.write_text('{"episode_index": 0, "length": 9e9}')),
        "line 1 of",
        "should be a whole number",
    ),
    (
        "v2",
        at(
            "meta/episodes.jsonl", lambda p: p.write_text('{"episode_index": 0, "length": 9999999}')
        ),
        "line 1 of",
        "has 9,999,999 steps",
    ),
    ("v2", at("meta/episodes.jsonl", lambda p: p.write_text(" " * (1 << 21))), "", "longer"),
    (
        "v2",
        lambda f: edit(f, lambda t: t["features"]["state"].update(shape=[60000])),
        INFO,
        "has 60,000 numbers a step",
    ),
    (
        "v2",
        lambda f: edit(f, lambda t: t["features"]["state"].update(shape=[-8])),
        INFO,
        r"shape of feature state .* is \[-8\]",
    ),
    ("hdf5", lambda f: elsewhere(f, lambda p: h5py.ExternalLink(p, "x")), HDF5, "is a link"),
    ("hdf5", lambda f: elsewhere(f, lambda p: h5py.SoftLink("/data/demo_0/actions")), HDF5, "link"),
    ("hdf5", virtual, HDF5, "lies in another file, which is not read"),
    ("hdf5", external, HDF5, "lies in another file, which is not read"),
    ("hdf5", lambda f: demo(f, one_chunk), HDF5, "stored in chunks of .* store it step by step"),
    ("hdf5", lambda f: demo(f, large), HDF5, "a picture of 8192 x 8192 px"),
    (
        "hdf5",
        lambda f: attribute(f, "macros_image_convention", "opencv"),
        HDF5,
        "opencv.*sft.dataset_images=upright",
    ),
]
KINDS = {
    "rate": RATES,
    "cameras": CAMERAS,
    "dims": DIMS,
    "numbers": NUMBERS,
    "files": FILES,
    "lengths": LENGTHS,
    "pointers": POINTERS,
    "versions": VERSIONS,
    "tasks": TASKS,
    "hostile": HOSTILE,
}
CASES = [
    pytest.param(*case, id=f"{kind} {number}")
    for kind, cases in KINDS.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize("name, damage, file, sentence", CASES)
def test_damage_is_one_sentence(name, damage, file, sentence, copied):
    folder = copied(name)
    damage(folder)
    text = said(folder)
    assert re.search(sentence, text), text
    assert re.search(f"{folder}.*{file}" if "of" not in file else file, text), text


def test_kinds_have_at_least_three_inputs():
    assert min(map(len, KINDS.values())) >= 3


# ---- what a user asks for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("wrist", "has 'wrist'; write NAME=KEY"),
        ("hand=a", "has 'hand=a'; .* one of agentview, wrist, state, actions"),
        ("wrist=a,wrist=b", "names wrist twice"),
        ("wrist=", "has 'wrist='"),
    ],
)
def test_keys_that_cannot_be_read(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        episodes.parse_keys(text, WANTED.cameras)


@pytest.mark.parametrize("format_", ["v2", "v3", "hdf5"])
def test_a_key_that_is_not_there(format_, copied):
    wanted = dataclasses.replace(WANTED, keys={"wrist": "hand"})
    text = said(copied(format_), wanted)
    assert "sft.dataset_keys wants 'hand' for wrist, and " in text
    assert "wrist_image" in text or "image2" in text or "eye_in_hand_rgb" in text


@pytest.mark.parametrize("format_", ["v2", "v3", "hdf5"])
def test_a_rate_that_a_user_knows_better(format_, copied):
    folder = copied(format_)
    if format_ == "hdf5":
        attribute(folder, "env_args", "{}")
    else:
        edit(folder, lambda tree: tree.update(fps=10))
    read(folder, dataclasses.replace(WANTED, given_hz=20.0))
    text = said(folder, dataclasses.replace(WANTED, given_hz=10.0))
    assert text.startswith("sft.dataset_hz=10 is not the 20 Hz at which the suite acts; ")


def test_places_without_a_data_set(copied, tmp_path):
    folder = copied("v2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    sentences = {
        tmp_path / "nowhere": "does not exist",
        tmp_path / "notes.txt": "is no data set; give LIBERO's",
        tmp_path / "empty": "has neither meta/info.json .* but nothing; give the folder",
        tmp_path: "but data, empty, notes.txt; give one of its folders: data",
        folder / "meta": "has neither meta/info.json",
    }
    for path, sentence in sentences.items():
        text = said(path)
        assert text.startswith(f"sft.dataset={path} ") and re.search(sentence, text), text


@pytest.mark.parametrize("package", ["pyarrow", "h5py", "av"])
def test_a_package_that_is_not_installed(package, copied, monkeypatch):
    folder = copied({"pyarrow": "v3", "h5py": "hdf5", "av": "v2 video"}[package])
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    text = said(folder)
    assert f"needs the package {package}, which cannot be imported" in text
    assert text.endswith(needs.REMEDY)


# ---- sizes ---------------------------------------------------------------------------------------


def test_a_picture_is_measured_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 99)
    small = written._png(np.zeros((9, 11, 3), np.uint8))["bytes"]
    assert pictures.decode(small, "x").shape == (9, 11, 3)
    with pytest.raises(ValueError, match="x is a picture of 10 x 10 px, and at most 99"):
        pictures.decode(written._png(np.zeros((10, 10, 3), np.uint8))["bytes"], "x")
    monkeypatch.setattr(pictures, "MOST_BYTES", 9)
    with pytest.raises(ValueError, match="more than 9 bytes"):
        pictures.decode(small, "x")


def test_a_table_of_too_many_rows(copied, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 3)
    assert re.search("says that it has 4 rows, and at most 3", said(copied("v2")))
