"""What a checkpoint's own files say about how it sees and acts.

openpi and its converters write config.json, LeRobot the files of lerobot.py, a run of ours its
page.  Read without a guess: what a file does not say nobody learns here.  Knows no configuration
that this should agree with.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

from pirl_jax.core import outside
from pirl_jax.weights import lerobot, pickled, resolve

METADATA = "metadata.pt"  # of openpi's PyTorch trainer
MODES = {"MEAN_STD": "zscore", "QUANTILES": "quantile"}  # LeRobot's names -> ours
FAMILIES = {"pi0": False, "pi05": True}  # LeRobot's types -> model.pi05
# Key of a config.json -> our field of the model section.
OPENPI_KEYS = {
    "action_dim": ("action_dim", int),
    "action_horizon": ("action_horizon", int),
    "max_token_len": ("max_token_len", int),
    "pi05": ("pi05", bool),
    "discrete_state_input": ("discrete_state", bool),
}
LEROBOT_KEYS = {
    "chunk_size": ("action_horizon", int),
    "max_action_dim": ("action_dim", int),
    "tokenizer_max_length": ("max_token_len", int),
}
# Of a run of ours: with what its weights learned.
OUR_FIELDS = {
    "action_horizon": int,
    "norm_mode": str,
    "delta_actions": bool,
    "discrete_state": bool,
}
# LeRobot's steps that say something by being there.
STATE_IN_PROMPT = "pi05_prepare_state_tokenizer_processor_step"
TOKENIZER = "tokenizer_processor"
RELATIVE = "relative_actions_processor"
NORMALIZERS = ("normalizer_processor", "unnormalizer_processor")
NUM_CAMERAS = 2  # a view of the scene, then the wrist's
EMPTY = "empty_camera"  # LeRobot's cameras that are masked
OF_WRIST = ("wrist", "hand", "gripper")
REMEDY = "fetch the file again from where the checkpoint is from"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A file says what a field of the model section is."""

    field: str
    value: Any
    file: pathlib.Path
    key: str  # by which the file says so

    @property
    def source(self) -> str:
        """For a sentence."""
        return f"{self.key} of {self.file}"


@dataclasses.dataclass(frozen=True)
class Said:
    """By all files of a checkpoint."""

    maker: str  # whose layout it is
    claims: tuple[Claim, ...]
    notes: dict[str, Any]  # what no field of ours is, for the record


def read(place: resolve.Place) -> Said:
    """Everything that lies with a checkpoint.

    Raises: ValueError for a file that cannot be read, two files that contradict each other, and a
    way to normalise that we do not have.
    """
    if place.kind == "pirl":
        return Said("pirl_jax", tuple(_of_run(place)), {})
    if place.kind == "openpi_jax":
        return Said("openpi", (), {})
    maker = "RLinf" if _is_rlinfs(place) else "openpi"
    path = place.folder / lerobot.CONFIG
    fields = outside.read_json(path, remedy=REMEDY) if path.is_file() else {}
    if _is_lerobots(place.folder, fields):
        return _of_lerobot(place.folder, fields)
    claims = list(_by_keys(fields, OPENPI_KEYS, path))
    notes = {"precision": fields["precision"]} if fields.get("precision") else {}
    if (place.folder / METADATA).is_file():
        claims += _of_trainer(place.folder / METADATA, notes)
    return Said(maker, tuple(_consistent(claims)), notes)


def _of_trainer(path: pathlib.Path, notes: dict[str, Any]) -> list[Claim]:
    """openpi's PyTorch trainer keeps its whole configuration, by the fields of its classes."""
    try:
        tree = pickled.settings(path)
    except ValueError as error:
        # Nothing depends on it, and it may hold anything: what was not read is on the record.
        notes["unread"] = outside.shown(error)
        return []
    config = tree.get("config")
    config = config if isinstance(config, dict) else {}
    for name in ("name", "exp_name"):
        if isinstance(config.get(name), str):
            notes[name] = config[name]
    model = config.get("model")
    model = model if isinstance(model, dict) else {}
    claims = list(_by_keys(model, OPENPI_KEYS, path))
    data = config.get("data")
    if isinstance(data, dict) and isinstance(data.get("extra_delta_transform"), bool):
        value = data["extra_delta_transform"]
        claims.append(Claim("delta_actions", value, path, "data.extra_delta_transform"))
    if isinstance(model.get("pi05"), bool):
        # Its rule: quantiles for every family but pi0.
        mode = "quantile" if model["pi05"] else "zscore"
        claims.append(Claim("norm_mode", mode, path, "model.pi05"))
    return claims


