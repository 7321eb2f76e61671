import json

import numpy as np
import pytest

from pirl_jax.weights import lerobot, safetensors


def state_file(path, **tensors):
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    layout = {name: (x.shape, x.dtype) for name, x in named.items()}
    safetensors.write(path, layout, iter(named.values()), {})


def vectors(low, fields=("q01", "q99")):
    """Of both quantities: low, low + 1, ..."""
    tensors = {}
    for quantity, dim in (("observation__state", 8), ("action", 7)):
        for i, field in enumerate(fields):
            tensors[f"{quantity}__{field}"] = np.full(dim, low + i, np.float32)
    return tensors


def processor(folder, name, *files):
    steps = [{"registry_name": "to_batch_processor", "config": {}}]
    steps += [{"registry_name": "normalizer_processor", "state_file": file} for file in files]
    (folder / name).write_text(json.dumps({"name": "x", "steps": steps}))


def test_quantiles_alone_are_statistics(tmp_path):
    state_file(tmp_path / "policy_preprocessor_step_5_normalizer.safetensors", **vectors(-1.0))
    stats, _ = lerobot.statistics(tmp_path)
    assert stats.state.mean is None and stats.state.dims == 8
    np.testing.assert_array_equal(stats.actions.q99, np.zeros(7))


def test_only_files_that_the_steps_name_are_read(tmp_path):
    """A folder that was saved into twice keeps the files of the first time."""
    state_file(tmp_path / "policy_preprocessor_step_1_normalizer.safetensors", **vectors(-9.0))
    state_file(tmp_path / "policy_preprocessor_step_2_normalizer.safetensors", **vectors(-1.0))
    processor(tmp_path, lerobot.PROCESSORS[0], "policy_preprocessor_step_2_normalizer.safetensors")
    stats, where = lerobot.statistics(tmp_path)
    assert stats.state.q01[0] == -1.0 and where.endswith("step_2_normalizer.safetensors")


def test_two_processors_must_agree(tmp_path):
    for name, low in zip(lerobot.PROCESSORS, (0.0, 1.0), strict=True):
        state_file(tmp_path / f"{name}.safetensors", **vectors(low))
        processor(tmp_path, name, f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"q01 in .*postprocessor.* is another than in .*prepro"):
        lerobot.statistics(tmp_path)


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "policy_preprocessor.json is no JSON"),
        ('{"steps": {}}', "steps of .*policy_preprocessor.json is {} and should be a list"),
        ('{"steps": [3]}', "a step of .*policy_preprocessor.json is 3 and should be an object"),
        (
            '{"steps": [{"state_file": "../x.safetensors"}]}',
            "names the state file ../x.safetensors",
        ),
        ('{"steps": [{"state_file": "x.safetensors"}]}', "names x.safetensors, which .* lacks"),
    ],
)
def test_damaged_steps_are_a_sentence(tmp_path, content, said):
    (tmp_path / lerobot.PROCESSORS[0]).write_text(content)
    with pytest.raises(ValueError, match=said):
        lerobot.statistics(tmp_path)


def test_statistics_without_a_file_are_none(tmp_path):
    """As LeRobot's base models are published."""
    processor(tmp_path, lerobot.PROCESSORS[0])
    assert lerobot.statistics(tmp_path) is None
