"""Download ahead of time what programs would otherwise fetch at first use, and verify that it is complete.

    python -m pirl_jax.download assets [--to DIR]     LIBERO's meshes, textures and scenes

An interrupted download continues where it stopped.  HF_ENDPOINT names another server, HF_HUB_OFFLINE=1 none.
Needs huggingface_hub; training and evaluation do not.
"""

import argparse
import os
import pathlib
import sys

from pirl_jax import command
from pirl_jax.envs import libero_assets, libero_files

# Where hf-libero 0.1.4 itself downloads from (its utils/download_utils.py), at the newest revision.
ASSETS = {"repo_id": "lerobot/libero-assets", "repo_type": "dataset"}
SHOWN = 5  # missing files named in an error


def assets(folder: pathlib.Path | None) -> str:
    """Fetch and verify LIBERO's assets; returns what to tell the user."""
    found = pathlib.Path(os.environ.get(libero_files.ASSETS_VARIABLE) or libero_files.downloaded_assets())
    folder = (folder or found).expanduser().absolute()
    if libero_assets.missing(folder):
        snapshot(ASSETS, folder, f"copy LIBERO's assets to {folder} by hand, or set env.assets to a folder that holds them")
    absent = libero_assets.missing(folder)
    if absent:
        shown = ", ".join(absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        raise ValueError(f"{len(absent)} asset files are missing in {folder} ({shown}); run the same command again")
    where = "which is found without further settings" if folder == found.absolute() else (
        f"give it as --config.env.assets={folder} or set {libero_files.ASSETS_VARIABLE}"
    )
    return f"LIBERO's assets are complete in {folder}; {where}"


def snapshot(source: dict, folder: pathlib.Path, otherwise: str) -> None:
    """Copy a hub repository into a folder; files that are there are kept.  `otherwise`: what to do without the hub."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise ValueError(f"huggingface_hub is not installed; run: pip install huggingface_hub; or {otherwise}") from error
    try:
        huggingface_hub.snapshot_download(**source, local_dir=folder)
    except Exception as error:  # its own errors, its HTTP library's and the system's have no base class in common
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"downloading {source['repo_id']} from {huggingface_hub.constants.ENDPOINT} failed ({cause}); run it again to continue, or {otherwise}") from error


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m pirl_jax.download", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--to", type=pathlib.Path, metavar="DIR", help="folder to fill; default: where it is found anyway")
    options = parser.parse_args(argv[1:])
    with command.user_errors():
        print(TARGETS[options.target](options.to))


TARGETS = {"assets": assets}

if __name__ == "__main__":
    main(sys.argv)
