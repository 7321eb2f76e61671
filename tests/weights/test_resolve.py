import json
import re

import pytest

from pirl_jax.weights import resolve


def make(folder, *files):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    "files, asked, kind, weights, step",
    [
        # openpi's trainers: numbered folders in that of the experiment.
        (["500/params/_METADATA", "90/params/_METADATA"], "", "openpi_jax", "500/params", 500),
        (["500/params/_METADATA"], "500/params", "openpi_jax", "500/params", 500),
        (["900/model.safetensors", "1000/model.safetensors"], "", "safetensors", "1000", 1000),
        (["1000/model.safetensors", "tmp_2000/model.safetensors"], "", "safetensors", "1000", 1000),
        # LeRobot's: zeros in front, the policy one folder below.
        (
            [f"checkpoints/{n}/pretrained_model/model.safetensors" for n in ("000400", "001200")],
            "",
            "safetensors",
            "checkpoints/001200/pretrained_model",
            1200,
        ),
        (
            ["checkpoints/000400/pretrained_model/model.safetensors"],
            "checkpoints/000400/pretrained_model",
            "safetensors",
            "checkpoints/000400/pretrained_model",
            400,
        ),
        # RLinf's.
        (
            [
                f"checkpoints/global_step_{n}/actor/model_state_dict/full_weights.pt"
                for n in (9, 30)
            ],
            "",
            "pt",
            "checkpoints/global_step_30/actor/model_state_dict/full_weights.pt",
            30,
        ),
        (["full_weights.pt", "norm_stats.json"], "", "pt", "full_weights.pt", None),
        # Ours.
        (["checkpoints/7/state/_METADATA"], "", "pirl", "checkpoints/7/state", 7),
        (["checkpoints/7/state/_METADATA"], "checkpoints/7", "pirl", "checkpoints/7/state", 7),
        # A folder may have any name.
        (["checkpoints/model.safetensors"], "checkpoints", "safetensors", "checkpoints", None),
        (["a/b.safetensors", "a/c.safetensors"], "a/c.safetensors", "safetensors", None, None),
        (["model-1-of-2.safetensors", "model-2-of-2.safetensors"], "", "safetensors", "", None),
    ],
)
def test_layouts(tmp_path, files, asked, kind, weights, step):
    make(tmp_path, *files)
    place = resolve.find(tmp_path / asked)
    expected = tmp_path / (asked if weights is None else weights)
    assert (place.kind, place.weights, place.step) == (kind, expected, step)


def test_a_step_by_its_number(tmp_path):
    make(tmp_path, *(f"{n}/model.safetensors" for n in (20, 100)))
    assert resolve.find(tmp_path, 20).weights == tmp_path / "20"
    assert resolve.find(tmp_path / "20", 20).step == 20
    with pytest.raises(ValueError, match=r"no checkpoint of iteration 30; it holds \[20, 100\]"):
        resolve.find(tmp_path, 30)
    with pytest.raises(ValueError, match="20 is step 20, not iteration 100; leave --iteration out"):
        resolve.find(tmp_path / "20", 100)


def test_lerobots_link_to_its_last_step(tmp_path):
    policy = "pretrained_model/model.safetensors"
    make(tmp_path / "checkpoints", f"000200/{policy}", f"000300/{policy}")
    last = tmp_path / "checkpoints" / "last"
    last.symlink_to("000300")
    assert resolve.find(last).step == resolve.find(tmp_path).step == 300
    last.unlink()
    last.symlink_to("000200")  # of a run that went on from an earlier step
    with pytest.raises(ValueError, match=f"give {last} or {last.parent / '000300'}"):
        resolve.find(tmp_path)
    assert resolve.find(last).step == 200


INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
SETS = {
    "a whole file and shards": ["model.safetensors", "model.safetensors.index.json"],
    "PyTorch and JAX": ["model.safetensors", "params/_METADATA"],
    "before and after RLinf": ["model.safetensors", "model_state_dict/full_weights.pt"],
    "RLinf's twice": ["full_weights.pt", "actor/model_state_dict/full_weights.pt"],
    "ours and openpi's": ["state/_METADATA", "params/_METADATA"],
}


@pytest.mark.parametrize("files", SETS.values(), ids=SETS)
def test_two_sets_of_weights_are_a_question_whose_answers_work(tmp_path, files):
    make(tmp_path, *files)
    if "model.safetensors.index.json" in files:
        (tmp_path / "model.safetensors.index.json").write_text(INDEX)
    with pytest.raises(ValueError, match="holds 2 sets of weights") as caught:
        resolve.find(tmp_path)
    answers = re.findall(f"{tmp_path}/[^ ]+", str(caught.value))
    assert len(answers) == 2
    places = [resolve.find(type(tmp_path)(answer)) for answer in answers]
    assert places[0].weights != places[1].weights


def test_an_index_of_the_one_file_beside_it_is_no_second_set(tmp_path):
    make(tmp_path, "model.safetensors")
    index = {"weight_map": {"a": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve.find(tmp_path).weights == tmp_path


@pytest.mark.parametrize(
    "files, said",
    [
        (
            ["100/model.safetensors", "200/optimizer.pt"],
            "newest step that does is 100; give .*/100",
        ),
        (["1/model.safetensors", "checkpoints/2/model.safetensors"], "give one of these folders"),
        (["10/model.safetensors", "global_step_10/full_weights.pt"], "two folders of step 10"),
        (["actor/dcp_checkpoint/__0_0.distcp"], "torch.distributed.checkpoint.format_utils dcp_to"),
        (["checkpoints/global_step_8/actor/dcp_checkpoint/__0_0.distcp"], "dcp_to_torch .*step_8"),
        (["pytorch_model_fsdp_0/__1_0.distcp"], "shards of a distributed trainer"),
        (
            ["zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"],
            "python .*zero_to_fp32.py",
        ),
        (["policy.ckpt"], "if policy.ckpt is meant, give the file itself"),
        (["notes.txt"], "holds no checkpoint that is known: neither checkpoints/N/state"),
    ],
)
def test_what_cannot_be_chosen_is_a_sentence_with_what_to_do(tmp_path, files, said):
    make(tmp_path, *files)
    with pytest.raises(ValueError, match=said) as caught:
        resolve.find(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path):
    make(tmp_path, "weights.npz")
    with pytest.raises(ValueError, match=r"weights.npz is no file of weights that is known"):
        resolve.find(tmp_path / "weights.npz")
