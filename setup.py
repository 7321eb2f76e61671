"""Which folders the package is made of; everything else about it stands in pyproject.toml."""

import setuptools

setuptools.setup(
    packages=setuptools.find_packages(include=["pirl_jax", "pirl_jax.*"]),
    # The recipes lie in configs/ of the checkout, where a link makes them importable too.
    package_dir={"pirl_jax.recipes": "configs"},
)
