import dataclasses

import pytest

from pirl_jax.core import spec
from pirl_jax.models import pi0, variants
from pirl_jax.weights import sizes, torch_names


def shapes_of(cfg):
    return {path: leaf.shape for path, leaf in spec.flatten(pi0.specs(cfg)).items()}


@pytest.mark.parametrize("name", ["pi0", "pi05", "pi0_lora", "pi05_lora"])
def test_the_published_networks_are_recognised_by_their_shapes(name):
    assert sizes.infer(shapes_of(variants.pi0_config(name))) == variants.pi0_config(name)


@pytest.mark.parametrize("name", list(variants.PI0))
def test_every_network_is_recognised_with_its_configuration_at_hand(name):
    cfg = variants.pi0_config(name)
    assert sizes.infer(shapes_of(cfg), cfg) == cfg


@pytest.mark.parametrize("name", ["pi0", "pi05", "small", "tiny_pi05"])
def test_heads_that_pytorch_merges_come_from_the_known_sizes(name):
    cfg = variants.pi0_config(name)
    tensors = {entry.name: entry.shape for entry in torch_names.entries(shapes_of(cfg))}
    found = sizes.split_heads(tensors)
    assert (found.pi05, found.paligemma, found.expert, found.siglip) == (
        cfg.pi05,
        cfg.paligemma,
        cfg.expert,
        cfg.siglip,
    )
    assert (found.vocab_size, found.action_dim, found.image_size) == (
        cfg.vocab_size,
        cfg.action_dim,
        cfg.image_size,
    )


def test_sizes_that_pytorch_merges_and_nobody_knows_are_a_sentence():
    cfg = variants.pi0_config("tiny")
    odd = dataclasses.replace(cfg, siglip=dataclasses.replace(cfg.siglip, mlp_dim=66))
    tensors = {entry.name: entry.shape for entry in torch_names.entries(shapes_of(odd))}
    with pytest.raises(
        ValueError,
        match="feed-forward 66, patches of 8 px, which is no known size: .* give the configuration",
    ):
        sizes.split_heads(tensors)
    assert sizes.split_heads(tensors, odd).siglip == odd.siglip


def test_all_contradictions_stand_in_one_error():
    given = variants.pi0_config("tiny_pi05", action_dim=9, vocab_size=500)
    with pytest.raises(ValueError) as caught:
        sizes.infer(shapes_of(variants.pi0_config("tiny")), given)
    for line in (
        "pi05 is False in the checkpoint and True in the configuration",
        "vocab_size is 512 in the checkpoint and 500 in the configuration",
        "action_dim is 8 in the checkpoint and 9",
    ):
        assert line in str(caught.value)
    assert "paligemma" not in str(caught.value)


def test_adapters_may_be_missing_in_the_checkpoint_but_not_in_the_configuration():
    plain, adapted = variants.pi0_config("pi0"), variants.pi0_config("pi0_lora")
    assert sizes.infer(shapes_of(plain), adapted).paligemma.lora is None
    with pytest.raises(
        ValueError,
        match="paligemma.lora.attn_rank is 16 in the checkpoint and None in the configuration",
    ):
        sizes.infer(shapes_of(adapted), plain)
    scaled = dataclasses.replace(
        adapted.expert, lora=dataclasses.replace(adapted.expert.lora, attn_alpha=5.0)
    )
    assert (
        sizes.infer(
            shapes_of(adapted), dataclasses.replace(adapted, expert=scaled)
        ).expert.lora.attn_alpha
        == 5.0
    )


def test_a_part_of_a_network_is_a_sentence():
    with pytest.raises(
        ValueError, match="no whole pi0 or pi0.5 checkpoint: PaliGemma/img/embedding/kernel"
    ):
        sizes.infer({"action_in_proj/kernel": (32, 1024)})
    with pytest.raises(ValueError, match="no pi0 or pi0.5 checkpoint of openpi, RLinf or LeRobot"):
        sizes.split_heads({"encoder.weight": (3, 4)})
