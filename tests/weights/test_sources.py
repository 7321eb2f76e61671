import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import reference_files

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.models import heads, pi0, variants
from pirl_jax.weights import pickled, safetensors, sources, store, targets, torch_names
from tests.weights import conftest

ORBAX = ("orbax_pi0_tiny", "orbax_pi05_tiny", "orbax_pi0_lora_tiny")
RECORDED = reference_files.existing("openpi/{}/expected_params.npz", ORBAX)
PLACES = [f"{name}/{place}" for name in RECORDED for place in ("", "3", "3/params", "pure_float32")]
PROJECTION = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.bias"


# ---- openpi's JAX checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize("path", reference_files.existing("openpi/{}", PLACES))
def test_openpi_jax_equals_what_openpi_restores(vectors, path):
    """Written by openpi's trainer (leaves end in "value"), or as a plain tree.

    Named by any of its folders.
    """
    name, _, place = path.partition("/")
    source = sources.open_source(vectors / "openpi" / path)
    with np.load(vectors / "openpi" / name / "expected_params.npz") as file:
        assert source.shapes.keys() == set(file.files)
        for path in file.files:
            np.testing.assert_array_equal(source.read(path, np.float32), file[path], err_msg=path)
    dtypes = {"float32"}
    if "lora" in name and place != "pure_float32":
        dtypes = {"float32", "bfloat16"}
    assert {str(dtype) for dtype in source.dtypes.values()} == dtypes
    assert source.cfg.pi05 == ("pi05" in name)
    assert (source.cfg.expert.lora is not None) == ("lora" in name)


@pytest.mark.parametrize("name", reference_files.existing("openpi/{}/pure_bfloat16", RECORDED))
def test_openpi_jax_in_bfloat16(vectors, name):
    source = sources.open_source(vectors / "openpi" / name / "pure_bfloat16")
    with np.load(vectors / "openpi" / name / "expected_params.npz") as file:
        expected = {path: file[path].astype(ml_dtypes.bfloat16) for path in file.files}
    conftest.assert_same(source, expected)


@pytest.mark.parametrize("name", RECORDED)
def test_names_and_types_in_openpis_files_are_those_it_wrote(vectors, name):
    recorded = json.loads((vectors / "openpi" / name / "tree.json").read_text())
    source = sources.open_source(vectors / "openpi" / name)
    found = {}
    for path, shape in source.shapes.items():
        entry = {"shape": list(shape), "dtype": str(source.dtypes[path])}
        found[f"params/{path}/value"] = entry
    assert found == recorded["params_item_raw_keys"]


def test_raw_weights_instead_of_the_average(vectors):
    with np.load(vectors / "openpi" / "train_pi0_tiny.npz") as file:
        for raw, prefix in ((True, "params3/"), (False, "ema3/")):
            source = sources.open_source(vectors / "openpi" / "orbax_pi0_tiny", raw=raw)
            for path in source.shapes:
                np.testing.assert_array_equal(source.read(path), file[prefix + path], err_msg=path)
    without_average = vectors / "openpi" / "orbax_pi0_lora_tiny"
    raw_source = sources.open_source(without_average, raw=True)
    assert raw_source.shapes == sources.open_source(without_average).shapes
    with pytest.raises(ValueError, match="train_state is not there; leave --raw out"):
        sources.open_source(vectors / "openpi" / "orbax_pi0_tiny" / "pure_bfloat16", raw=True)


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16][not reference_files.COMPLETE :])
def test_openpi_torch_equals_what_it_was_converted_from(torch_case, dtype):
    folder = torch_case.folder if dtype == np.float32 else torch_case.bfloat16
    source = sources.open_source(folder, torch_case.cfg)
    conftest.assert_same(source, {path: x.astype(dtype) for path, x in torch_case.params.items()})
    assert source.ignored == {
        torch_names.UNUSED_HEAD: "output head of the action expert, which nothing reads"
    }


def _rewrite(tensors, folder):
    """A folder with these tensors."""
    folder.mkdir(exist_ok=True)
    layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    safetensors.write(folder / "model.safetensors", layout, iter(tensors.values()), {})
    return folder


def _lerobot(name):
    return "model." + name


def _first_lerobot(name):
    """LeRobot before transformers 4.52."""
    name = name.replace("paligemma.model.language_model.", "paligemma.language_model.model.")
    name = name.replace("paligemma.lm_head.", "paligemma.language_model.lm_head.")
    return "model." + name.replace("paligemma.model.", "paligemma.")


