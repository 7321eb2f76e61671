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


def test_a_second_evaluation_into_one_folder_is_refused(tmp_path):
    with journal.Journal(tmp_path / "episodes.jsonl", HEADER) as notes:
        notes.append({"task": 0})
        whole = notes.path.read_bytes()
        with pytest.raises(ValueError, match=r"is in use by process \d+ on host .*--output"):
            journal.Journal(tmp_path / "episodes.jsonl", HEADER)
        assert notes.path.read_bytes() == whole
    with journal.Journal(tmp_path / "episodes.jsonl", HEADER) as notes:
        assert notes.rows == [{"task": 0}]
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.jsonl"]


def test_a_refused_start_lets_go_of_the_folder(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text("no JSON\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the first line of .* is no JSON .*delete this file"):
            journal.Journal(path, HEADER)
    assert path.read_text() == "no JSON\n"


def test_damaged_rows_are_played_again(tmp_path, capsys):
    path = tmp_path / "episodes.jsonl"
    with journal.Journal(path, HEADER) as notes:
        for task in range(3):
            notes.append({"task": task})
    header, first, _, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first + b'{"ta\0\n' + last)
    with journal.Journal(path, HEADER) as notes:
        assert notes.rows == [{"task": 0}, {"task": 2}]
    said = capsys.readouterr().err
    assert said.startswith(f"warning: line 3 of {path}") and said.count("\n") == 1
