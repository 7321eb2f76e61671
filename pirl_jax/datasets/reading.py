"""What a library says of a damaged file becomes one sentence that names it.  Knows no library."""

from collections.abc import Iterator
import contextlib
import pathlib

from pirl_jax.core import outside


@contextlib.contextmanager
def reading(
    path: pathlib.Path, kind: str, *faults: type[BaseException], where: str = ""
) -> Iterator[None]:
    """Around calls of a library.

    kind: what the file is read as.
    faults: what the library raises, besides ValueError and OSError.
    where: the part that is read, where not the whole file is at fault.
    Raises: ValueError for any of them; those that name the file already stay.
    """
    try:
        yield
    except (ValueError, OSError, *faults) as error:
        # UnicodeDecodeError and pyarrow's own are kinds of ValueError.
        if type(error) is ValueError and str(path) in str(error):
            raise
        said = outside.shown(error)
        if where:
            text = f"{where} of {path} cannot be decoded ({said})"
        else:
            text = f"{path} is no {kind}, or a part of one ({said})"
        raise ValueError(f"{text}; {outside.AGAIN}") from error
