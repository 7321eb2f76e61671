import pytest

from pirl_jax.monitor import journal

HEADER = {"policy": {"name": "random"}, "protocol": {"seed": 1, "init_states": (40, 50)}}


def test_rows_of_earlier_starts_are_there_and_a_half_line_is_not(tmp_path):
    path = tmp_path / "new" / "episodes.jsonl"
    with journal.Journal(path, HEADER) as notes:
        assert notes.rows == []
        notes.append({"task": 0})
        notes.append({"task": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": 2, "succ')
    with journal.Journal(path, HEADER) as notes:
        assert notes.rows == [{"task": 0}, {"task": 1}]
        notes.append({"task": 2})
    assert path.read_bytes() == whole + b'{"task": 2}\n'


def test_a_file_killed_within_its_header_starts_over(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"policy": {"na')
    with journal.Journal(path, HEADER) as notes:
        notes.append({"task": 0})
    with journal.Journal(path, HEADER) as notes:
        assert notes.rows == [{"task": 0}]


def test_another_work_is_refused_and_named(tmp_path):
    path = tmp_path / "episodes.jsonl"
    journal.Journal(path, HEADER).close()
    other = HEADER | {"protocol": {"seed": 2, "init_states": (40, 50)}}
    with pytest.raises(
        ValueError,
        match=r"another evaluation \(protocol.seed: 1 -> 2\); give another folder with --output",
    ):
        journal.Journal(path, other)


def test_a_row_is_on_disk_when_append_returns(tmp_path):
    with journal.Journal(tmp_path / "episodes.jsonl", HEADER) as notes:
        notes.append({"task": 5})
        assert notes.path.read_text().endswith('{"task": 5}\n')