def _is_rlinfs(place: resolve.Place) -> bool:
    """Its results have a name of their own; its SFT weights have statistics right beside them."""
    beside = any(place.folder.glob("*/*/norm_stats.json"))
    in_assets = (place.folder / "assets").is_dir()
    return place.weights.name == resolve.RLINF or (beside and not in_assets)


def _by_keys(fields: dict, keys: dict[str, tuple], path: pathlib.Path) -> Iterator[Claim]:
    for key, (field, kind) in keys.items():
        if fields.get(key) is not None:
            yield Claim(field, outside.part(fields, key, kind, path, REMEDY), path, key)


def _of_run(place: resolve.Place) -> Iterator[Claim]:
    path = (place.run or place.folder) / "config.json"
    if not path.is_file():
        return
    fields = outside.read_json(path, remedy=REMEDY)
    model = fields.get("model")
    if not isinstance(model, dict):
        return
    for field, kind in OUR_FIELDS.items():
        if field in model:
            value = outside.part(model, field, kind, path, REMEDY)
            yield Claim(field, value, path, f"model.{field}")


# ---- LeRobot -------------------------------------------------------------------------------------


def _is_lerobots(folder: pathlib.Path, fields: dict) -> bool:
    files = (lerobot.TRAIN_CONFIG, *lerobot.PROCESSORS)
    return "type" in fields or any((folder / name).is_file() for name in files)


def _of_lerobot(folder: pathlib.Path, fields: dict) -> Said:
    path = folder / lerobot.CONFIG
    claims = []
    kind = fields.get("type")
    if kind is not None:
        if kind not in FAMILIES:
            raise ValueError(
                f"type of {path} is {outside.shown(kind)}, a policy that is not known here; give a "
                f"checkpoint of {' or '.join(FAMILIES)}"
            )
        claims.append(Claim("pi05", FAMILIES[kind], path, "type"))
    claims += _by_keys(fields, LEROBOT_KEYS, path)
    claims += _image_size(fields, path)
    claims += _modes(fields, "normalization_mapping", path)
    claims += _action_dims(fields, path)
    claims += _of_steps(folder)
    claims += _of_training(folder)
    notes = {"action_steps": fields.get("n_action_steps"), "images": _images(fields, path)}
    return Said("LeRobot", tuple(_consistent(claims)), {k: v for k, v in notes.items() if v})


def _image_size(fields: dict, path: pathlib.Path) -> Iterator[Claim]:
    key = "image_resolution"
    if fields.get(key) is None:
        return
    sides = outside.part(fields, key, list, path, REMEDY)
    if len(set(map(str, sides))) != 1 or not outside.fits(sides[0], int):
        raise ValueError(
            f"{key} of {path} is {outside.shown(sides)}, and pictures are square here; give a "
            f"checkpoint of square pictures"
        )
    yield Claim("image_size_px", sides[0], path, key)


def _modes(fields: dict, key: str, path: pathlib.Path) -> Iterator[Claim]:
    """How state and actions are normalised, which is one way for both here."""
    if fields.get(key) is None:
        return
    modes = outside.part(fields, key, dict, path, REMEDY)
    for quantity in ("STATE", "ACTION"):
        mode = modes.get(quantity)
        if mode is None:
            continue
        name = f"{key}.{quantity}"
        if mode not in MODES:
            raise ValueError(
                f"{name} of {path} is {outside.shown(mode)}, a way to normalise that is not here "
                f"({' and '.join(MODES)} are); train the checkpoint with one of these"
            )
        yield Claim("norm_mode", MODES[mode], path, name)


