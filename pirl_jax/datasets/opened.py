"""A path -> an open data set, whichever format lies there."""

import pathlib

from pirl_jax.core import outside
from pirl_jax.datasets import episodes, lerobot, libero_hdf5

INFO = "meta/info.json"  # makes a folder one of LeRobot's


def open_source(path: pathlib.Path, wanted: episodes.Wanted) -> episodes.Source:
    """LeRobot's folder, or HDF5: a file or a folder of files.

    Raises: ValueError where neither lies there, or it does not fit.
    """
    if not path.exists():
        raise ValueError(f"sft.dataset={path} does not exist; give a folder or a file that does")
    if not path.is_dir():
        if path.suffix in libero_hdf5.SUFFIXES:
            return libero_hdf5.Hdf5(path, wanted)
        raise ValueError(
            f"sft.dataset={path} is no data set; give LIBERO's *.hdf5, or the folder of one of "
            f"LeRobot, that with meta in it"
        )
    if (path / INFO).is_file():
        return lerobot.LeRobot(path, wanted)
    names = sorted(file.name for file in path.iterdir())
    if any(pathlib.PurePath(name).suffix in libero_hdf5.SUFFIXES for name in names):
        return libero_hdf5.Hdf5(path, wanted)
    inner = sorted(info.parent.parent.name for info in path.glob(f"*/{INFO}"))
    if inner:
        remedy = f"give one of its folders: {outside.listed(inner)}"
    else:
        remedy = "give the folder that has meta in it, or a folder of *.hdf5"
    raise ValueError(
        f"sft.dataset={path} has neither {INFO} (LeRobot) nor *.hdf5 (LIBERO), but "
        f"{outside.listed(names) or 'nothing'}; {remedy}"
    )
