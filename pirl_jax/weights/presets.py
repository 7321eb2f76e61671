"""How the published LIBERO policies see and act: every choice of transform, by name.

In a recipe: `config.model.update(presets.named("pi05_libero"))`, which also sets `model.preset`;
settings that contradict their preset are an error.  Source of all values: openpi's training
configurations of these names.  Knows no weights.
"""

from typing import Any


def named(name: str) -> dict[str, Any]:
    """Fields of the `model` section, the name among them."""
    return {"preset": name} | PRESETS[name]


def changed_fields(model: Any) -> list[str]:
    """Fields of a `model` section that differ from those of the preset it names.

    As "model.field=value", with the preset's values.
    """
    if not model.preset:
        return []
    wrong = []
    for field, published in PRESETS[model.preset].items():
        if getattr(model, field) != published:
            wrong.append(f"model.{field}={published}")
    return wrong


PRESETS: dict[str, dict[str, Any]] = {
    "pi0_libero": {
        "pi05": False,
        "norm_mode": "zscore",  # (x - mean) / std
        "delta_actions": True,  # position, rotation relative to the state; the gripper is absolute
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
        # And pi0.5 has no state token: this policy does not see the robot's state.
        "discrete_state": False,
        "action_horizon": 10,
        "max_token_len": 200,
        "action_dim": 32,
        "image_size_px": 224,
    },
}
