"""How the published LIBERO policies see and act: every choice of transform, by name.

In a recipe: `config.model.update(presets.named("pi05_libero"))`, which also sets `model.preset`; settings that contradict their
preset are an error.  Source of all values: openpi's training configurations of these names.
"""


def named(name: str) -> dict:
    """Fields of the `model` section, the name among them."""
    return {"preset": name} | PRESETS[name]


def contradictions(model) -> list[str]:
    """Fields of a `model` section that differ from those of the preset it names."""
    preset = PRESETS[model.preset] if model.preset else {}
    return [f"{name}={value}" for name, value in preset.items() if getattr(model, name) != value]


PRESETS = {
    "pi0_libero": {
        "pi05": False,
        "norm_mode": "zscore",  # (x - mean) / std
        "delta_actions": True,  # position and rotation relative to the state; the gripper is absolute
        "discrete_state": False,  # the state is a token of its own
        "action_horizon": 50,
        "max_token_len": 48,
        "action_dim": 32,
        "image_size_px": 224,
    },
    "pi05_libero": {
        "pi05": True,
        "norm_mode": "quantile",  # q01..q99 -> -1..1, not clipped
        "delta_actions": False,
        "discrete_state": False,  # and pi0.5 has no state token: this policy does not see the robot's state
        "action_horizon": 10,
        "max_token_len": 200,
        "action_dim": 32,
        "image_size_px": 224,
    },
}
