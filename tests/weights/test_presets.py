import pytest

from configs import base
from pirl_jax import config
from pirl_jax.weights import presets


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_a_preset_is_a_part_of_the_configuration_and_gives_the_published_network(name):
    page = base.get_config()
    with page.unlocked():
        page.model.update(presets.PRESETS[name])
    assert page.keys() == base.get_config().keys() and page.model.keys() == base.get_config().model.keys()
    page.model.action_chunk = 5
    model = config.settings(page).policy.model
    assert (model.pi05, model.action_horizon, model.max_token_len) == (
        (True, 10, 200) if "pi05" in name else (False, 50, 48)
    )
    assert (model.paligemma.width, model.expert.width, model.image_tokens, model.action_dim) == (2048, 1024, 256, 32)


def test_the_choices_of_openpi():
    pi0, pi05 = presets.PRESETS["pi0_libero"], presets.PRESETS["pi05_libero"]
    assert (pi0["norm_mode"], pi0["delta_actions"], pi0["discrete_state"]) == ("zscore", True, False)
    assert (pi05["norm_mode"], pi05["delta_actions"], pi05["discrete_state"]) == ("quantile", False, False)
