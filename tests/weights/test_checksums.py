import pytest

from pirl_jax.weights import checksums
from tests import hub_server


@pytest.mark.parametrize(
    "data, digest",
    # RFC 3720, B.4.
    [(b"123456789", "e3069283"), (bytes(32), "8a9136aa"), (b"", "00000000")],
)
def test_crc32c_of_the_standard(tmp_path, data, digest):
    path = tmp_path / "data"
    path.write_bytes(data)
    assert checksums.Checksum("crc32c", digest).fits(path)


def test_crc32c_does_not_depend_on_the_size_of_blocks(tmp_path, monkeypatch):
    path = tmp_path / "data"
    data = bytes(range(256)) * 469
    path.write_bytes(data)
    monkeypatch.setattr(checksums, "BLOCK", 4096)
    expected = f"{hub_server.crc32c(data):08x}"
    assert checksums.DIGESTS["crc32c"](path) == expected, "29 blocks and a rest"


def test_the_name_of_a_content_in_git(tmp_path):
    """`printf 'hello\\n' | git hash-object --stdin`."""
    path = tmp_path / "data"
    path.write_bytes(b"hello\n")
    assert checksums.DIGESTS["git"](path) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_digest_of_other_content_does_not_fit(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"1")
    right = checksums.DIGESTS["sha256"](path)
    assert checksums.Checksum("sha256", right).fits(path)
    path.write_bytes(b"2")
    assert not checksums.Checksum("sha256", right).fits(path)
