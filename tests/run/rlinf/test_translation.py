"""RLinf's configurations become ours, and every one of their keys is accounted for."""

import ast
import collections

import omegaconf
import published
import pytest

from pirl_jax.run import config, recipes
from pirl_jax.run.rlinf import translation

# denoise steps, noise level, executed actions, update epochs, gradient clip: RLinf's table
PUBLISHED = {
    "libero_spatial_ppo_pi0": (4, 0.5, 5, 4, 1.0),
    "libero_spatial_ppo_pi05": (3, 0.5, 5, 1, 1.0),
    "libero_spatial_grpo_pi0": (4, 0.5, 5, 2, 1.0),
    "libero_spatial_grpo_pi05": (3, 0.5, 5, 1, 1.0),
    "libero_object_ppo_pi0": (4, 0.5, 5, 4, 1.0),
    "libero_object_ppo_pi05": (5, 0.3, 5, 1, 1.0),
    "libero_object_grpo_pi0": (4, 0.5, 5, 2, 1.0),
    "libero_object_grpo_pi05": (5, 0.3, 5, 1, 1.0),
    "libero_goal_ppo_pi0": (4, 0.5, 5, 4, 1.0),
    "libero_goal_ppo_pi05": (5, 0.3, 5, 4, 1.0),
    "libero_goal_grpo_pi0": (4, 0.5, 5, 2, 1.0),
    "libero_goal_grpo_pi05": (5, 0.3, 5, 1, 1.0),
    "libero_10_ppo_pi0": (4, 0.5, 10, 4, 2.0),
    "libero_10_ppo_pi05": (5, 0.5, 10, 4, 1.0),
    "libero_10_grpo_pi0": (4, 0.5, 10, 2, 2.0),
    "libero_10_grpo_pi05": (4, 0.5, 10, 4, 1.0),
}
# What a published file says otherwise than our recipe of it.
DIFFERENT = {
    "run.directory",  # results/EXPERIMENT, as the file says
    "video.directory",  # results/video/train; nothing is recorded there
    "run.experiment_name",
    "run.project_name",
    "rollout.num_groups",  # RLinf: simulators wait for the policy; ours overlap
}
# Of a critic that GRPO has not.
UNREAD = {"model.value_hidden", "model.value_after_vlm"}


@pytest.fixture
def translated(tmp_path):
    def of(text):
        path = tmp_path / "theirs.yaml"
        path.write_text(text)
        return translation.translate(path)

    return of


def differences(one, other):
    """Fields that two pages have otherwise."""
    found = set()
    for name in recipes.field_names(one):
        section, _, field = name.rpartition(".")
        left = one[section] if section else one
        right = other[section] if section else other
        if left[field] != right[field]:
            found.add(name)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_our_recipe(name, translated):
    page = translated(published.recipe(name, PUBLISHED[name])).page()
    unlike = differences(page, recipes.load_recipe(name))
    if "grpo" in name:
        unlike -= UNREAD
    assert unlike == DIFFERENT, unlike ^ DIFFERENT
    config.settings(page)
    assert page.rollout.num_groups == 1 and page.run.directory == "results/spatial_ppo"


@pytest.mark.parametrize("text", [published.PPO, published.OLDER], ids=["newer", "older"])
def test_every_key_has_exactly_one_line(text, translated):
    found = translated(text)
    whole = published.omegaconf.OmegaConf.create(text)
    raw = published.omegaconf.OmegaConf.to_container(whole)
    count = collections.Counter(line.key for line in found.lines)
    for key in leaves(raw):
        if not key.startswith("defaults"):
            assert count[key] == 1, key
    said = translation.as_text(found) + translation.as_recipe(found)
    assert all(line.key in said for line in found.lines)
    assert not found.of("unknown")


def leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_an_unknown_key_is_named_with_what_comes_closest(translated):
    changes = {"actor.model.noise_level": 0.1, "env.train.fog": True, "hydra.x.y": 1}
    found = translated(published.changed(published.PPO, changes))
    unknown = {line.key: line.text for line in found.of("unknown")}
    assert unknown.keys() == {"actor.model.noise_level", "env.train.fog"}
    assert "did you mean actor.model.openpi.noise_level?" in unknown["actor.model.noise_level"]
    assert found.fields["model.noise_level"] == 0.5
    assert "unknown (2 keys)" in translation.as_text(found)
    assert any("env.train.fog" in note for note in translation.notes_of(found.path, found))


