"""Checksums as hubs publish them, computed on the files that lie here.  Knows no hub."""

from collections.abc import Callable
import dataclasses
import hashlib
import pathlib

import google_crc32c

BLOCK = 1 << 22  # bytes read at a time


@dataclasses.dataclass(frozen=True)
class Checksum:
    """What the content of a file must come to."""

    method: str  # key of DIGESTS
    digest: str  # hexadecimal, lower case

    def fits(self, path: pathlib.Path) -> bool:
        return DIGESTS[self.method](path) == self.digest


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob(path: pathlib.Path) -> str:
    """Name of a file's content in git: what Hugging Face gives for small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _crc32c(path: pathlib.Path) -> str:
    """The one checksum that Google's storage has for every object, large ones too."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = google_crc32c.extend(crc, block)
    return f"{crc:08x}"


DIGESTS: dict[str, Callable[[pathlib.Path], str]] = {
    "sha256": _sha256,
    "git": _git_blob,
    "crc32c": _crc32c,
}
