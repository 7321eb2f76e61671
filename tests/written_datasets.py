"""Demonstrations written out as LeRobot's and LIBERO's data sets, small ones, for tests.

Not by these makers' own programs: by what their formats are known to be.
"""

import io
import json

import numpy as np
from PIL import Image

KEYS = {"agentview": "image", "wrist": "wrist_image", "state": "state", "actions": "actions"}
V3_KEYS = {
    "agentview": "observation.images.image",
    "wrist": "observation.images.image2",
    "state": "observation.state",
    "actions": "action",
}


def episodes(lengths=(7, 5, 6), size_px=16, seed=0, tasks=("solve the probe",), smooth=False):
    """Of a suite with two cameras, the last entry of an action its gripper."""
    generator = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        actions = generator.uniform(-1, 1, (length, 7)).astype(np.float32)
        actions[:, 6] = np.sign(actions[:, 6])
        actions[0, 6] = -1
        shape = (length, 2, size_px, size_px, 3)
        images = generator.integers(0, 256, shape).astype(np.uint8)
        if smooth:  # one grey per frame: what a lossy codec keeps
            grey = 10 + 8 * np.arange(length) + 100 * (number % 2)
            images = np.broadcast_to(grey[:, None, None, None, None], shape).astype(np.uint8)
        made.append(
            {
                "images": images,
                "state": generator.normal(size=(length, 8)).astype(np.float32),
                "actions": actions,
                "instruction": tasks[number % len(tasks)],
            }
        )
    return made


