import dataclasses
import random

import pytest

from pirl_jax.models import variants
from pirl_jax.weights import accounting, sizes, torch_names


def torch_shapes(cfg):
    return {entry.name: entry.tensor_shape for entry in torch_names.entries(sizes.shapes_of(cfg))}


@pytest.mark.parametrize("name", ["pi0", "pi05", "pi0_lora", "pi05_lora"])
def test_the_published_networks_are_recognised_by_their_shapes(name):
    assert sizes.infer(sizes.shapes_of(variants.pi0_config(name))) == variants.pi0_config(name)


@pytest.mark.parametrize("name", list(variants.PI0))
def test_every_network_is_recognised_with_its_configuration_at_hand(name):
    cfg = variants.pi0_config(name)
    assert sizes.infer(sizes.shapes_of(cfg), cfg) == cfg


@pytest.mark.parametrize("name", ["pi0", "pi05", "small", "tiny_pi05"])
def test_heads_that_pytorch_merges_come_from_the_known_sizes(name):
    cfg = variants.pi0_config(name)
    found = sizes.infer_torch(torch_shapes(cfg))
    told = ("pi05", "paligemma", "expert", "siglip", "vocab_size", "action_dim", "image_size")
    for field in told:
        assert getattr(found, field) == getattr(cfg, field), field


def test_sizes_that_pytorch_merges_and_nobody_knows_are_a_sentence():
    cfg = variants.pi0_config("tiny")
    odd = dataclasses.replace(cfg, siglip=dataclasses.replace(cfg.siglip, mlp_dim=66))
    tensors = torch_shapes(odd)
    unknown = r"feed-forward 66, patches of 8 px, which is no known size: .* give --config REC"
    with pytest.raises(ValueError, match=unknown):
        sizes.infer_torch(tensors)
    assert sizes.infer_torch(tensors, odd).siglip == odd.siglip


def test_all_contradictions_stand_in_one_error():
    given = variants.pi0_config("tiny_pi05", action_dim=9, vocab_size=500)
    with pytest.raises(ValueError) as caught:
        sizes.infer(sizes.shapes_of(variants.pi0_config("tiny")), given)
    for line in (
        "pi05 is False in the checkpoint and True in the configuration",
        "vocab_size is 512 in the checkpoint and 500 in the configuration",
        "action_dim is 8 in the checkpoint and 9",
    ):
        assert line in str(caught.value)
    assert "paligemma" not in str(caught.value)


def test_adapters_may_be_missing_in_the_checkpoint_but_not_in_the_configuration():
    plain, adapted = variants.pi0_config("pi0"), variants.pi0_config("pi0_lora")
    assert sizes.infer(sizes.shapes_of(plain), adapted).paligemma.lora is None
    with pytest.raises(
        ValueError,
        match=r"paligemma.lora.attn_rank is 16 in the checkpoint and None in the configuration",
    ):
        sizes.infer(sizes.shapes_of(adapted), plain)
    lora = dataclasses.replace(adapted.expert.lora, attn_alpha=5.0)
    scaled = dataclasses.replace(adapted, expert=dataclasses.replace(adapted.expert, lora=lora))
    found = sizes.infer(sizes.shapes_of(adapted), scaled)
    assert found.expert.lora.attn_alpha == 5.0


def test_a_part_of_a_network_is_a_sentence():
    with pytest.raises(
        ValueError, match=r"no whole pi0 or pi0.5 checkpoint: PaliGemma/img/embedding/kernel"
    ):
        sizes.infer({"action_in_proj/kernel": (32, 1024)})
    with pytest.raises(ValueError, match=r"no pi0 or pi0.5 checkpoint of openpi, RLinf or LeRobot"):
        sizes.infer_torch({"encoder.weight": (3, 4)})


@pytest.mark.parametrize("name", ["tiny", "tiny_pi05", "pi0_lora"])
def test_shapes_of_no_network_are_a_sentence(name):
    """Axes lost, gained, empty, exchanged or larger than any memory, arrays gone."""
    cfg = variants.pi0_config(name)
    shapes = sizes.shapes_of(cfg)
    refused = 0
    for seed in range(150):
        draw = random.Random(seed)
        changed = dict(shapes)
        for path in draw.sample(list(shapes), draw.choice((1, 2, 4))):
            changed[path] = _other(draw, changed[path])
        try:
            found = sizes.infer(changed, draw.choice((None, cfg)))
            accounting.require_shapes(sizes.shapes_of(found), changed, "a checkpoint")
        except ValueError as error:
            assert "unpack" not in str(error) and "zip()" not in str(error), error
            refused += 1
    assert refused > 100


def _other(draw, shape):
    at = draw.randrange(len(shape))
    larger = draw.choice((0, 1, 3, 2**31, 2**47))
    return draw.choice(
        (shape[:-1], (*shape, 1), shape[::-1], (*shape[:at], larger, *shape[at + 1 :]))
    )
