"""Reads damaged files of every kind by the thousand and says what became of them.

    python damaged_files.py FOLDER KIND,KIND,... COUNT SEED

Prints one JSON line per kind: how many were read, how many refused, and each case that ended
otherwise: with another exception, without the path, on several lines, after SECONDS or in too much
memory.
"""

import copy
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile

os.environ["JAX_PLATFORMS"] = "cpu"

import ml_dtypes
import numpy as np

from pirl_jax import compare
from pirl_jax.core import spec
from pirl_jax.models import heads, pi0, variants
from pirl_jax.monitor import journal, report, webpage
from pirl_jax.policy import normalize, tokenizer
from pirl_jax.rollout import stream
from pirl_jax.run import recipes, records, results, story
from pirl_jax.weights import pickled, safetensors, sources, targets

GOLDEN = pathlib.Path(__file__).parent / "golden"
SECONDS = 20  # of one case; milliseconds on an idle machine
MOST_GROWTH = 1 << 30  # bytes of address space above what the imports took
LONGEST = 2000  # characters of a sentence


# ---- damage ----------------------------------------------------------------------------------

# What pirl compare reads of a run's model.
MODEL = {
    "pi05": False,
    "checkpoint": "",
    "noise_method": "flow_noise",
    "noise_level": 0.5,
    "noise_anneal": False,
    "noise_logvar_range": [0.2, 0.6],
    "noise_steps": "one",
    "joint_logprob": False,
    "num_steps": 4,
}


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Flipped, cut, longer, or with a part of it elsewhere."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 3, 8))):
        at = draw.randrange(len(data) + 1)
        other = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = draw.randbytes(draw.choice((1, 2, 8)))
        elif kind == 2:
            data[at:at] = data[other : other + draw.choice((1, 8, 64))]
        elif kind == 3:
            del data[at : at + draw.choice((1, 2, 8))]
        elif at < len(data):
            data[at] = draw.choice((data[at] ^ (1 << draw.randrange(8)), 0, 0xFF, 0x7F, 0x80))
    return bytes(data)


VALUES = (
    None,
    True,
    0,
    -1,
    7,
    2**31,
    2**40,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "F32",
    "../x.safetensors",
    "/etc/passwd",
    "a\nb\x1b[31m",
    "\ud800",
    "y" * 10_000,
    [],
    {},
    [0] * 40,
    [[1]],
    [2**40] * 8,
    [0, 2**62],
    [float("nan")] * 8,
    {"a": {"a": {}}},
)


def damaged_json(draw: random.Random, data: bytes) -> bytes:
    """A value replaced, a name gone, doubled or moved, nests without end; or its bytes damaged."""
    if draw.random() < 0.3:
        return damaged(draw, data)
    tree = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        holder = _holder(draw, tree)
        if holder is None:
            continue
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = draw.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("", "x", "../y", "mean", "dtype", "\x00"))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    text = json.dumps(tree)
    if draw.random() < 0.1:
        at = text.find("{", draw.randrange(len(text)))
        text = (
            text[: at + 1]
            + draw.choice(('"a": 1, "a": 2, ', '"x": ' + "[" * 10**5))
            + text[at + 1 :]
        )
    return text.encode("utf-8", "surrogatepass")


def _holder(draw, tree):
    """Some object or list of the tree that holds something."""
    found = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list) and node:
            found.append(node)
            waiting += node.values() if isinstance(node, dict) else node
    return draw.choice(found) if found else None


# ---- kinds: an honest file; a damaged one in its place; what reads it ------------------------


class Safetensors:
    def __init__(self):
        arrays = {
            "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
            "nothing": np.zeros((0, 4), np.float16),
            "flags": np.array([True, False]),
            "count": np.array(7, np.int64),
        }
        path = pathlib.Path("honest.safetensors")
        layout = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        safetensors.write(path, layout, iter(arrays.values()), {"format": "pt"})
        self.honest = path.read_bytes()

    def damage(self, draw):
        if draw.random() < 0.4:
            return damaged(draw, self.honest)
        (length,) = struct.unpack("<Q", self.honest[:8])
        header = damaged_json(draw, self.honest[8 : 8 + length])
        return struct.pack("<Q", len(header)) + header + self.honest[8 + length :]

    def place(self, folder, data):
        (folder / "model.safetensors").write_bytes(data)
        return folder / "model.safetensors"

    def read(self, path):
        for tensor in safetensors.read_folder(path.parent).values():
            use(tensor)


