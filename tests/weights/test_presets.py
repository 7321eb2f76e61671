import pytest

from pirl_jax.recipes import base
from pirl_jax.run import config
from pirl_jax.weights import presets, sources


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_a_preset_is_a_part_of_the_configuration_and_gives_the_published_network(name):
    page = base.get_config()
    page.model.update(presets.named(name))
    assert page.model.preset == name
    model = config.settings(page).policy.network
    assert (model.pi05, model.action_horizon, model.max_token_len) == (
        (True, 10, 200) if "pi05" in name else (False, 50, 48)
    )
    assert (model.paligemma.width, model.expert.width, model.image_tokens, model.action_dim) == (
        2048,
        1024,
        256,
        32,
    )


def test_the_choices_of_openpi():
    pi0, pi05 = presets.PRESETS["pi0_libero"], presets.PRESETS["pi05_libero"]
    assert (pi0["norm_mode"], pi0["delta_actions"], pi0["discrete_state"]) == (
        "zscore",
        True,
        False,
    )
    assert (pi05["norm_mode"], pi05["delta_actions"], pi05["discrete_state"]) == (
        "quantile",
        False,
        False,
    )


@pytest.mark.parametrize(
    "field, value", [("norm_mode", "zscore"), ("delta_actions", True), ("action_horizon", 50)]
)
def test_a_field_that_contradicts_the_preset_is_an_error(field, value):
    page = base.get_config()
    page.model.update(presets.named("pi05_libero"))
    config.settings(page)
    page.model[field], wanted = value, page.model[field]
    with pytest.raises(
        ValueError,
        match=f"^model.preset='pi05_libero' has model.{field}={wanted}; leave these fields alone",
    ):
        config.settings(page)
    page.model.preset = ""
    config.settings(page)


def test_a_checkpoint_of_the_other_family_is_an_error(vectors):
    page = base.get_config()
    page.model.update(presets.named("pi05_libero"))
    with pytest.raises(
        ValueError, match="pi05 is False in the checkpoint and True in the configuration"
    ):
        sources.open_source(
            vectors / "openpi" / "orbax_pi0_tiny", config.settings(page).policy.network
        )
