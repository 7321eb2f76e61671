import dataclasses
import json

import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec
from pirl_jax.models import heads, variants
from pirl_jax.weights import sizes, torch_names


# Of pi0 the subset in tests/golden has shapes alone.
@pytest.fixture(scope="module", params=("pi0", "pi05") if reference_files.COMPLETE else ("pi05",))
def keymap(request, vectors):
    """openpi's conversion, tensor by tensor, at full size."""
    return json.loads((vectors / "openpi" / f"keymap_{request.param}.json").read_text())


def full_size(keymap):
    shapes = sizes.shapes_of(variants.pi0_config(keymap["model"]))
    return {entry.name: entry for entry in torch_names.entries(shapes)}


def test_every_tensor_of_the_full_models_has_the_reference_name_place_and_shape(keymap):
    ours = full_size(keymap)
    assert ours.keys() == {entry["pt_key"] for entry in keymap["entries"]}
    for entry in keymap["entries"]:
        mine = ours[entry["pt_key"]]
        assert (mine.path, list(mine.tensor_shape)) == (entry["jax_path"], entry["pt_shape"])
        # Where the reference takes the only key head out by an index, we keep an axis of size 1.
        index = entry["jax_index"]
        assert list(mine.index) == index[: len(mine.index)]
        assert not any(index[len(mine.index) :])
    assert keymap["aliases"] == {torch_names.EMBEDDING_ALIAS: torch_names.EMBEDDING}
    assert list(keymap["pt_only"]) == [torch_names.UNUSED_HEAD]


def test_every_rearrangement_has_its_inverse():
    """And every element of ours is in exactly one tensor."""
    shapes = sizes.shapes_of(variants.pi0_config("tiny_pi05"))
    seen = {path: np.zeros(shape, int) for path, shape in shapes.items()}
    draw = np.random.default_rng(0)
    for entry in torch_names.entries(shapes):
        part = draw.standard_normal(entry.part_shape)
        tensor = torch_names.to_torch(part, entry)
        assert tensor.shape == entry.tensor_shape
        np.testing.assert_array_equal(torch_names.from_torch(tensor, entry), part)
        seen[entry.path][entry.index] += 1
    for path, count in seen.items():
        assert (count == 1).all(), f"an element of {path} is covered twice or never"


def test_the_operations_of_the_reference_on_real_axes(keymap):
    """The recorded transpose and reshape, on small arrays of the reference's pattern."""
    small = {
        2048: 8,
        1152: 12,
        1024: 6,
        256: 4,
        72: 3,
        16384: 10,
        4096: 14,
        4304: 22,
        257152: 26,
        3072: 18,
        16: 4,
        8: 2,
        27: 1,
        18: 1,
        14: 5,
        32: 7,
    }
    entries = full_size(keymap)
    draw = np.random.default_rng(1)
    for record in keymap["entries"]:
        if ".layers." in record["pt_key"] and ".layers.0." not in record["pt_key"]:
            continue
        entry = entries[record["pt_key"]]
        ours = tuple(small.get(size, size) for size in entry.part_shape)
        part = draw.standard_normal(ours)
        expected = part
        if len(record["jax_index"]) > len(entry.index):
            expected = part.reshape(ours[1:])  # the only key head
        for op, argument in record["jax_to_pt"]:
            if op == "transpose":
                expected = expected.transpose(argument)
            else:
                expected = expected.reshape(_grouped(expected.shape, len(argument), entry))
        resized = dataclasses.replace(entry, part_shape=ours, tensor_shape=expected.shape)
        tensor = torch_names.to_torch(part, resized)
        np.testing.assert_array_equal(tensor, expected, err_msg=entry.name)


def _grouped(shape, rank, entry):
    """What the recorded reshape makes of a small shape: heads and head_dim become one axis."""
    assert len(shape) == rank + 1, entry
    at = 1 if entry.axes.startswith("DNh") else 0
    return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])


def test_heads_of_rlinf(vectors):
    tensors = {}
    with np.load(vectors / "rlinf" / "d_heads.npz") as file:
        for key in file.files:
            if key.startswith(("value_head_0_relu/in/value_head", "noise_net_0/in/noise_head")):
                tensors[key.partition("/in/")[2]] = file[key]
        x = file["value_head_0_relu/in/x"]
        expected = file["value_head_0_relu/out/y"]
    named, ignored = torch_names.canonical(tensors)
    shapes = torch_names.head_shapes({name: tensor.shape for name, tensor in named.items()})
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    entries = torch_names.entries(shapes)
    assert {entry.name for entry in entries} == named.keys()
    for entry in entries:
        flat[entry.path][entry.index] = torch_names.from_torch(named[entry.name], entry)
    values = heads.value(spec.unflatten(flat), x)
    np.testing.assert_allclose(values, expected.reshape(-1), rtol=1e-5, atol=1e-5)
    assert shapes["noise_head/layer_1/kernel"] == (12, 8)
    assert shapes["noise_head/out/bias"] == (7,)
    assert ignored == dict.fromkeys(
        ("noise_head.logvar_min", "noise_head.logvar_max"),
        "bounds of the noise, a setting of the policy and no weight",
    )


