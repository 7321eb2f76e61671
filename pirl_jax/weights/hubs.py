"""Published files -> a folder here, each verified.  Knows hubs and what they list, no model.

A hub lists what it has; a file is whole when size and checksum are those of the list.  Hugging
Face's own library copies from there (HF_ENDPOINT, HF_HUB_OFFLINE); ModelScope (MODELSCOPE_DOMAIN)
and Google's storage (STORAGE_EMULATOR_HOST) are plain HTTPS.  What was interrupted continues where
it stopped, what arrived damaged is fetched once more.
"""

import base64
import collections
from collections.abc import Callable, Iterable
import dataclasses
import os
import pathlib
import types
from typing import Any
import urllib.parse

from pirl_jax.core import locks, outside
from pirl_jax.weights import checksums, transfer

FETCHES = 2  # of a file that arrives damaged
MOST_BYTES = 1 << 40  # of one file
MOST_PAGES = 1000  # of a list; a server may name the same one for ever


@dataclasses.dataclass(frozen=True)
class Repository:
    """A place on a hub."""

    hub: str  # key of HUBS
    name: str  # owner/name; Google: bucket/prefix, where a prefix that ends in "/" is a folder
    kind: str = "model"  # Hugging Face: model | dataset

    @property
    def page(self) -> str:
        """Where a person finds it."""
        return HUBS[self.hub].page(self)


@dataclasses.dataclass(frozen=True)
class File:
    """One file as its hub describes it."""

    name: str  # below the folder
    size: int  # bytes
    checksum: checksums.Checksum | None = None  # None: the hub gives none
    url: str = ""  # empty where the hub's library copies


def fetch(repository: Repository, folder: pathlib.Path) -> list[File]:
    """Make `folder` hold all files of a repository -> their list.

    Raises: ConnectionError when the hub, or a file of it, is out of reach; ValueError when a file
    arrived damaged twice, or when the hub lists what no hub would.
    """
    hub = HUBS[repository.hub]
    with outside.named(repository.page):
        files = hub.listing(repository)
    if not files:
        raise ConnectionError(f"{repository.page} lists no file")
    _refuse_strange(folder, files, repository)
    damaged = _not_whole(files, folder)
    if damaged:
        # Two downloads would append to one file.
        with locks.writing(folder, "wait until it is done, then run the same command again"):
            damaged = _copied(hub, repository, damaged, folder)
    if damaged:
        names = ", ".join(file.name for file in damaged)
        raise ValueError(
            f"{names} arrived damaged twice from {repository.page}; try another network or mirror"
        )
    return files


def _copied(
    hub: "Hub", repository: Repository, files: list[File], folder: pathlib.Path
) -> list[File]:
    """-> those that arrived damaged FETCHES times."""
    for _ in range(FETCHES):
        if files:
            hub.copy(repository, files, folder)
            files = _not_whole(files, folder)
    return files


def is_whole(path: pathlib.Path, file: File) -> bool:
    """Whether it lies there, size and checksum as listed."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return file.checksum is None or file.checksum.fits(path)


def _not_whole(files: Iterable[File], folder: pathlib.Path) -> list[File]:
    return [file for file in files if not is_whole(folder / file.name, file)]


def _refuse_strange(folder: pathlib.Path, files: list[File], repository: Repository) -> None:
    """A listing comes from the network: "../../.bashrc" is a name, too."""
    root = folder.resolve()
    strange = [file.name for file in files if not _stays(root, file.name)]
    if strange:
        raise ValueError(
            f"{repository.page} lists {outside.listed(strange)}, which would lie outside {folder}; "
            f"nothing was fetched"
        )
    counts = collections.Counter(file.name for file in files)
    twice = [name for name, count in counts.items() if count > 1]
    without_size = [file.name for file in files if not _is_size(file.size)]
    for what, names in (("twice", twice), ("without a size", without_size)):
        if names:
            raise ValueError(
                f"{repository.page} lists {outside.listed(names)} {what}; nothing was fetched"
            )


def _stays(root: pathlib.Path, name: str) -> bool:
    """Whether it names a file below this folder, on every system and in every terminal."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts:
        return False
    return (root / name).resolve().is_relative_to(root)


def _is_size(size: Any) -> bool:
    return outside.fits(size, int) and 0 <= size <= MOST_BYTES


# ---- Hugging Face --------------------------------------------------------------------------------


def _huggingface_root() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _huggingface_page(repository: Repository) -> str:
    folder = "datasets/" if repository.kind == "dataset" else ""
    return f"{_huggingface_root()}/{folder}{repository.name}"