def _transformers_5(name):
    return "model." + name.replace("vision_tower.vision_model.", "vision_tower.")


def _other_tied_name(name):
    return torch_names.EMBEDDING_ALIAS if name == torch_names.EMBEDDING else name


@pytest.mark.parametrize("rename", [_lerobot, _first_lerobot, _transformers_5, _other_tied_name])
def test_spellings_of_other_programs(torch_case, tmp_path, rename):
    tensors = safetensors.read_folder(torch_case.folder)
    extra = {"normalize_inputs.buffer_observation_state.mean": np.zeros(8, np.float32)}
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    source = sources.open_source(_rewrite(renamed | extra, tmp_path), torch_case.cfg)
    conftest.assert_same(source, torch_case.params)
    assert len(source.ignored) == 2


def test_all_misfits_stand_in_one_error(torch_case, tmp_path):
    tensors = dict(safetensors.read_folder(torch_case.folder))
    tensors["extra.weight"] = np.zeros(2, np.float32)
    tensors["action_out_proj.bias"] = np.zeros(3, np.float32)
    del tensors[PROJECTION]
    with pytest.raises(ValueError) as caught:
        sources.open_source(_rewrite(tensors, tmp_path), torch_case.cfg)
    for line in (
        f"{PROJECTION} is missing",
        "extra.weight is left over",
        "action_out_proj.bias is [3] and should be [32]",
    ):
        assert line in str(caught.value)
    assert "(3 of" in str(caught.value)


def test_shards_are_one_checkpoint(torch_case, tmp_path):
    tensors = safetensors.read_folder(torch_case.folder)
    names = list(tensors)
    weight_map = {}
    for i in range(3):
        shard = f"model-0000{i + 1}-of-00003.safetensors"
        members = names[i::3]
        folder = _rewrite({name: tensors[name] for name in members}, tmp_path)
        (folder / "model.safetensors").rename(folder / shard)
        weight_map |= dict.fromkeys(members, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    conftest.assert_same(sources.open_source(tmp_path, torch_case.cfg), torch_case.params)


@pytest.mark.parametrize("place", ["", "model_state_dict", "actor/model_state_dict"])
def test_results_of_rlinf_with_heads(torch_case, tmp_path, monkeypatch, place):
    """A .pt file holds both tied names; the file itself is the business of test_pickled.py."""
    tensors = dict(safetensors.read_folder(torch_case.folder))
    tensors[torch_names.EMBEDDING_ALIAS] = tensors[torch_names.EMBEDDING]
    width = torch_case.cfg.expert.width
    draw = np.random.default_rng(0)
    for i, (fan_in, fan_out) in enumerate([(width, 6), (6, 1)]):
        name = f"value_head.mlp.{2 * i}"
        tensors[f"{name}.weight"] = draw.standard_normal((fan_out, fan_in), np.float32)
        tensors[f"{name}.bias"] = draw.standard_normal(fan_out, np.float32)
    file = tmp_path / place / "full_weights.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    monkeypatch.setattr(pickled, "read", {file: tensors}.get)
    source = sources.open_source(tmp_path, torch_case.cfg)
    found = {path: source.read(path) for path in source.shapes if path.startswith("value_head/")}
    assert {path: x.shape for path, x in found.items()} == {
        "value_head/layer_0/kernel": (width, 6),
        "value_head/layer_0/bias": (6,),
        "value_head/out/kernel": (6, 1),
        "value_head/out/bias": (1,),
    }
    np.testing.assert_array_equal(
        found["value_head/layer_0/kernel"].T, tensors["value_head.mlp.0.weight"]
    )
    assert set(source.ignored) == {torch_names.UNUSED_HEAD, torch_names.EMBEDDING}
    network = {path: shape for path, shape in source.shapes.items() if path not in found}
    conftest.assert_same(dataclasses.replace(source, shapes=network), torch_case.params)


def test_peft_adapters_are_a_sentence(torch_case, tmp_path):
    tensors = {
        "base_model.model.action_in_proj.lora_A.default.weight": np.zeros((2, 3), np.float32)
    }
    with pytest.raises(ValueError, match="merge them with PEFT"):
        sources.open_source(_rewrite(tensors, tmp_path))


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"]
)
@pytest.mark.parametrize("beside", [(), ("model.safetensors",)])
def test_files_of_peft_are_refused_alone_and_beside_weights(tmp_path, name, beside):
    for file in (name, *beside):
        (tmp_path / file).touch()
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(
            ValueError,
            match=f"^{given} holds adapters of PEFT.*; load base and adapters .* merge_and_unload",
        ):
            sources.open_source(given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [PROJECTION, torch_names.EMBEDDING])