def test_the_recipe_says_the_same_and_runs(translated, tmp_path):
    odd = {'actor."""': 1, "env.train.\\": 2}
    text = published.PPO + f'odd:\n  \'a"""\\\': {odd!r}\n'
    found = translated(text)
    recipe = tmp_path / "ours.py"
    recipe.write_text(translation.as_recipe(found))
    assert ast.get_docstring(ast.parse(recipe.read_text())).startswith("theirs: a configuration of")
    assert recipes.load_recipe(recipe) == found.page()
    assert all(len(line) <= 100 for line in recipe.read_text().splitlines())


def test_yaml_is_as_good_as_a_recipe(translated, capsys):
    found = translated(published.changed(published.PPO, {"algorithm.staleness_threshold": 2}))
    assert recipes.load_recipe(found.path) == found.page()
    said = capsys.readouterr().err
    assert all(line.startswith("note: ") for line in said.splitlines())
    assert "keys carried over" in said and "algorithm.staleness_threshold = 2: asynchronous" in said


def test_an_older_file(translated):
    found = translated(published.OLDER)
    assert found.fields == found.fields | {
        "rollout.num_envs": 64,  # 16 groups of 8 on 2 nodes
        "rollout.episodes_per_iteration": 512,  # 16 x 8 x 4 epochs
        "rollout.num_groups": 2,
        "algorithm.adv_type": "grpo",
        "algorithm.loss": "ppo",
        "algorithm.microbatch_size": 32,  # of one GPU there, of one device here
        "num_iterations": 200,
        "run.save_every": 200,
        "run.directory": "../results/test_openpi",
        "run.experiment_name": "test_openpi",
        "run.backends": "wandb",
        "env.suite": "libero_goal",
        "env.max_episode_steps": 300,
        "model.preset": "pi05_libero",
        "model.checkpoint": "weights/pi05",
        "model.num_steps": 3,
        "model.noise_method": "reinflow",
        "model.noise_steps": "all",
        "model.joint_mean": True,
        "model.is_lora": True,
        "model.lora_rank": 16,
        "model.gradient_checkpointing": "full",
        "model.train_expert_only": False,  # RLinf's default
        "model.add_value_head": False,
        "seed": 7,
    }
    left = {line.key: line.matters for line in found.of("left")}
    assert found.fields["video.train"] == 1 and left["cluster.num_nodes"] is False
    assert "rollout.model_dir" not in left
    config.settings(found.page())


