"""Which simulator was imported: where LIBERO, robosuite and MuJoCo lie, which they are.

Packages that replace LIBERO have its import name, and metadata says what was installed, not what is
found first.  So this looks at the modules themselves, and asks no package manager.
"""

from collections.abc import Iterable
import hashlib
import pathlib
from typing import Any

# Of hf-libero 0.1.4: what its tasks, goals and scenes are.
PINNED_NAME = "hf-libero 0.1.4"
PINNED = {
    "sha256_of_task_map": "e1d9939a263201bfc2f319155b8b93c08535c9923769b849714254fc1606f128",
    "sha256_of_tasks": "074abc65338f8ed795936ccae16eb32d8b05133fa4fbc5af56e98839db0ec464",
    "sha256_of_code": "647e123c6644e43a070256344d8a7fc23fcd162ebda5eaacb68140c2553abe5b",
}
TASK_MAP = "benchmark/libero_suite_task_map.py"
CODE = "envs/**/*.py"
TASKS = ("bddl_files/**/*.bddl", "init_files/**/*.pruned_init")


def imported() -> dict[str, dict[str, Any]]:
    """{libero | robosuite | mujoco: {"folder", "version", hashes}} of this process.

    version: of LIBERO, which has none of its own, that of the package whose files these are; None
    where they are another's.
    """
    import libero.libero
    import mujoco
    import robosuite

    hashes = of_libero(_folder(libero.libero))
    return {
        "libero": {
            "folder": str(_folder(libero.libero)),
            "version": PINNED_NAME if hashes == PINNED else None,
            "assets": libero.libero._assets_path_cache,
            **hashes,
        },
        "robosuite": {
            "folder": str(_folder(robosuite)),
            "version": robosuite.__version__,
            "sha256_of_code": _sha256(_folder(robosuite), ["**/*.py"]),
        },
        "mujoco": {"folder": str(_folder(mujoco)), "version": mujoco.mj_versionString()},
    }


def of_libero(folder: pathlib.Path) -> dict[str, str]:
    """Hashes of names and contents of the files in a package `libero.libero`."""
    return {
        "sha256_of_task_map": _sha256(folder, [TASK_MAP]),
        "sha256_of_tasks": _sha256(folder, TASKS),
        "sha256_of_code": _sha256(folder, [CODE]),
    }


def require_pinned(found: dict[str, dict[str, Any]]) -> None:
    """What was imported is the LIBERO that published numbers were measured on.

    Raises:
        ValueError: it is another one.
    """
    libero = found["libero"]
    other = [name.removeprefix("sha256_of_") for name, sha in PINNED.items() if libero[name] != sha]
    if other:
        raise ValueError(
            f"the LIBERO in {libero['folder']} is not {PINNED_NAME} (its"
            f" {', '.join(other).replace('_', ' ')} differ); remove it from PYTHONPATH and from the"
            " environment and run python -m pirl_jax.download simulators, or set env.libero=any"
        )


def without_folders(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same wherever it is installed."""
    places = ("folder", "assets")
    result = {}
    for name, about in found.items():
        result[name] = {key: value for key, value in about.items() if key not in places}
    return result


def _folder(module: Any) -> pathlib.Path:
    return pathlib.Path(module.__file__).parent


def _sha256(folder: pathlib.Path, patterns: Iterable[str]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