def test_numbers_that_are_not_finite_are_refused_with_file_and_tensor(
    torch_case, tmp_path, name, value
):
    tensors = dict(safetensors.read_folder(torch_case.folder))
    changed = tensors[name].copy()
    changed.reshape(-1)[-1] = value  # in the last block
    source = sources.open_source(_rewrite(tensors | {name: changed}, tmp_path), torch_case.cfg)
    refused = []
    for path in source.shapes:
        try:
            source.read(path)
        except ValueError as error:
            refused.append(str(error))
    said = f"{name} in {tmp_path} holds NaN or infinity, with which no policy acts; give another"
    assert len(refused) == 1 and said in refused[0], refused


def test_numbers_that_overflow_in_the_dtype_asked_for_are_refused(torch_case, tmp_path):
    tensors = dict(safetensors.read_folder(torch_case.folder))
    tensors[PROJECTION] = np.full(tensors[PROJECTION].shape, 3e38, np.float32)
    source = sources.open_source(_rewrite(tensors, tmp_path), torch_case.cfg)
    source.read("PaliGemma/img/head/bias")
    with (
        pytest.raises(ValueError, match=f"^{PROJECTION} in .* holds NaN or infinity"),
        np.errstate(over="ignore"),
    ):
        source.read("PaliGemma/img/head/bias", np.float16)


def test_weights_of_a_type_that_none_have_are_refused(torch_case, tmp_path):
    tensors = dict(safetensors.read_folder(torch_case.folder))
    tensors[PROJECTION] = np.zeros(tensors[PROJECTION].shape, bool)
    with pytest.raises(ValueError, match=f"^{PROJECTION} in .* is of type bool"):
        sources.open_source(_rewrite(tensors, tmp_path), torch_case.cfg)


@pytest.mark.parametrize(
    "name, shape",
    [
        (torch_names.EMBEDDING, (8,)),
        (torch_names.VISION + "embeddings.patch_embedding.weight", (3, 4)),
        ("action_in_proj.weight", (0, 0)),
        ("value_head.mlp.0.weight", (3,)),
        ("value_head.weight", (3, 3)),
    ],
)
def test_shapes_without_sense_are_a_sentence_with_the_path(torch_case, tmp_path, name, shape):
    tensors = dict(safetensors.read_folder(torch_case.folder))
    tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=name) as caught:
        sources.open_source(_rewrite(tensors, tmp_path), torch_case.cfg)
    assert str(tmp_path) in str(caught.value)


def _damage_metadata(folder):
    (folder / "_METADATA").write_text("version https://git-lfs.github.com/spec/v1")


def _cut_metadata(folder):
    path = folder / "_METADATA"
    path.write_bytes(path.read_bytes()[:100])


def _lose_manifest(folder):
    (folder / "manifest.ocdbt").unlink()


# The first array that cannot be read ends orbax's event loop under the feet of the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage, said",
    [
        (_damage_metadata, "_METADATA is a Git LFS pointer"),
        (_cut_metadata, "cannot be read as a checkpoint of orbax"),
        (_lose_manifest, "cannot be read as a checkpoint of orbax"),
    ],
)
def test_damaged_checkpoints_of_orbax_are_a_sentence(vectors, tmp_path, damage, said):
    folder = tmp_path / "params"
    shutil.copytree(vectors / "openpi" / "orbax_pi0_tiny" / "pure_bfloat16" / "params", folder)
    damage(folder)
    with pytest.raises(ValueError, match=said) as caught:
        source = sources.open_source(folder)
        for path in source.shapes:
            source.read(path)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_openpis_weights_that_are_not_finite_are_refused(tmp_path):
    source = conftest.random_source("tiny")
    params = conftest.arrays_of(source)
    params["action_out_proj/bias"][3] = np.nan
    targets.write_openpi_jax(tmp_path, conftest.memory_source(params, source.cfg))
    opened = sources.open_source(tmp_path)
    opened.read("action_in_proj/bias")
    with pytest.raises(ValueError, match=f"^action_out_proj/bias in {tmp_path}.* NaN or infinity"):
        opened.read("action_out_proj/bias")


def test_a_small_folder_cannot_describe_an_array_of_any_size(tmp_path):
    """Zeros compress to nothing, and what a zarr array lacks is zeros."""
    folder = tmp_path / "params"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(1000))
    large = {"a": (1 << 20, 1 << 10)}
    source = sources.Source("pirl", folder, large, {"a": np.dtype("f4")}, None, {})
    with pytest.raises(ValueError, match=r"come to 4,294,967,296 bytes, of which 1,000 lie on"):
        sources._refuse_bomb(source)


