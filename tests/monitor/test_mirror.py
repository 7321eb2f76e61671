"""The mirror at Weights & Biases, as far as it can be tried without an account."""

from pirl_jax.monitor import mirror


def test_an_id_that_is_none_is_replaced(tmp_path):
    lost = []
    path = tmp_path / "wandb_id.txt"

    def set_aside(place, reason):
        lost.append(reason)

    first = mirror.identity(path, set_aside)
    assert mirror.identity(path, set_aside) == first and lost == []
    path.write_text("")
    assert mirror.identity(path, set_aside) not in ("", first)
    assert lost == [f"{path} is no id, so that wandb gets another run"]
