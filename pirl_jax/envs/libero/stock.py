"""LIBERO's and robosuite's own code: imported without side effects, and changed where we must.

Their import asks a question on stdin, downloads assets and writes log files; nothing here lets it.
Knows no episodes; `simulator.py` plays them.
"""

import functools
import hashlib
import importlib.util
import os
import pathlib
import sys
import types
from typing import Any

import numpy as np

from pirl_jax.envs import caches
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import files, kinds, meshes, plus_assets, textures

# Of the model; a reset moves fixtures and hides sites.
RESET_FIELDS = ("body_pos", "body_quat", "site_rgba")


def import_libero(
    assets: pathlib.Path, plus_folder: pathlib.Path | None = None
) -> tuple[type, type[Exception]]:
    """Import LIBERO: it uses these assets, asks nothing, downloads nothing and writes no log.

    `plus_folder` has LIBERO-Plus's own.
    Returns its simulator class and the exception of a failed draw of poses.

    Raises:
        ValueError: robosuite or LIBERO is not installed, or nothing here can render.
    """
    backends.require(backends.wanted())
    if "robosuite" not in sys.modules:
        _silence_robosuite()
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder(assets))
    import libero.libero

    # else it downloads; it ignores its config file's entry
    libero.libero._assets_path_cache = str(assets)
    from libero.libero.envs import OffScreenRenderEnv
    from robosuite.utils.errors import RandomizationError

    kinds.register(plus_folder)
    return OffScreenRenderEnv, RandomizationError


def _silence_robosuite() -> None:
    """Before robosuite's first import.

    No log file in /tmp, which another user may own, and no warning about macros.
    """
    outer = importlib.util.find_spec("robosuite")
    if outer is None:
        raise ValueError(f"robosuite is not installed; run: {files.INSTALL_SIMULATORS}")
    path = pathlib.Path(outer.submodule_search_locations[0], "macros.py")
    macros = files.run_file(path, "robosuite.macros")
    macros.FILE_LOGGING_LEVEL = None
    sys.modules["robosuite.macros"] = macros
    sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
    import robosuite

    robosuite.macros = macros  # a module that is already loaded is not bound to its package


def _config_folder(assets: pathlib.Path) -> pathlib.Path:
    """A folder of ours with LIBERO's config.yaml.

    Named by its content: workers that start at once write the same.
    """
    root = files.package()
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": assets,
    }
    text = "".join(f'{key}: "{path}"\n' for key, path in paths.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = caches.folder(f"libero-{digest}")
    if not (folder / "config.yaml").exists():
        files.write_whole(folder / "config.yaml", text.encode())
    return folder


def build_task(
    bddl: pathlib.Path,
    light: bool,
    scene: plus_assets.Scene | None = None,
    plus_folder: pathlib.Path | None = None,
) -> Any:
    """LIBERO's environment of the task in a BDDL file, without cameras; `import_libero` first.

    `light` gives it lighter visual meshes; `scene` is one of LIBERO-Plus's, out of `plus_folder`.
    Draws poses from numpy's global generator.
    """
    from libero.libero.envs import bddl_utils
    import robosuite

    path = str(bddl)
    if scene is None:
        problem_name = bddl_utils.get_problem_info(path)["problem_name"]
        chosen = {}
    else:
        problem_name = scene.problem
        chosen = _chosen_scene(scene, plus_folder)
    task_env = _task_class(problem_name, light)(
        path,
        robots=["Panda"],
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        initialization_noise=None,
        use_camera_obs=False,
        has_offscreen_renderer=False,
        control_freq=20,
        hard_reset=False,  # a hard reset compiles the model again: seconds, and leaked memory
        ignore_done=True,  # the time limit is ours
        **chosen,
    )
    task_env.check_contact = _ContactCheck(task_env)
    return task_env


def _chosen_scene(scene: plus_assets.Scene, folder: pathlib.Path) -> dict[str, Any]:
    """Arguments of LIBERO's environments that put a scene in place of their own."""
    from libero.libero.envs.arenas import style

    # LIBERO wants a name for each picture.
    style.STYLE_MAPPING["floor"][scene.floor] = scene.floor
    style.STYLE_MAPPING["wall"][scene.wall] = scene.wall
    properties = {"floor_style": scene.floor, "wall_style": scene.wall}
    return {"scene_xml": str(folder / scene.xml), "scene_properties": properties}


@functools.cache
def _task_class(problem_name: str, light: bool) -> type:
    """LIBERO's class for this kind of scene.

    Its model is compiled by us, and what it held before a reset is kept.
    """
    from libero.libero.envs import bddl_base_domain
    from robosuite.utils import binding_utils

    problem = bddl_base_domain.TASK_MAPPING[problem_name]

    class Task(problem):
        def _assert_problem_name(self) -> None:
            # The file may have another: a scene of LIBERO-Plus.
            self.parsed_problem["problem_name"] = problem_name

        def _initialize_sim(self, xml_string: str | None = None) -> None:
            xml = self.model.get_xml()
            if light:
                xml = textures.shrink(meshes.lighten(xml))
            self.sim = binding_utils.MjSim(meshes.compile_model(xml))
            self.sim.forward()
            self.initialize_time(self.control_freq)
            self.compiled = tuple(getattr(self.sim.model, name).copy() for name in RESET_FIELDS)

    return Task


class _ContactCheck:
    """`task_env.check_contact` of two models in one numpy expression.

    LIBERO's predicates spend their time in it.
    """

    def __init__(self, task_env: Any):
        self._sim = task_env.sim
        self._stock = task_env.check_contact
        self._members = {}  # model -> its geoms

    def __call__(self, model: Any, other: Any = None) -> bool:
        """Whether two of robosuite's models touch; whatever else is asked is stock's business."""
        if not (hasattr(model, "contact_geoms") and hasattr(other, "contact_geoms")):
            return self._stock(model, other)
        ours = self._geoms(model)
        theirs = self._geoms(other)
        first, second = self._sim.data._data.contact.geom.T  # of every contact
        either = ours[first] & theirs[second] | theirs[first] & ours[second]
        return bool(np.any(either))

    def _geoms(self, model: Any) -> np.ndarray:
        """[geoms] bool: those that count as this model's contacts."""
        if model not in self._members:
            ids = [self._sim.model.geom_name2id(name) for name in model.contact_geoms]
            geoms = np.zeros(self._sim.model.ngeom, bool)
            geoms[ids] = True
            self._members[model] = geoms
        return self._members[model]
