"""`pirl diagnose` on files: finished, growing, damaged and foreign ones."""

import json

import pytest

from pirl_jax import diagnose
from tests.monitor import test_diagnosis


@pytest.fixture
def run(tmp_path):
    """A run that explores too much, in the middle of a line."""
    rows = test_diagnosis.rows(rollout__exploration_gap=0.37)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"iteration": 10, "env/succ')
    return tmp_path


@pytest.mark.parametrize("name", ["", "metrics.jsonl"])
def test_what_to_change_comes_first(run, name, capsys):
    before = {path: path.read_bytes() for path in run.iterdir()}
    output = run.parent / "new" / "diagnosis.json"
    diagnose.main(["pirl diagnose", str(run / name), f"--output={output}"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("next: exploring costs 37 points")
    asked = [line for line in out if line[:1].isdigit()]
    assert len(asked) == len(test_diagnosis.SICK)
    assert [one["verdict"] for one in json.loads(output.read_text())].count("look") == 1
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "is no file; give the directory of a run"),
        ("", "holds no iteration yet; give the directory of a run that has begun"),
        ('{"iteration": 1, "env/success_once": [3]}\n', "has a metric 'env/success_once'"),
        ('{"loss": 1}\n', "metrics.jsonl"),
        ("PK\x03\x04\n", "metrics.jsonl"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_sentence(content, said, tmp_path, capsys):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as ending:
        diagnose.main(["pirl diagnose", str(tmp_path)])
    complaint = capsys.readouterr().err
    assert ending.value.code == 2 and complaint.count("\n") == 1
    assert said in complaint and str(tmp_path) in complaint
