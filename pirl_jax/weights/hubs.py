"""Published files -> a folder here, each verified.  Knows hubs, sizes and checksums, no model.

A hub lists what it has; a file is whole when size and checksum are those of the list.  Hugging Face's own library copies from
there (HF_ENDPOINT, HF_HUB_OFFLINE); ModelScope (MODELSCOPE_DOMAIN) and Google's storage (STORAGE_EMULATOR_HOST) are plain
HTTPS.  What was interrupted continues where it stopped, what arrived damaged is fetched once more.
"""

import base64
from collections.abc import Callable
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request

import numba
import numpy as np
import tqdm

ATTEMPTS = 5  # in a row that bring no new byte
WAIT_S = 0.5  # doubles with every one of them
TIMEOUT_S = 60.0  # of silence on a connection
BLOCK = 1 << 22  # bytes read at a time


@dataclasses.dataclass(frozen=True)
class Source:
    """A place on a hub."""

    hub: str  # key of HUBS
    repository: (
        str  # owner/name; Google: bucket/prefix, where a prefix that ends in "/" is a folder
    )
    kind: str = "model"  # Hugging Face: model | dataset

    @property
    def page(self) -> str:
        """Where a person finds it."""
        if self.hub == "google":
            bucket, _, prefix = self.repository.partition("/")
            return f"gs://{self.repository} (listed at {_google()}/storage/v1/b/{bucket}/o?prefix={prefix})"
        root = _modelscope() + "/models" if self.hub == "modelscope" else _huggingface()
        return f"{root}/{'datasets/' * (self.kind == 'dataset')}{self.repository}"


@dataclasses.dataclass(frozen=True)
class File:
    """One file as its hub describes it."""

    name: str  # below the folder
    size: int  # bytes
    checksum: tuple[str, str] | None = (
        None  # key of DIGESTS, hexadecimal digest; None: the hub gives none
    )
    url: str = ""  # empty where the hub's library copies


def fetch(source: Source, folder: pathlib.Path) -> list[File]:
    """Make `folder` hold all files of a source -> their list.  ConnectionError: the hub, or a file of it, is out of reach;
    ValueError: a file arrived damaged twice."""
    hub = HUBS[source.hub]
    files = hub.listing(source)
    if not files:
        raise ConnectionError(f"{source.page} lists no file")
    outside = [
        file.name
        for file in files
        if not (folder / file.name).resolve().is_relative_to(folder.resolve())
    ]
    if outside:
        raise ValueError(
            f"{source.page} lists {', '.join(outside)}, which would lie outside {folder}; nothing was fetched"
        )
    for _ in range(2):
        wrong = [file for file in files if not whole(folder / file.name, file)]
        if wrong:
            hub.copy(source, wrong, folder)
    wrong = [file.name for file in wrong if not whole(folder / file.name, file)]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} arrived damaged twice from {source.page}; try another network or mirror"
        )
    return files


def whole(path: pathlib.Path, file: File) -> bool:
    """Whether it lies there, size and checksum as listed."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return file.checksum is None or DIGESTS[file.checksum[0]](path) == file.checksum[1]


# ---- checksums -------------------------------------------------------------------------------------------------------


def _sha256(path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git(path) -> str:
    """Name of a file's content in git: what Hugging Face gives for small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _crc32c(path) -> str:
    """The one checksum that Google's storage has for every object, large ones too."""
    crc = np.uint64(0xFFFFFFFF)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):  # only the last one is shorter
            whole_words = len(block) // 8 * 8
            words, rest = (
                np.frombuffer(block[:whole_words], np.uint64),
                np.frombuffer(block[whole_words:], np.uint8),
            )
            crc = np.uint64(
                _crc32c_block(crc, words, rest, _CRC32C)
            )  # numba gives back a Python int
    return f"{int(crc) ^ 0xFFFFFFFF:08x}"


def _crc32c_tables() -> np.ndarray:
    """[k,b]: what byte b does to the remainder k bytes later.  Castagnoli's polynomial, bits reversed."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(0x82F63B78), crc >> 1)
    tables = [crc]
    for _ in range(7):
        tables.append(tables[0][tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.stack(tables).astype(np.uint64)  # numba would mix smaller types to floats


_CRC32C = _crc32c_tables()


@numba.njit
def _crc32c_block(crc, words, rest, tables):
    """Eight bytes a step (little endian)."""
    for word in words:
        word ^= crc
        crc = np.uint64(0)
        for k in range(8):
            crc ^= tables[7 - k, (word >> np.uint64(8 * k)) & np.uint64(0xFF)]
    for byte in rest:
        crc = tables[0, (crc ^ np.uint64(byte)) & np.uint64(0xFF)] ^ (crc >> np.uint64(8))
    return crc


DIGESTS = {"sha256": _sha256, "git": _git, "crc32c": _crc32c}


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def _huggingface() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _library():
    """Not at the top: the other hubs do without, and so do all other commands."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ConnectionError(
            f"{error.name} is not installed; run: pip install huggingface_hub"
        ) from error
    return huggingface_hub