def _action_dims(fields: dict, path: pathlib.Path) -> Iterator[Claim]:
    """Of the robot; a base model has those of the network, and no robot."""
    features = fields.get("output_features")
    action = features.get("action") if isinstance(features, dict) else None
    if not isinstance(action, dict):
        return
    shape = outside.part(action, "shape", list, f"output_features.action of {path}", REMEDY)
    if len(shape) == 1 and shape[0] != fields.get("max_action_dim"):
        yield Claim("action_env_dim", shape[0], path, "output_features.action.shape")


def _images(fields: dict, path: pathlib.Path) -> list[str]:
    """Names of the cameras in the order in which the network sees them.

    Raises: ValueError where that cannot be the order of ours.
    """
    features = fields.get("input_features")
    names = []
    for name, feature in (features if isinstance(features, dict) else {}).items():
        visual = isinstance(feature, dict) and feature.get("type") == "VISUAL"
        if visual and EMPTY not in name:
            names.append(name)
    if names and len(names) != NUM_CAMERAS:
        raise ValueError(
            f"input_features of {path} have {len(names)} cameras ({outside.listed(names)}), and "
            f"the simulators {NUM_CAMERAS}; give a checkpoint of {NUM_CAMERAS} cameras"
        )
    if names and _of_wrist(names[0]) and not _of_wrist(names[-1]):
        raise ValueError(
            f"input_features of {path} have {names[0]} before {names[-1]}, and the network sees "
            f"the scene before the wrist here; give a checkpoint of that order"
        )
    return names


def _of_wrist(name: str) -> bool:
    return any(word in name.lower() for word in OF_WRIST)


def _of_steps(folder: pathlib.Path) -> Iterator[Claim]:
    """What the steps of the processors do."""
    names = set()
    for path, step in lerobot.steps(folder):
        name = step.get("registry_name")
        names.add(name)
        settings = step.get("config")
        settings = settings if isinstance(settings, dict) else {}
        if name in NORMALIZERS:
            for claim in _modes(settings, "norm_map", path):
                yield dataclasses.replace(claim, key=f"{name}.{claim.key}")
        if name == TOKENIZER and settings.get("max_length") is not None:
            length = outside.part(settings, "max_length", int, f"{name} of {path}", REMEDY)
            yield Claim("max_token_len", length, path, f"{name}.max_length")
        if name == RELATIVE and settings.get("enabled"):
            raise ValueError(
                f"{name} of {path} is enabled: which dims it leaves alone is not known here; give "
                f"a checkpoint that was trained without it"
            )
    if TOKENIZER in names:
        path = folder / lerobot.PROCESSORS[0]
        in_prompt = STATE_IN_PROMPT in names
        yield Claim("discrete_state", in_prompt, path, f"steps ({STATE_IN_PROMPT})")
        # Without that step its actions are those of the data set.
        yield Claim("delta_actions", False, path, f"steps ({RELATIVE})")


def _of_training(folder: pathlib.Path) -> Iterator[Claim]:
    """train_config.json says again what config.json says."""
    path = folder / lerobot.TRAIN_CONFIG
    if not path.is_file():
        return
    fields = outside.read_json(path, remedy=REMEDY).get("policy")
    if not isinstance(fields, dict):
        return
    for claim in (
        *_by_keys(fields, LEROBOT_KEYS, path),
        *_modes(fields, "normalization_mapping", path),
    ):
        yield dataclasses.replace(claim, key=f"policy.{claim.key}")


def _consistent(claims: list[Claim]) -> list[Claim]:
    """One claim a field.

    Raises: ValueError where two files, or two keys, say different things.
    """
    first: dict[str, Claim] = {}
    for claim in claims:
        known = first.setdefault(claim.field, claim)
        if known.value != claim.value:
            raise ValueError(
                f"{known.source} says {known.field}={known.value} and {claim.source} says "
                f"{claim.value}; one of them is not of these weights: {REMEDY}"
            )
    return list(first.values())
