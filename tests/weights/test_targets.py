import json

import ml_dtypes
import numpy as np
import pytest

from pirl_jax.core import spec
from pirl_jax.weights import safetensors, sources, targets, torch_names
from tests.models import conftest as models
from tests.weights import conftest


def test_our_pytorch_file_holds_the_tensors_of_openpis_file(torch_case, tmp_path):
    source = conftest.memory_source(torch_case.params, torch_case.cfg)
    notes = targets.write_openpi_torch(tmp_path, source)
    ours = safetensors.read_folder(tmp_path)
    theirs = safetensors.read_folder(torch_case.folder)
    assert ours.keys() == theirs.keys()
    assert list(notes) == [torch_names.UNUSED_HEAD]
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        expected = np.zeros_like(tensor) if name == torch_names.UNUSED_HEAD else tensor
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)
    config = json.loads((tmp_path / "config.json").read_text())
    dtype = torch_case.params["action_in_proj/bias"].dtype
    assert config["action_dim"] == 32 and config["precision"] == dtype.name


@pytest.mark.parametrize("name", ["tiny", "tiny_pi05"])
@pytest.mark.parametrize("to", list(targets.WRITERS))
def test_float32_survives_every_format_bit_for_bit(tmp_path, name, to):
    source = conftest.random_source(name, with_heads=True)
    notes = targets.WRITERS[to](tmp_path, source, heads=True)
    conftest.assert_same(sources.open_source(tmp_path, source.cfg), conftest.arrays_of(source))
    assert set(notes) == ({torch_names.UNUSED_HEAD} if to == "openpi_torch" else set())


@pytest.mark.parametrize("name", models.existing(["pi0_gqa2", "pi0_mha"]))
def test_other_numbers_of_key_heads_survive_pytorchs_layout(tmp_path, vectors, name):
    case = models.load_case(vectors, name)
    params = {path: np.asarray(x) for path, x in spec.flatten(case.params).items()}
    source = conftest.memory_source(params, case.cfg)
    targets.write_openpi_torch(tmp_path, source)
    conftest.assert_same(sources.open_source(tmp_path, case.cfg), conftest.arrays_of(source))


@pytest.mark.parametrize("to", ["openpi_jax", "openpi_torch"])
def test_heads_stay_out_of_openpis_formats_and_are_named(tmp_path, to):
    source = conftest.random_source("tiny", with_heads=True)
    notes = targets.WRITERS[to](tmp_path, source)
    found = sources.open_source(tmp_path, source.cfg)
    dropped = set(source.shapes) - set(found.shapes)
    assert dropped == {path for path in notes if path.startswith("value_head/")}
    assert len(dropped) == 6


def test_rounding_only_when_asked_and_with_its_error():
    source = conftest.random_source("tiny")
    rounded, errors = targets.cast(source, "bfloat16")
    exact = conftest.arrays_of(source)
    conftest.assert_same(rounded, {path: x.astype(ml_dtypes.bfloat16) for path, x in exact.items()})
    assert errors.keys() == exact.keys()
    for path, x in exact.items():
        assert errors[path] == np.abs(x - x.astype(ml_dtypes.bfloat16).astype(np.float32)).max() > 0
    widened, errors = targets.cast(rounded, np.float32)
    assert {x.dtype.name for x in conftest.arrays_of(widened).values()} == {"float32"}
    assert not any(errors.values())
