"""Where the parts of a checkpoint lie: one answer for every command.

A checkpoint is a file with weights, a folder with one set of them, or the folder of an experiment,
whose newest step it then is.  What leaves a choice is refused, with the candidates.  Goes by the
names of files; refuses to know what is in them, but for what an index of shards names.
"""

from collections.abc import Iterable
import dataclasses
import pathlib
import re

from pirl_jax.core import outside

# How the names of PEFT's files begin.
PEFT = ("adapter_model.", "adapter_config.json")
SAFETENSORS = ".safetensors"
PICKLED = (".pt", ".pth", ".bin", ".ckpt")  # PyTorch's archives
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ORBAX = {"state": "pirl", "params": "openpi_jax"}  # folder of the arrays -> whose
RLINF = "full_weights.pt"
# As RLinf's trainer leaves its weights, from the inside to the outside.
RLINF_FOLDERS = ("", "model_state_dict", "actor/model_state_dict")
LEROBOT = "pretrained_model"  # the folder of the policy in each of LeRobot's steps
STEPS_IN = "checkpoints"  # a folder of steps
LAST = "last"  # LeRobot's link to the step that it wrote last
# openpi and ours number their steps, LeRobot fills up with zeros, RLinf and transformers name them.
STEP = re.compile(r"(?:global_step_|checkpoint-)?([0-9]{1,18})")
# PyTorch's own tool.
_DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
# Pattern of a file in a folder of shards that PyTorch alone can join -> what joins them.
SHARDED = {
    "*.distcp": f"{_DCP} {{}} full_weights.pt",
    "zero_to_fp32.py": "python {}/zero_to_fp32.py {} FOLDER --safe_serialization",
}
# Where such folders lie in a checkpoint: RLinf's, accelerate's.
SHARDED_FOLDERS = ("", "dcp_checkpoint", "actor/dcp_checkpoint", "pytorch_model_fsdp_0")


@dataclasses.dataclass(frozen=True)
class Place:
    """A checkpoint whose weights nobody has opened yet."""

    kind: str  # key of sources.OPENERS
    weights: pathlib.Path  # file or folder that holds the arrays
    folder: pathlib.Path  # where its other files lie
    step: int | None  # that its folder is named by

    @property
    def run(self) -> pathlib.Path | None:
        """The directory of the run, of a checkpoint of ours in one."""
        if self.kind == "pirl" and self.folder.parent.name == STEPS_IN:
            return self.folder.parents[1]
        return None


def find(path: pathlib.Path, iteration: int = -1) -> Place:
    """The checkpoint at a path.

    iteration: which step of an experiment, -1: the newest.
    Raises: ValueError where there is none, or more than one that it could be.
    """
    path = path.absolute()
    if not path.exists():
        raise ValueError(_nothing_at(path))
    _refuse_peft(path)
    if path.is_file():
        return _require_step(_of_file(path), path, iteration)
    place = _in_folder(path)
    if place is not None:
        return _require_step(place, path, iteration)
    steps = _all_steps(path)
    if steps:
        return _of_step(path, steps, iteration)
    _refuse_sharded(path)
    raise ValueError(_nothing_known(path))


def number(name: str) -> int | None:
    """Which step a folder of that name is; None: it is no step's."""
    match = STEP.fullmatch(name)
    return int(match[1]) if match else None


def holds_weights(folder: pathlib.Path) -> bool:
    """Whether a set of weights lies right in a folder."""
    return bool(_sets(folder))


# ---- one folder ----------------------------------------------------------------------------------


def _of_file(path: pathlib.Path) -> Place:
    """Whoever names a file means that file, whatever lies beside it."""
    kinds = {SAFETENSORS: "safetensors"} | dict.fromkeys(PICKLED, "pt")
    kind = "safetensors" if path.name == INDEX else kinds.get(path.suffix)
    if kind is None:
        raise ValueError(
            f"{path} is no file of weights that is known: neither {SAFETENSORS}, its index "
            f"({INDEX}), nor {', '.join(PICKLED)}; give such a file, or the folder of a checkpoint"
        )
    return Place(kind, path, path.parent, _step_of(path.parent))


def _step_of(folder: pathlib.Path) -> int | None:
    """By the nearest folder that is named as one; LeRobot's and RLinf's lie deeper."""
    inner = (LEROBOT, "model_state_dict", "actor", "params", "state")
    while folder.name in inner:
        folder = folder.parent
    if folder.name == LAST:
        folder = folder.resolve()
    return number(folder.name)


def _in_folder(path: pathlib.Path) -> Place | None:
    """The one set of weights that lies in a folder or in LeRobot's folder there; None: none."""
    for folder in (path, path / LEROBOT):
        sets = _sets(folder)
        if len(sets) > 1:
            choices = " or ".join(str(weights) for _, weights in sets)
            raise ValueError(
                f"{folder} holds {len(sets)} sets of weights and nothing says which one is meant: "
                f"give {choices} instead of the folder, or move the others away"
            )
        for kind, weights in sets:
            # A folder of shards without an index has no file that stands for all of them.
            held = weights if kind != "safetensors" else folder
            return Place(kind, held, weights.parent, _step_of(weights.parent))
    return None