def test_a_contradiction_with_the_configuration_is_an_error(torch_case):
    wrong = dataclasses.replace(torch_case.cfg, action_dim=7, vocab_size=99)
    lines = r"vocab_size is 512 in the checkpoint and 99 .*action_dim is 32 in the checkpoint and 7"
    with pytest.raises(ValueError, match=lines):
        sources.open_source(torch_case.folder, wrong)


def test_nothing_known_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        sources.open_source(tmp_path / "typo")
    (tmp_path / "2").mkdir()
    with pytest.raises(ValueError, match=r"holds no checkpoint of iteration 7; it holds \[2\]"):
        sources.open_source(tmp_path / "7")
    with pytest.raises(
        ValueError, match="holds no checkpoint that is known: neither checkpoints/N/state"
    ):
        sources.open_source(tmp_path)


# ---- our runs ------------------------------------------------------------------------------------


def test_our_run_and_its_average(tmp_path):
    source = conftest.random_source("tiny", with_heads=True)
    params = {path: source.read(path) for path in source.shapes}
    average = {path: x + 1 for path, x in params.items() if path.startswith("action_")}
    for iteration in (3, 12):
        run = store.Store(tmp_path / "checkpoints")
        optimizer = {"step": np.int32(iteration), "opt_state": {"mu": average}}
        run.save(iteration, {"params": params, "ema": average} | optimizer)
        run.close()
    opened = sources.open_source(tmp_path, source.cfg)
    assert opened.location.parent.name == "12"
    conftest.assert_same(opened, params | average)
    conftest.assert_same(sources.open_source(tmp_path, source.cfg, raw=True), params)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    earlier = sources.open_source(tmp_path / "checkpoints" / "3", source.cfg)
    conftest.assert_same(earlier, params | average)


# ---- onto the devices ----------------------------------------------------------------------------


def test_arrays_land_on_their_shards_and_new_heads_start_fresh():
    mesh = meshes.make_mesh(data=2, fsdp=4)
    key = jax.random.key(3)
    source = conftest.random_source("tiny")
    declared = pi0.specs(source.cfg) | heads.value_specs(source.cfg.expert.width, (8,))
    layout = spec.shardings(declared, mesh, meshes.RULES)
    params, notes = sources.load(source, declared, layout, key)
    assert jax.tree.map(lambda x: x.sharding, params) == layout
    flat = spec.flatten(params)
    fresh = spec.flatten(spec.init(key, declared))
    for path in source.shapes:
        np.testing.assert_array_equal(flat[path], source.read(path), err_msg=path)
    new = sorted(set(flat) - set(source.shapes))
    assert notes == dict.fromkeys(new, "not in the checkpoint: starts fresh") and len(new) == 4
    for path in new:
        np.testing.assert_array_equal(flat[path], fresh[path])


def test_what_does_not_fit_the_policy():
    source = conftest.random_source("tiny", with_heads=True)
    declared = pi0.specs(source.cfg)
    params, notes = sources.load(
        source, declared, conftest.layout(declared), dtype=np.dtype(ml_dtypes.bfloat16)
    )
    assert set(notes.values()) == {"not used: this policy has no such head"} and len(notes) == 6
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
    other = pi0.specs(variants.pi0_config("tiny_pi05", action_dim=9))
    with pytest.raises(ValueError) as caught:
        sources.load(source, other, conftest.layout(other), jax.random.key(0))
    for line in (
        "time_mlp_in/kernel is missing",
        "state_proj/bias is left over",
        "action_out_proj/bias is [8] and should be [9]",
    ):
        assert line in str(caught.value)
    with_head = declared | heads.value_specs(source.cfg.expert.width, (8,))
    lines = r"head/layer_1/bias is left over; .*head/layer_0/bias is \[7\] and should be \[8\]"
    with pytest.raises(ValueError, match=lines):
        sources.load(source, with_head, conftest.layout(with_head), jax.random.key(0))


def test_writing_and_reading_leave_no_trace_of_the_order(tmp_path):
    """The same network through two formats is the same array table."""
    source = conftest.random_source("tiny_pi05")
    targets.write_openpi_torch(tmp_path / "torch", source)
    targets.write_openpi_jax(tmp_path / "jax", sources.open_source(tmp_path / "torch", source.cfg))
    expected = {path: source.read(path) for path in source.shapes}
    conftest.assert_same(sources.open_source(tmp_path / "jax"), expected)
