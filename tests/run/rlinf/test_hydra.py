"""Defaults lists, packages, interpolations as Hydra composes them; files that are no YAML."""

import pytest

from pirl_jax.run.rlinf import hydra

pytest.importorskip("omegaconf", reason="omegaconf is not installed")


@pytest.fixture
def written(tmp_path):
    """Writes files and loads the first of them."""

    def load(files, stand_ins=()):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return hydra.load(tmp_path / next(iter(files)), dict(stand_ins))

    return load


def test_files_of_a_defaults_list_lie_where_their_packages_say(written):
    found = written(
        {
            "main.yaml": "defaults:\n  - env/libero@env.train\n  - env/eval: libero\n"
            "  - model@actor.model: pi0\n  - override hydra/job_logging: stdout\n"
            "  - optional gone/away@x\nactor: {model: {steps: 3}}\n",
            "env/libero.yaml": "suite: libero_goal\nseed: 0\n",
            "env/eval/libero.yaml": "suite: libero_10\n",
            "model/pi0.yaml": "steps: 4\nsize: ${actor.model.steps}\n",
        }
    )
    assert found.values == {
        "env.train.suite": "libero_goal",
        "env.train.seed": 0,
        "env.eval.suite": "libero_10",
        "actor.model.steps": 3,  # what the file says itself counts most
        "actor.model.size": 3,
    }
    assert [entry.file for entry in found.absent] == ["gone/away"]


def test_the_place_of_self_the_header_and_nested_lists(written):
    found = written(
        {
            "main.yaml": "defaults:\n  - _self_\n  - group/a\n  - _b_\nx: 1\n",
            "group/a.yaml": "# @package _global_\ndefaults:\n  - /group/c@inner\nx: 2\n",
            "group/c.yaml": "deep: True\n",
            "_b_.yaml": "y: 3\n",
        }
    )
    assert found.values == {"x": 2, "inner.deep": True, "y": 3}


def test_the_search_path_of_a_variable(written, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere"
    (other / "env").mkdir(parents=True)
    (other / "env" / "libero.yaml").write_text("suite: libero_10\n")
    main = "defaults: [env/libero@env.train]\nhydra:\n  searchpath: ['file://${oc.env:THERE}/']\n"
    monkeypatch.delenv("THERE", raising=False)
    known = {"env/libero": {"suite": "stand-in"}}
    found = written({"main.yaml": main}, known)
    assert found.values["env.train.suite"] == "stand-in" and len(found.absent) == 1
    assert "THERE" in found.unresolved["hydra.searchpath"]
    monkeypatch.setenv("THERE", str(other))
    found = written({"main.yaml": main}, known)
    assert found.values["env.train.suite"] == "libero_10" and not found.absent


def test_interpolations_that_stand_for_nothing_are_named_and_no_end(written):
    text = "a: ${b.c}\nb: {d: 1}\ne: ${multiply:${b.d},6}\nf: ???\ng: ${nobody:1}\nh: {}\ni: [1]\n"
    found = written({"main.yaml": text})
    assert found.values == {"b.d": 1, "e": 6, "h": {}, "i": [1]}
    assert found.unresolved.keys() == {"a", "f", "g"}
    assert "b.c" in found.unresolved["a"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: [1\n", "no YAML"),
        ("a: {b: ${\n", "no YAML"),
        ("- 1\n- 2\n", "YAML of a list"),
        ("1\n", "no YAML"),
        ("a: 1\na: 2\n", "no YAML"),
        ("\t\n", "no YAML"),
        ("defaults: 3\n", "defaults that are no list"),
        ("defaults: [main]\n", "includes itself"),
        ("x: " + "[" * 3000 + "]" * 3000, "nest"),
        ("a: &a [1]\nb: [" + "*a, " * 17 + "]\n", "more than 16 aliases"),
        ("a: \0\n", "no YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "no YAML"),
    ],
)
def test_what_is_no_configuration_is_one_sentence(text, said, written):
    with pytest.raises(ValueError, match=r"main\.yaml") as error:
        written({"main.yaml": text})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_without_omegaconf_the_sentence_names_the_extra(written, monkeypatch):
    monkeypatch.setattr(hydra.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pirl_jax\[rlinf\]'"):
        written({"main.yaml": "a: 1\n"})
