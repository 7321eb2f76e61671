"""`pirl from-rlinf`: the recipe that it leaves, what it says, and that nothing else is touched."""

import pathlib
import shlex
import sys

import pytest

from pirl_jax import from_rlinf
from pirl_jax.run import recipes

sys.path.insert(0, str(pathlib.Path(__file__).parent / "run" / "rlinf"))
import published


def test_a_recipe_out_of_a_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "spatial.yaml"
    theirs.write_text(published.PPO)
    from_rlinf.main(["pirl from-rlinf", "spatial.yaml"])
    said = capsys.readouterr().out
    assert "carried over (" in said and "not carried over (" in said
    assert "actor.optim.lr = 5e-06" in said and "-> optim.lr=5e-06" in said
    assert "FSDP strategy: mesh.fsdp" in said and "Ray: no counterpart" in said
    assert f"pirl train --config {tmp_path / 'spatial.py'}" in said
    page = recipes.load_recipe("spatial.py")
    assert page == recipes.load_recipe("spatial.yaml") and page.env.suite == "libero_spatial"
    from_rlinf.main(["pirl from-rlinf", "spatial.yaml"])  # its own file may be written again
    assert {path.name for path in tmp_path.iterdir()} == {"spatial.yaml", "spatial.py"}


def test_the_next_command_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(published.PPO)
    output = tmp_path / "my runs" / "a.py"
    from_rlinf.main(["pirl from-rlinf", "a.yaml", f"--output={output}"])
    pasted = capsys.readouterr().out.splitlines()[-1].partition("; ")[2]
    assert shlex.split(pasted) == ["pirl", "train", "--config", str(output)]


def test_what_is_refused_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(published.changed(published.PPO, {"env.train.env_type": "x"}))
    with pytest.raises(SystemExit) as ending:
        from_rlinf.main(["pirl from-rlinf", "a.yaml", "--output=new/a.py"])
    assert ending.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