class Index(Safetensors):
    def damage(self, draw):
        names = ("matrix", "nothing", "flags", "count")
        honest = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        return damaged_json(draw, json.dumps(honest).encode())

    def place(self, folder, data):
        (folder / "model-1.safetensors").write_bytes(self.honest)
        (folder / "model.safetensors.index.json").write_bytes(data)
        return folder / "model.safetensors.index.json"


class Network(Safetensors):
    """A whole pi0 whose file is in order, with tensors of other shapes, types and names."""

    def __init__(self):
        cfg = variants.pi0_config("tiny")
        arrays = {}
        for path, leaf in spec.flatten(pi0.specs(cfg) | heads.value_specs(32, (7,))).items():
            arrays[path] = np.zeros(leaf.shape, ml_dtypes.bfloat16)
        source = sources.Source(
            "memory",
            pathlib.Path("memory"),
            {path: x.shape for path, x in arrays.items()},
            {path: x.dtype for path, x in arrays.items()},
            lambda path, dtype: arrays[path],
            {},
            cfg,
        )
        targets.write_openpi_torch(pathlib.Path("network"), source, heads=True)
        self.honest = pathlib.Path("network", "model.safetensors").read_bytes()

    def damage(self, draw):
        (length,) = struct.unpack("<Q", self.honest[:8])
        header = json.loads(self.honest[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
        # Those of the first layer and outside of layers tell the sizes.
        telling = [name for name in names if "layers." not in name or "layers.0." in name]
        for _ in range(draw.choice((1, 1, 2, 5))):
            name = draw.choice(telling)
            if name in header:
                self.change(draw, header, name)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.honest[8 + length :]

    def change(self, draw, header, name):
        entry = header[name]
        count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
        kind = draw.randrange(5)
        if kind == 0:
            shapes = ([count], [1, count], [count, 1, 1], entry["shape"][::-1], [1] * 9 + [count])
            entry["shape"] = draw.choice(shapes)
        elif kind == 1:
            entry["dtype"] = draw.choice(("F16", "I16"))
        elif kind == 2:
            entry |= {"dtype": "U8", "shape": [count, 2]}
        else:
            other = draw.choice(list(header))
            renamed = draw.choice(
                ("x", name.replace(".0.", ".7."), "value_head.weight", f"{other}.0")
            )
            header[renamed] = header.pop(name)

    def place(self, folder, data):
        (folder / "model.safetensors").write_bytes(data)
        return folder

    def read(self, path):
        opened = sources.open_source(path)
        for name in opened.shapes:
            opened.read(name)


class Pickled:
    """Bytes of the archive, its description with a checksum that fits, and its directory."""

    def __init__(self):
        self.honest = (GOLDEN / "torch_state_dict.pt").read_bytes()
        with zipfile.ZipFile(io.BytesIO(self.honest)) as archive:
            self.members = {info.filename: archive.read(info) for info in archive.infolist()}

    def damage(self, draw):
        kind = draw.random()
        if kind < 0.3:
            return damaged(draw, self.honest)
        if kind < 0.4:
            at = self.honest.index(b"PK\1\2")  # the directory
            return self.honest[:at] + damaged(draw, self.honest[at:])
        members = dict(self.members)
        name = next(name for name in members if name.endswith("/data.pkl"))
        members[name] = self.opcodes(draw, members[name])
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return content.getvalue()

    def opcodes(self, draw, data):
        if draw.random() < 0.5:
            return damaged(draw, data)
        at = draw.randrange(2, len(data))
        inserted = draw.choice(
            (
                b"r\xff\xff\xff\x7f",  # a memo of 2**31 places
                b"j\xff\xff\xff\xff",
                b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # BINBYTES8
                b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",  # BYTEARRAY8
                b"\x8b\xff\xff\xff\x7f",  # LONG4
                b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",  # FRAME
                b"J\xff\xff\xff\x7f",
                b"\x8a\xff" + b"\x7f" * 255,  # LONG1
                b"(" * 50_000,
                b")" + b"\x85" * 50_000,
                b"}\x94" * 10_000,
                b"]2a" * 1000,
                b"}(K\x01K\x02u",
                b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
                b"cbuiltins\neval\n",
                b"cnumpy\nndarray\n",
                b"ccollections\nOrderedDict\n)R}b",
                b"\x81",
                b"b",
                b"R",
                b"Q",
                b"0",
                b"s",
                b"u",
                b".",
            )
        )
        return data[:at] + inserted + data[at + draw.choice((0, 0, 1, 5)) :]

    def place(self, folder, data):
        (folder / "full_weights.pt").write_bytes(data)
        return folder / "full_weights.pt"

    def read(self, path):
        for tensor in pickled.read(path).values():
            use(tensor)


class Statistics:
    def __init__(self):
        self.honest = (GOLDEN / "openpi" / "norm_stats.json").read_bytes()

    def damage(self, draw):
        return damaged_json(draw, self.honest)

    def place(self, folder, data):
        (folder / "norm_stats.json").write_bytes(data)
        return folder / "norm_stats.json"

    def read(self, path):
        stats = normalize.load(path)
        normalize.normalize(np.zeros(4), stats.state, "zscore")
        if stats.actions.q01 is not None and stats.actions.q99 is not None:
            normalize.unnormalize(np.zeros(4), stats.actions, "quantile")


class Tokenizer:
    def __init__(self):
        self.honest = (GOLDEN / "openpi" / "tiny_spm.model").read_bytes()

    def damage(self, draw):
        return damaged(draw, self.honest)

    def place(self, folder, data):
        (folder / "tokenizer.model").write_bytes(data)
        return folder / "tokenizer.model"

    def read(self, path):
        tokens = tokenizer.SentencePieceTokenizer(path)
        ids = tokenizer.prompt_ids(tokens, "pick up the \N{GRINNING FACE} bowl", np.zeros(8))
        assert all(0 <= token < tokens.vocab_size for token in ids), "ids beyond the vocabulary"


class Configuration:
    def __init__(self):
        page = recipes.load_recipe("quickstart")
        self.honest = json.dumps(page.to_dict()).encode()

    def damage(self, draw):
        return damaged_json(draw, self.honest)

    def place(self, folder, data):
        (folder / "config.json").write_bytes(data)
        return folder / "config.json"

    def read(self, path):
        recipes.load_run(path.parent)


def evaluation() -> dict:
    """An honest evaluation.json."""
    tasks = ("reach", "lift")
    per_task = []
    episodes = []
    for number, name in enumerate(tasks):
        row = {"task": number, "instruction": name, "episodes": 2, "successes": 1, "lost": 0}
        per_task.append(row)
        for start in (0, 1):
            result = stream.Result(stream.Episode(number, start), start == 0, 0.5, 30, 6)
            episodes.append(results.row(result))
    return {
        "policy": {"name": "after", "iteration": 2},
        "protocol": {"suite": "tabletop", "max_episode_steps": 50},
        "table": report.success_table({"PPO": dict.fromkeys(tasks, (1, 2))}),
        "per_task": per_task,
        "episodes": episodes,
        "lost_episodes": [{"task": 0, "init_state": 7}],
        "environment": {"python": "3.11", "packages": {"jax": "0.10"}},
    }


def page_of(folder: pathlib.Path) -> None:
    """What pirl report would write."""
    webpage.render(story.told([records.read(folder)]))


class Evaluation:
    def __init__(self):
        self.honest = json.dumps(evaluation()).encode()

    def damage(self, draw):
        return damaged_json(draw, self.honest)

    def place(self, folder, data):
        (folder / "evaluation.json").write_bytes(data)
        return folder / "evaluation.json"

    def read(self, path):
        counts = results.read_successes(path.parent)
        if counts:
            report.success_table({"x": counts})
        report.interval_text(compare._total(path.parent))
        page_of(path.parent)


class Run:
    """The files of a run that `compare` and `report` read, one of them damaged."""

    def __init__(self):
        config = {
            "seed": 0,
            "num_iterations": 4,
            "env": {"suite": "tabletop", "tasks": [0]},
            "rollout": {},
            "algorithm": {"adv_type": "gae"},
            "model": MODEL,
        }
        start = dict.fromkeys(compare.MACHINE, "x") | {"command": ["train", "--config", "x"]}
        row = {"iteration": 0, "env/success_once": 0.5, "env/num_trajectories": 8.0}
        self.files = {
            "config.json": config,
            "environment.json": [start],
            "evaluation/before/evaluation.json": evaluation(),
            "evaluation/after/evaluation.json": evaluation(),
        }
        self.metrics = json.dumps(row | {"time/iteration": 1.5}) + "\n"

    def damage(self, draw):
        name = draw.choice([*self.files, "metrics.jsonl"])
        if name == "metrics.jsonl":
            return name, damaged_json(draw, self.metrics.encode()) + b"\n"
        return name, damaged_json(draw, json.dumps(self.files[name]).encode())

    def place(self, folder, data):
        for name, tree in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(tree))
        (folder / "metrics.jsonl").write_text(self.metrics)
        name, content = data
        (folder / name).write_bytes(content)
        return folder / name

    def read(self, path):
        run = path.parent
        while not (run / "metrics.jsonl").exists():
            run = run.parent
        compare.as_text([compare.summary(run)])
        page_of(run)


class Episodes:
    """What an interrupted evaluation left."""

    def __init__(self):
        self.episodes = [stream.Episode(task, 7) for task in range(3)]
        rows = [results.row(stream.Result(episode, True, 1.0, 30, 6)) for episode in self.episodes]
        self.header = {"policy": {"name": "x"}, "protocol": {"tasks": [0, 1]}}
        self.honest = [json.dumps(row).encode() for row in (self.header, *rows)]

    def damage(self, draw):
        lines = list(self.honest)
        which = draw.randrange(len(lines))
        lines[which] = damaged_json(draw, lines[which])
        return b"\n".join(lines) + b"\n"

    def place(self, folder, data):
        (folder / "episodes.jsonl").write_bytes(data)
        return folder  # of another evaluation's the folder is named

    def read(self, path):
        with journal.Journal(path / "episodes.jsonl", self.header) as notes:
            results.finished(notes.rows, self.episodes, notes.path)


class Orbax:
    """A checkpoint of openpi's JAX trainer, one file of it damaged."""

    source = GOLDEN / "openpi" / "orbax_pi0_tiny" / "pure_bfloat16"

    def __init__(self):
        self.files = [path for path in self.source.rglob("*") if path.is_file()]
        opened = sources.open_source(self.source)
        self.shapes = opened.shapes
        opened.read("action_in_proj/bias")  # starts orbax, outside of what is timed

    def damage(self, draw):
        path = draw.choice(self.files)
        return path.relative_to(self.source), damaged(draw, path.read_bytes())

    def place(self, folder, data):
        shutil.copytree(self.source, folder, dirs_exist_ok=True)
        name, content = data
        (folder / name).write_bytes(content)
        return folder

    def read(self, path):
        opened = sources.open_source(path)
        assert opened.shapes == self.shapes, "other arrays"
        for name in opened.shapes:
            opened.read(name)


def use(tensor):
    """Every element, and its type as numpy sees it."""
    if tensor.dtype.kind != "V":
        tensor.sum()
    tensor.tolist() if tensor.size < 100 else None


KINDS = {
    "safetensors": Safetensors,
    "index": Index,
    "network": Network,
    "pt": Pickled,
    "statistics": Statistics,
    "tokenizer": Tokenizer,
    "configuration": Configuration,
    "evaluation": Evaluation,
    "run": Run,
    "episodes": Episodes,
    "orbax": Orbax,
}


# ---- the process -----------------------------------------------------------------------------


class TooLate(BaseException):
    """No Exception, so that no reader takes it for one of its own."""


def _too_late(signal_number, frame):
    raise TooLate(f"not within {SECONDS} s")


def _limit_memory():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def outcome(kind, path) -> str:
    """ "read", "refused", or what is wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.read(path)
    except ValueError as error:
        text = str(error)
        if str(path) not in text:
            return f"no path: {text[:200]!r}"
        if "\n" in text or not text.isprintable() or len(text) > LONGEST:
            return f"no sentence: {text[:200]!r}"
        return "refused"
    except (Exception, TooLate) as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def main(folder: str, name: str, count: int, seed: int) -> dict:
    os.chdir(folder)
    signal.signal(signal.SIGALRM, _too_late)
    kind = KINDS[name]()
    told = {"read": 0, "refused": 0, "wrong": {}}
    _limit_memory()
    start_s = time.monotonic()
    for k in range(count):
        # By case, so that one can be repeated alone.
        draw = random.Random(f"{name} {seed} {k}")
        place = pathlib.Path(folder, "case")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        pathlib.Path("last_case").write_text(f"{name} {seed} {k}")  # if the process dies
        found = outcome(kind, kind.place(place, kind.damage(draw)))
        if found in told:
            told[found] += 1
        else:
            told["wrong"][k] = found
    return told | {"seconds": round(time.monotonic() - start_s, 1)}


if __name__ == "__main__":
    folder, names, count, seed = sys.argv[1:]
    for name in names.split(","):
        print(json.dumps({name: main(folder, name, int(count), int(seed))}), flush=True)