def _huggingface_hub() -> types.ModuleType:
    """Not imported at the top: the other hubs do without, and so do all other commands."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ConnectionError(
            f"{error.name} is not installed; run: pip install huggingface_hub"
        ) from error
    return huggingface_hub


def _list_huggingface(repository: Repository) -> list[File]:
    library = _huggingface_hub()
    api = library.HfApi(endpoint=_huggingface_root())
    try:
        tree = api.list_repo_tree(repository.name, recursive=True, repo_type=repository.kind)
        entries = list(tree)
    # Its own errors, its HTTP library's and the system's have no base class in common.
    except Exception as error:
        raise ConnectionError(transfer.sentence(error)) from error
    files = []
    for entry in entries:
        if not isinstance(entry, library.hf_api.RepoFile):
            continue  # a folder
        if entry.lfs:
            checksum = checksums.Checksum("sha256", entry.lfs.sha256)
        else:
            checksum = checksums.Checksum("git", entry.blob_id)
        files.append(File(entry.path, entry.size, checksum))
    return files


def _copy_huggingface(repository: Repository, files: list[File], folder: pathlib.Path) -> None:
    library = _huggingface_hub()
    for file in files:
        # Else a damaged file counts as present.
        (folder / file.name).unlink(missing_ok=True)
    try:
        library.snapshot_download(
            repository.name,
            repo_type=repository.kind,
            local_dir=folder,
            endpoint=_huggingface_root(),
            allow_patterns=[file.name for file in files],
        )
    except Exception as error:
        raise ConnectionError(transfer.sentence(error)) from error


# ---- ModelScope ----------------------------------------------------------------------------------


def _modelscope_root() -> str:
    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn")
    return domain if "://" in domain else f"https://{domain}"


def _modelscope_page(repository: Repository) -> str:
    return f"{_modelscope_root()}/models/{repository.name}"


def _list_modelscope(repository: Repository) -> list[File]:
    root = f"{_modelscope_root()}/api/v1/models/{repository.name}/repo"
    answer = transfer.read_json(f"{root}/files?Revision=master&Recursive=true")
    files = []
    for entry in _field(answer, "Data.Files", list):
        if _field(entry, "Type", str) == "tree":
            continue  # a folder
        checksum = None
        if entry.get("Sha256"):
            checksum = checksums.Checksum("sha256", _field(entry, "Sha256", str))
        name = _field(entry, "Path", str)
        url = f"{root}?Revision=master&FilePath={_quoted(name)}"
        files.append(File(name, _field(entry, "Size", int), checksum, url))
    return files


# ---- Google's storage ----------------------------------------------------------------------------


def _google_root() -> str:
    return os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")


def _google_objects(bucket: str) -> str:
    return f"{_google_root()}/storage/v1/b/{bucket}/o"


def _google_page(repository: Repository) -> str:
    bucket, _, prefix = repository.name.partition("/")
    return f"gs://{repository.name} (listed at {_google_objects(bucket)}?prefix={prefix})"


def _list_google(repository: Repository) -> list[File]:
    bucket, _, prefix = repository.name.partition("/")
    folder = prefix.rpartition("/")[0]
    query = {"prefix": prefix}
    files = []
    for _ in range(MOST_PAGES):
        # An answer is one page of the list, and names the next.
        answer = transfer.read_json(f"{_google_objects(bucket)}?{urllib.parse.urlencode(query)}")
        for item in _field(answer, "items", list) if "items" in answer else ():
            if _field(item, "name", str).endswith("/"):
                continue  # the mark of a folder
            files.append(_google_file(item, bucket, folder))
        if not answer.get("nextPageToken"):
            return files
        query["pageToken"] = _field(answer, "nextPageToken", str)
    raise ValueError(f"the list has more than {MOST_PAGES} pages; try another hub")


def _google_file(item: dict, bucket: str, folder: str) -> File:
    name = _field(item, "name", str)
    digest = base64.b64decode(_field(item, "crc32c", str), validate=True).hex()
    return File(
        name=name.removeprefix(f"{folder}/"),
        size=int(_field(item, "size", str)),
        checksum=checksums.Checksum("crc32c", digest),
        url=f"{_google_objects(bucket)}/{_quoted(name)}?alt=media",
    )


# ---- what the hubs that speak plain HTTPS have in common -----------------------------------------


def _field(answer: Any, names: str, kind: type) -> Any:
    """A part of what a hub answers; errors get its page from `fetch`."""
    return outside.part(answer, names, kind, "the listing", transfer.LATER)


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _copy_urls(repository: Repository, files: list[File], folder: pathlib.Path) -> None:
    for file in files:
        transfer.download(file.url, folder / file.name, file.size, title=file.name)


@dataclasses.dataclass(frozen=True)
class Hub:
    """How a hub is spoken to."""

    page: Callable[[Repository], str]
    listing: Callable[[Repository], list[File]]
    copy: Callable[[Repository, list[File], pathlib.Path], None]


HUBS = {
    "huggingface": Hub(_huggingface_page, _list_huggingface, _copy_huggingface),
    "modelscope": Hub(_modelscope_page, _list_modelscope, _copy_urls),
    "google": Hub(_google_page, _list_google, _copy_urls),
}
