import dataclasses
import json

import pytest

from pirl_jax.core import spec
from pirl_jax.models import pi0, variants


@pytest.mark.parametrize("name, total", [("pi0", 3_238_048_528), ("pi05", 3_353_433_872)])
def test_full_size_parameters_equal_the_published_checkpoints(vectors, name, total):
    specs = pi0.specs(variants.pi0_config(name))
    leaves = json.loads((vectors / "openpi" / f"keymap_{name}.json").read_text())["jax_leaves"]
    assert {
        path: list(leaf.shape) for path, leaf in spec.flatten(spec.abstract(specs)).items()
    } == leaves
    assert spec.count(specs) == total


def test_unknown_model_lists_the_choices():
    with pytest.raises(ValueError, match=r"model='pi1' does not exist.*pi05"):
        variants.pi0_config("pi1")


def test_sizes_that_do_not_fit_are_refused():
    tiny = variants.pi0_config("tiny")
    with pytest.raises(ValueError, match="depth must agree"):
        dataclasses.replace(tiny, expert=dataclasses.replace(tiny.expert, depth=3))
    with pytest.raises(ValueError, match="multiple of the patch"):
        dataclasses.replace(tiny, image_size=(20, 16))
    with pytest.raises(ValueError, match="num_kv_heads"):
        variants.pi0_config(
            "tiny",
            paligemma=dataclasses.replace(tiny.paligemma, num_kv_heads=3),
            expert=dataclasses.replace(tiny.expert, num_kv_heads=3),
        )