def _sets(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Every set of weights right in a folder -> (kind, what to give for it)."""
    found = []
    for name, kind in ORBAX.items():
        if (folder / name / "_METADATA").is_file():
            found.append((kind, folder / name))
    # Or the folder of the arrays itself.
    kind = ORBAX.get(folder.name)
    if kind is not None and (folder / "_METADATA").is_file():
        found.append((kind, folder))
    found += [("safetensors", path) for path in _safetensors(folder)]
    for inner in RLINF_FOLDERS:
        if (folder / inner / RLINF).is_file():
            found.append(("pt", folder / inner / RLINF))
    return found


def _safetensors(folder: pathlib.Path) -> list[pathlib.Path]:
    """model.safetensors; an index; the first of shards without one."""
    whole = folder / WHOLE
    index = folder / INDEX
    shards = sorted(path for path in folder.glob("model*.safetensors") if path != whole)
    found = [whole] if whole.is_file() else []
    if index.is_file():
        if not found or _names_others(index):
            found.append(index)
    elif shards:
        # One set without a file of its own: beside a whole file it can only be moved away.
        found.append(folder / "model-*.safetensors" if found else shards[0])
    return found


def _names_others(index: pathlib.Path) -> bool:
    """Whether an index places tensors in other files than model.safetensors."""
    shard_of = outside.part(outside.read_json(index), "weight_map", dict, index)
    return any(file != WHOLE for file in shard_of.values())


def _refuse_peft(path: pathlib.Path) -> None:
    folder = path if path.is_dir() else path.parent
    beside = [child.name for child in folder.glob("adapter_*")]
    if any(name.startswith(PEFT) for name in (path.name, *beside)):
        raise ValueError(
            f"{path} holds adapters of PEFT, without which the weights beside them are another "
            f"policy; load base and adapters with PEFT, call merge_and_unload, save the result as "
            f"model.safetensors and give its folder"
        )


def _refuse_sharded(path: pathlib.Path) -> None:
    """Shards of FSDP or DeepSpeed alone."""
    for inner in (*SHARDED_FOLDERS, f"{LEROBOT}/pytorch_model_fsdp_0"):
        folder = path / inner
        for pattern, tool in SHARDED.items():
            if any(folder.glob(pattern)):
                raise ValueError(
                    f"{folder} holds the shards of a distributed trainer ({pattern}), which only "
                    f"PyTorch joins; run: {tool.format(folder, folder)} and give what it writes"
                )


# ---- steps ---------------------------------------------------------------------------------------


def _steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The folders of a folder that are named as steps.

    Raises: ValueError for two names of one number.
    """
    found = {}
    for child in sorted(folder.glob("*")):
        step = number(child.name)
        if step is None or not child.is_dir():
            continue
        if step in found:
            raise ValueError(
                f"{folder} has two folders of step {step}: give {found[step]} or {child}"
            )
        found[step] = child
    return found


def _all_steps(path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Of an experiment, in its folder or in `checkpoints` there."""
    own = _steps(path)
    below = _steps(path / STEPS_IN)
    if own and below:
        raise ValueError(
            f"{path} has steps ({_listed(own)}) and {path / STEPS_IN} has others "
            f"({_listed(below)}); give one of these folders of steps"
        )
    return own or below


def _of_step(path: pathlib.Path, steps: dict[int, pathlib.Path], iteration: int) -> Place:
    """The step that was asked for, or the newest."""
    if iteration >= 0 and iteration not in steps:
        raise ValueError(
            f"{path} holds no checkpoint of iteration {iteration}; it holds {sorted(steps)}"
        )
    wanted = max(steps) if iteration < 0 else iteration
    folder = steps[wanted]
    last = folder.parent / LAST
    if iteration < 0 and last.is_dir() and last.resolve() != folder.resolve():
        raise ValueError(
            f"{folder.parent} has {LAST}, which is {last.resolve().name}, and the newer step "
            f"{folder.name}; give {last} or {folder}"
        )
    place = _in_folder(folder)
    if place is not None:
        return place
    _refuse_sharded(folder)
    whole = [steps[step] for step in sorted(steps) if _in_folder(steps[step]) is not None]
    if not whole:
        raise ValueError(_nothing_known(path))
    raise ValueError(
        f"{folder} holds no weights that are known, and the newest step that does is "
        f"{whole[-1].name}; give {whole[-1]}"
    )


def _require_step(place: Place, path: pathlib.Path, iteration: int) -> Place:
    """Of one checkpoint there is nothing to choose."""
    if iteration >= 0 and iteration != place.step:
        what = f"step {place.step}" if place.step is not None else "one checkpoint"
        raise ValueError(f"{path} is {what}, not iteration {iteration}; leave --iteration out")
    return place


def _listed(steps: Iterable[int]) -> str:
    return outside.listed(str(step) for step in sorted(steps))


# ---- nothing -------------------------------------------------------------------------------------


def _nothing_at(path: pathlib.Path) -> str:
    step = number(path.name)
    steps = _steps(path.parent) if path.parent.is_dir() else {}
    if steps and step is not None:
        return f"{path.parent} holds no checkpoint of iteration {step}; it holds {sorted(steps)}"
    return (
        f"there is no checkpoint at {path}; "
        f"give a run directory, or a checkpoint of openpi, RLinf or LeRobot"
    )


def _nothing_known(path: pathlib.Path) -> str:
    files = []
    for suffix in (SAFETENSORS, *PICKLED):
        files += sorted(child.name for child in path.glob(f"*{suffix}"))
    hint = f"; if {outside.listed(files)} is meant, give the file itself" if files else ""
    return (
        f"{path} holds no checkpoint that is known: neither checkpoints/N/state (a run of ours), "
        f"params/_METADATA (openpi's JAX trainer), model.safetensors or its index (openpi, RLinf, "
        f"LeRobot), nor full_weights.pt (RLinf), in it or in a folder of a step{hint}"
    )
