"""The page of fields (pirl_jax/core/page.py) as recipes and flags see it, locked."""

import ml_collections

from pirl_jax.core import page


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(page.Page().as_dict()).lock()