def test_keys_as_the_documentation_quotes_them(translated):
    text = """
cluster: {num_nodes: 1, component_placement: {env: 0-3, rollout: 4-7, actor: 0-7}}
rollout: {pipeline_stage_num: 2}
model: {is_lora: True, lora_rank: 8}
openpi:
  noise_level: 0.3
  action_chunk: ${actor.model.num_action_chunks}
  train_expert_only: True
  value_after_vlm: True
  pi05: True
video_cfg: {save_video: True, video_base_dir: "${runner.logger.log_path}/video/train"}
"""
    found = translated(text)
    assert found.fields["model.noise_level"] == 0.3 and found.fields["model.lora_rank"] == 8
    assert found.fields["video.train"] == 1
    assert found.fields["model.value_after_vlm"] and found.fields["model.preset"] == "pi05_libero"
    left = {line.key: line for line in found.of("left")}
    assert "interpolation" in left["actor.model.openpi.action_chunk"].text
    placement = {name: value for name, value in found.fields.items() if "placement" in name}
    assert placement == {
        "placement.env": "0-3",
        "placement.rollout": "4-7",
        "placement.actor": "0-7",
    }
    assert "env.train.task_suite_name is not there" in " ".join(found.notes)
    config.settings(found.page())


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"env.train.env_type": "maniskill"}, "env.train.env_type='maniskill' is another environ"),
        ({"env.train.task_suite_name": "calvin"}, "task_suite_name='calvin' is another suite"),
        ({"actor.model.model_type": "openvla"}, "model_type='openvla' is another model"),
        ({"actor.model.openpi.config_name": "pi0_droid"}, "config_name='pi0_droid' is another m"),
        ({"runner.task_type": "sft"}, "runner.task_type='sft' is another task"),
        ({"algorithm.loss_type": "embodied_sac"}, "loss_type='embodied_sac' is another algorithm"),
        ({"algorithm.loss_type": "embodied_nft"}, "the recipe libero_object_0_nft_pi0"),
        ({"algorithm.adv_type": "opd"}, "algorithm.adv_type='opd' is another algorithm"),
        (
            {"actor.optim.lr": "fast"},
            "actor.optim.lr='fast' fits no field: optim.lr='fast' must be",
        ),
        ({"runner.logger.logger_backends": ["console"]}, "run.backends='console' does not exist"),
        ({"actor.optim.lr": -1}, "actor.optim.lr=-1 fits no field: optim.lr=-1 must be at least"),
        ({"env.train.total_num_envs": 0}, "env.train.total_num_envs=0 must be a whole number"),
        ({"env.train.rollout_epoch": "two"}, "env.train.rollout_epoch='two' must be a whole"),
        ({"env.train.task_id_filter": ["a"]}, "task_id_filter=['a'] fits no field: env.tasks="),
        ({"actor.model.openpi.noise_params": [1]}, "noise_params=[1] fits no field: model.noise"),
    ],
)
def test_what_is_no_run_of_ours_is_one_sentence(changes, said, translated):
    with pytest.raises(ValueError, match=r"theirs\.yaml") as error:
        translated(published.changed(published.PPO, changes))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"actor.model.openpi.num_images_in_input": 1}, "actor.model.openpi.num_images_in_input"),
        ({"env.train.use_step_penalty": True}, "env.train.use_step_penalty"),
        ({"env.train.reward_coef": 5.0}, "env.train.reward_coef"),
        ({"env.train.specific_reset_id": 3}, "env.train.specific_reset_id"),
        ({"reward.use_reward_model": True}, "reward.use_reward_model"),
        ({"runner.resume_dir": "x/global_step_40"}, "runner.resume_dir"),
        ({"actor.model.lora_path": "x"}, "actor.model.lora_path"),
        ({"actor.optim.lr_scheduler": "torch_step"}, "actor.optim.lr_scheduler"),
        (
            {"actor.fsdp_config.sharding_strategy": "full_shard"},
            "actor.fsdp_config.sharding_strateg",
        ),
        ({"env.train.init_params.camera_heights": 128}, "env.train.init_params.camera_heights"),
        ({"rollout.model.model_path": "other"}, "rollout.model.model_path"),
        ({"actor.model.precision": "int8"}, "actor.model.precision"),
    ],
)
def test_what_would_be_learned_otherwise_is_marked(changes, key, translated):
    found = translated(published.changed(published.PPO, changes))
    (line,) = [line for line in found.lines if line.key.startswith(key)]
    assert line.kind == "left" and line.matters
    assert f" ! {key}" in translation.as_text(found)


def test_of_two_keys_the_one_that_counts_is_named(translated):
    changes = {"actor.model.openpi.num_steps": 7, "runner.ckpt_path": "full_weights.pt"}
    changes |= {"actor.model.model_path": "weights"}
    found = translated(published.changed(published.PPO, changes))
    assert found.fields["model.num_steps"] == 7
    assert found.fields["model.checkpoint"] == "full_weights.pt"
    statistics = "weights/physical-intelligence/libero/norm_stats.json"
    assert found.fields["model.norm_stats"] == statistics
    left = {line.key: line.text for line in found.of("left")}
    assert left["actor.model.num_steps"] == "actor.model.openpi.num_steps says it"
    assert left["actor.model.model_path"] == "runner.ckpt_path sets model.checkpoint"


# Keys whose formula reckons with the value, and those around that it needs.
RECKONED = {
    "actor.model.openpi.config_name": {},
    "actor.optim.lr_warmup_steps": {},
    "actor.optim.lr_warmup_steps_ratio": {"actor.optim.lr_warmup_steps": -1},
    "actor.optim.total_training_steps": {"actor.optim.lr_warmup_steps": -1},
    "actor.optim.min_lr": {"actor.optim.lr_scheduler": "cosine"},
    "actor.optim.lr": {"actor.optim.lr_scheduler": "cosine", "actor.optim.min_lr": 1e-6},
    "runner.logger.logger_backends": {},
    "runner.max_epochs": {},
    "env.train.max_episode_steps": {},
    "actor.micro_batch_size": {},
}


@pytest.mark.parametrize("key", RECKONED)
@pytest.mark.parametrize("value", ["abc", [1], {"a": 1}, float("nan"), float("inf"), 0, True])
def test_an_odd_value_is_a_sentence(translated, key, value):
    keys = omegaconf.OmegaConf.create(published.PPO)
    for name, odd in (RECKONED[key] | {key: value}).items():
        omegaconf.OmegaConf.update(keys, name, odd, merge=False, force_add=True)
    try:
        page = translated(omegaconf.OmegaConf.to_yaml(keys)).page()
        config.settings(page)
    except ValueError as error:
        assert "theirs.yaml" in str(error) or "=" in str(error)