def _list_huggingface(source: Source) -> list[File]:
    huggingface_hub = _library()
    api = huggingface_hub.HfApi(endpoint=_huggingface())
    try:
        entries = list(api.list_repo_tree(source.repository, recursive=True, repo_type=source.kind))
    except (
        Exception
    ) as error:  # its own errors, its HTTP library's and the system's have no base class in common
        raise ConnectionError(_sentence(error)) from error
    found = [entry for entry in entries if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
    return [
        File(one.path, one.size, ("sha256", one.lfs.sha256) if one.lfs else ("git", one.blob_id))
        for one in found
    ]


def _copy_huggingface(source: Source, files: list[File], folder: pathlib.Path) -> None:
    huggingface_hub = _library()
    for file in files:
        (folder / file.name).unlink(missing_ok=True)  # else a damaged file counts as present
    try:
        huggingface_hub.snapshot_download(
            source.repository,
            repo_type=source.kind,
            local_dir=folder,
            endpoint=_huggingface(),
            allow_patterns=[file.name for file in files],
        )
    except Exception as error:
        raise ConnectionError(_sentence(error)) from error


# ---- ModelScope, Google ----------------------------------------------------------------------------------------------


def _modelscope() -> str:
    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn")
    return domain if "://" in domain else f"https://{domain}"


def _list_modelscope(source: Source) -> list[File]:
    root = f"{_modelscope()}/api/v1/models/{source.repository}/repo"
    entries = _json(f"{root}/files?Revision=master&Recursive=true")["Data"]["Files"]
    return [
        File(
            entry["Path"],
            entry["Size"],
            ("sha256", entry["Sha256"]) if entry.get("Sha256") else None,
            f"{root}?Revision=master&FilePath={urllib.parse.quote(entry['Path'], safe='')}",
        )
        for entry in entries
        if entry["Type"] != "tree"
    ]


def _google() -> str:
    return os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")


def _list_google(source: Source) -> list[File]:
    bucket, _, prefix = source.repository.partition("/")
    folder, files, page = prefix.rpartition("/")[0], [], ""
    while True:
        query = urllib.parse.urlencode({"prefix": prefix} | ({"pageToken": page} if page else {}))
        answer = _json(f"{_google()}/storage/v1/b/{bucket}/o?{query}")
        for item in answer.get("items", ()):
            if not item["name"].endswith("/"):  # the mark of a folder
                crc = base64.b64decode(item["crc32c"]).hex()
                url = f"{_google()}/storage/v1/b/{bucket}/o/{urllib.parse.quote(item['name'], safe='')}?alt=media"
                files.append(
                    File(
                        item["name"].removeprefix(f"{folder}/"),
                        int(item["size"]),
                        ("crc32c", crc),
                        url,
                    )
                )
        page = answer.get("nextPageToken", "")
        if not page:
            return files


def _json(url: str) -> dict:
    def read():
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return True, json.loads(response.read())

    return _patiently(url, read)


def _copy_urls(source: Source, files: list[File], folder: pathlib.Path) -> None:
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        with tqdm.tqdm(
            total=file.size, unit="B", unit_scale=True, desc=file.name, disable=None
        ) as bar:
            _patiently(
                file.url,
                lambda file=file, unfinished=unfinished, bar=bar: _continue(file, unfinished, bar),
                have=lambda unfinished=unfinished: _size(unfinished),
            )
        os.replace(unfinished, path)


def _continue(file: File, path: pathlib.Path, bar) -> tuple[bool, None]:
    """Append what one connection brings -> whether the file has its size."""
    have = _size(path) if _size(path) <= file.size else 0  # more is of an older version
    bar.update(have - bar.n)
    if have < file.size or not path.is_file():
        request = urllib.request.Request(
            file.url, headers={"Range": f"bytes={have}-"} if have else {}
        )
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT_S) as response,
            path.open("ab" if response.status == 206 else "wb") as out,
        ):  # 200: all of it, from the start
            while block := response.read(BLOCK):
                out.write(block)
                bar.update(len(block))
    return _size(path) == file.size, None


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _patiently(url: str, work: Callable, have: Callable[[], int] = int):
    """Repeat `work` -> (complete, result) until it is complete -> result.  Gives up when the server refuses, or after
    ATTEMPTS in a row without more of what `have` counts."""
    failures, cause = 0, ""
    while failures < ATTEMPTS:
        before = have()
        try:
            complete, result = work()
            if complete:
                return result
            cause = f"the connection ended after {have()} bytes"
        except urllib.error.HTTPError as error:
            cause = _sentence(error)
            if error.code < 500 and error.code != 429:  # it will not change its mind
                break
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            cause = _sentence(error)
        failures = 0 if have() > before else failures + 1
        if failures < ATTEMPTS:
            time.sleep(WAIT_S * 2**failures)
    raise ConnectionError(f"{url}: {cause}")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclasses.dataclass(frozen=True)
class Hub:
    listing: Callable[[Source], list[File]]
    copy: Callable[[Source, list[File], pathlib.Path], None]


HUBS = {
    "huggingface": Hub(_list_huggingface, _copy_huggingface),
    "modelscope": Hub(_list_modelscope, _copy_urls),
    "google": Hub(_list_google, _copy_urls),
}