@pytest.mark.parametrize(
    "name, canonical",
    [
        ("model.action_in_proj.weight", "action_in_proj.weight"),
        ("module.model.value_head.mlp.0.bias", "value_head.mlp.0.bias"),
        (
            "_fsdp_wrapped_module.value_head._fsdp_wrapped_module.mlp.0.bias",
            "value_head.mlp.0.bias",
        ),
        (
            "model.paligemma_with_expert.paligemma.vision_tower.vision_model.post_layernorm.bias",
            "paligemma_with_expert.paligemma.model.vision_tower.vision_model.post_layernorm.bias",
        ),
        (
            "model.paligemma_with_expert.paligemma.model.vision_tower.post_layernorm.bias",
            "paligemma_with_expert.paligemma.model.vision_tower.vision_model.post_layernorm.bias",
        ),
        (
            "paligemma_with_expert.paligemma.language_model.model.norm.weight",
            "paligemma_with_expert.paligemma.model.language_model.norm.weight",
        ),
        ("paligemma_with_expert.paligemma.language_model.lm_head.weight", torch_names.EMBEDDING),
        (torch_names.EMBEDDING_ALIAS, torch_names.EMBEDDING),
    ],
)
def test_spellings_of_other_programs(name, canonical):
    assert torch_names.canonical({name: np.zeros(1)}) == ({canonical: np.zeros(1)}, {})


HEAD = "value_head.mlp.0.bias"
NORM = "paligemma_with_expert.paligemma.model.language_model.norm.weight"
EXPERT_NORM = "paligemma_with_expert.gemma_expert.model.norm.weight"


@pytest.mark.parametrize("canonical", [HEAD, NORM, EXPERT_NORM])
@pytest.mark.parametrize(
    "wrapper",
    [
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "policy",
        "actor",
        "model",
        "module._orig_mod.model",
    ],
)
def test_wrappers_are_stripped_wherever_they_wrap(canonical, wrapper):
    parts = canonical.split(".")
    for i in range(len(parts)):
        name = ".".join([*parts[:i], wrapper, *parts[i:]])
        if wrapper == "model" and parts[i - 1] == "language_model":
            continue  # an older spelling, which is tried above
        assert list(torch_names.canonical({name: np.zeros(1)})[0]) == [canonical], name
    everywhere = f"{wrapper}." + f".{wrapper}.".join(parts)
    if wrapper != "model":
        assert list(torch_names.canonical({everywhere: np.zeros(1)})[0]) == [canonical]


@pytest.mark.parametrize(
    "names, near",
    [
        (["net.action_in_proj.weight", "net.x", "y"], "net.action_in_proj.weight"),
        (["action_in_projection.weight", "zzz.bias"], "action_in_projection.weight"),
        (["encoder.a", "encoder.b"], "encoder.a"),
        ([], ""),
    ],
)
def test_the_nearest_names_that_a_file_has(names, near):
    assert torch_names.nearest("action_in_proj.weight", names).startswith(near)


def test_both_tied_names_at_once():
    embedding = np.zeros((2, 1))
    head = np.ones((2, 1))
    named, ignored = torch_names.canonical(
        {torch_names.EMBEDDING: head, torch_names.EMBEDDING_ALIAS: embedding}
    )
    assert named[torch_names.EMBEDDING] is embedding and list(ignored) == [torch_names.EMBEDDING]


def test_one_tensor_under_two_spellings_is_an_error():
    tensors = {"state_proj.bias": np.zeros(1), "model.state_proj.bias": np.zeros(1)}
    twice = r"holds state_proj.bias twice, as state_proj.bias and as model.state_proj.bias"
    with pytest.raises(ValueError, match=twice):
        torch_names.canonical(tensors)


def test_adapters_have_no_place_in_the_layout():
    shapes = sizes.shapes_of(variants.pi0_config("pi0_lora"))
    with pytest.raises(ValueError, match=r"no place for .*lora_a.*--merge-lora"):
        torch_names.by_path(shapes)