def _png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def video(path, images, fps=20, codec="libx264", gop=2, options=None, encoder=None):
    """images [T,Y,X,3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps, options=encoder)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _columns(made, keys, first, number, pictures):
    length = len(made["actions"])
    columns = {
        keys["state"]: made["state"].tolist(),
        keys["actions"]: made["actions"].tolist(),
        "timestamp": (np.arange(length) / 20).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, number),
        "index": first + np.arange(length),
        "task_index": np.full(length, made["task_index"]),
    }
    if pictures:
        for camera, name in enumerate(("agentview", "wrist")):
            columns[keys[name]] = [_png(image) for image in made["images"][:, camera]]
    return columns


def _table(columns):
    import pyarrow as pa

    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _write(path, columns, rows=3):
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(_table(columns), path, row_group_size=rows)


def _features(made, keys, kind):
    size_px = made[0]["images"].shape[2]
    features = {
        keys["state"]: {"dtype": "float32", "shape": [8], "names": None},
        keys["actions"]: {"dtype": "float32", "shape": [7], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    for name in ("agentview", "wrist"):
        features[keys[name]] = {"dtype": kind, "shape": [size_px, size_px, 3], "names": None}
    return features


def _numbered(made):
    """Each with the number of its task; the tasks."""
    tasks = sorted({episode["instruction"] for episode in made})
    numbered = [episode | {"task_index": tasks.index(episode["instruction"])} for episode in made]
    return numbered, tasks


def _lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def lerobot_v2(folder, made, kind="image", keys=KEYS, fps=20, codec="libx264", version="v2.1"):
    """A file per episode, each in two chunks of folders."""
    made, tasks = _numbered(made)
    meta = folder / "meta"
    meta.mkdir(parents=True)
    first = 0
    for number, episode in enumerate(made):
        name = f"chunk-{number // 2:03d}"
        path = folder / "data" / name / f"episode_{number:06d}.parquet"
        _write(path, _columns(episode, keys, first, number, kind == "image"))
        first += len(episode["actions"])
        if kind == "video":
            for camera, view in enumerate(("agentview", "wrist")):
                place = folder / "videos" / name / keys[view] / f"episode_{number:06d}.mp4"
                video(place, episode["images"][:, camera], fps, codec)
    name = "episode_{episode_index:06d}"
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "fps": fps,
        "total_episodes": len(made),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": 2,
        "data_path": f"data/chunk-{{episode_chunk:03d}}/{name}.parquet",
        "video_path": f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{name}.mp4",
        "features": _features(made, keys, kind),
    }
    (meta / "info.json").write_text(json.dumps(info))
    _lines(meta / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    _lines(
        meta / "episodes.jsonl",
        [
            {"episode_index": i, "tasks": [e["instruction"]], "length": len(e["actions"])}
            for i, e in enumerate(made)
        ],
    )
    _lines(
        meta / "episodes_stats.jsonl",
        [
            {"episode_index": i, "stats": {keys[name]: stats_of(e[name]) for name in STATED}}
            for i, e in enumerate(made)
        ],
    )
    return folder


STATED = ("state", "actions")


def stats_of(rows, quantiles=False):
    """As LeRobot writes them."""
    rows = rows.astype(np.float64)
    found = {name: getattr(rows, name)(0).tolist() for name in ("mean", "std", "min", "max")}
    if quantiles:
        found |= {"q01": np.quantile(rows, 0.01, 0).tolist()}
        found |= {"q99": np.quantile(rows, 0.99, 0).tolist()}
    return found | {"count": [len(rows)]}


def lerobot_v3(folder, made, kind="video", keys=V3_KEYS, fps=20, codec="libx264", per_file=2):
    """Several episodes per file."""
    made, tasks = _numbered(made)
    meta = folder / "meta"
    meta.mkdir(parents=True)
    index = []
    first = 0
    for file, start in enumerate(range(0, len(made), per_file)):
        together = made[start : start + per_file]
        columns = {}
        begin = 0
        for offset, episode in enumerate(together):
            number = start + offset
            length = len(episode["actions"])
            for name, values in _columns(episode, keys, first, number, kind == "image").items():
                columns.setdefault(name, []).extend(values)
            row = {
                "episode_index": number,
                "tasks": [episode["instruction"]],
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": file,
                "dataset_from_index": first,
                "dataset_to_index": first + length,
            }
            for view in ("agentview", "wrist") if kind == "video" else ():
                row |= {
                    f"videos/{keys[view]}/chunk_index": 0,
                    f"videos/{keys[view]}/file_index": file,
                    f"videos/{keys[view]}/from_timestamp": begin / fps,
                    f"videos/{keys[view]}/to_timestamp": (begin + length) / fps,
                }
            index.append(row)
            begin += length
            first += length
        _write(folder / "data" / "chunk-000" / f"file-{file:03d}.parquet", columns)
        for camera, view in enumerate(("agentview", "wrist")) if kind == "video" else ():
            images = np.concatenate([episode["images"][:, camera] for episode in together])
            place = folder / "videos" / keys[view] / "chunk-000" / f"file-{file:03d}.mp4"
            video(place, images, fps, codec)
    columns = {name: [row[name] for row in index] for name in index[0]}
    _write(meta / "episodes" / "chunk-000" / "file-000.parquet", columns)
    # As pandas writes a table whose index are the words.
    _write(
        meta / "tasks.parquet",
        {"task_index": np.arange(len(tasks)), "__index_level_0__": tasks},
    )
    rows = {name: np.concatenate([episode[name] for episode in made]) for name in STATED}
    stats = {keys[name]: stats_of(rows[name], quantiles=True) for name in STATED}
    (meta / "stats.json").write_text(json.dumps(stats))
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "fps": fps,
        "total_episodes": len(made),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": _features(made, keys, kind),
    }
    (meta / "info.json").write_text(json.dumps(info))
    return folder


def libero_hdf5(path, made, attributes=None):
    """One task; pictures as LIBERO's simulator draws them."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    if attributes is None:
        words = {"problem_name": "libero", "language_instruction": made[0]["instruction"]}
        attributes = {
            "problem_info": json.dumps(words),
            "env_args": json.dumps({"type": 1, "env_kwargs": {"control_freq": 20}}),
            "macros_image_convention": "opengl",
            "num_demos": len(made),
        }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        for number, episode in enumerate(made):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = episode["actions"].astype(np.float64)
            for camera, name in enumerate(("agentview_rgb", "eye_in_hand_rgb")):
                raw = episode["images"][:, camera, ::-1, ::-1]
                demo[f"obs/{name}"] = raw
            demo["obs/ee_states"] = episode["state"][:, :6].astype(np.float64)
            demo["obs/gripper_states"] = episode["state"][:, 6:].astype(np.float64)
    return path
