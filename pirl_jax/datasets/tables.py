"""Parquet files within bounds: columns of numbers, texts and pictures, some rows at a time.

Needs pyarrow.  Knows no data set.
"""

from collections.abc import Iterable, Iterator
import contextlib
import pathlib
from typing import Any

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import needs, pictures, reading

MOST_ROWS = 1 << 26  # of a file
MOST_DIM = 4096  # of a vector
BATCH = 1024  # rows that are decoded at once
BATCH_OF_PICTURES = 16
MOST_TEXT = 1 << 16  # characters


class Table:
    """One open file."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the foot of the file alone.

        Raises: ValueError for what is no such file.
        """
        parquet = needs.library("pyarrow.parquet")
        arrow = needs.library("pyarrow")
        outside.require_file(path)
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty and should be a parquet file; {outside.AGAIN}")
        self.path = path
        self._fault = arrow.ArrowException
        with self._reading():
            # Never mapped: a file that shrinks meanwhile would end the process.
            self._file = parquet.ParquetFile(path, memory_map=False)
            self.columns = self._file.schema_arrow.names
        self.num_rows = self._file.metadata.num_rows
        if not 0 <= self.num_rows <= MOST_ROWS:
            self.close()
            raise ValueError(
                f"{path} says that it has {self.num_rows:,} rows, and at most {MOST_ROWS:,} are "
                f"read; {outside.AGAIN}"
            )

    def require(self, names: Iterable[str]) -> None:
        """That there are these columns."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise ValueError(
                f"{self.path} has no column {missing[0]!r}, but {outside.listed(self.columns)}; "
                f"{outside.AGAIN}"
            )

    def vectors(self, name: str, dim: int, first: int, count: int) -> np.ndarray:
        """Rows of a column of numbers -> float32 [count,dim].

        A column of single numbers is one of dim 1.
        Raises: ValueError for other dims, or what are no numbers.
        """
        found = np.empty((count, dim), np.float32)
        filled = 0
        for column in self._rows(name, first, count, BATCH):
            found[filled : filled + len(column)] = self._as_vectors(column, name, dim)
            filled += len(column)
        return found

    def integers(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows of a column of whole numbers -> int64."""
        found = [np.zeros(0, np.int64)]
        for column in self._rows(name, first, count, BATCH):
            if not _is_integer(column.type) or column.null_count:
                raise self._wrong(
                    name, f"{column.type}, {column.null_count} empty", "whole numbers"
                )
            found.append(column.to_numpy(zero_copy_only=False).astype(np.int64))
        return np.concatenate(found)

    def numbers(self, name: str) -> np.ndarray:
        """All of a column of single numbers -> float64."""
        found = [np.zeros(0)]
        for column in self._rows(name, 0, None, BATCH):
            if column.null_count or not _is_number(column.type):
                raise self._wrong(name, f"{column.type}, {column.null_count} empty", "numbers")
            found.append(column.to_numpy(zero_copy_only=False).astype(np.float64))
        return np.concatenate(found)

    def texts(self, name: str) -> list[str]:
        """All of a column of texts."""
        found = []
        for column in self._rows(name, 0, None, BATCH):
            with self._reading():
                texts = column.to_pylist()
            for text in texts:
                if not isinstance(text, str) or len(text) > MOST_TEXT:
                    raise self._wrong(name, f"{column.type}: {outside.shown(text)}", "texts")
                found.append(text)
        return found

    def picture(self, name: str, row: int) -> np.ndarray:
        """One of a column of encoded pictures -> uint8 [Y,X,3]."""
        (column,) = self._rows(name, row, 1, BATCH_OF_PICTURES)
        with self._reading():
            value = column[0].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise self._wrong(name, f"{column.type} without bytes", "pictures, inside the file")
        return pictures.decode(content, f"{name} in row {row} of {self.path}")

    def close(self) -> None:
        self._file.close()

    def _rows(self, name: str, first: int, count: int | None, batch: int) -> Iterator[Any]:
        """Arrays of a column, from this row on; count None: to the end."""
        self.require([name])
        last = self.num_rows if count is None else first + count
        if not 0 <= first <= last <= self.num_rows:
            raise ValueError(
                f"{self.path} has {self.num_rows} rows and should have {last}; {outside.AGAIN}"
            )
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if start < last and end > first:
                yield from self._of_group(name, group, batch, (first - start, last - start))
            start = end

    def _of_group(self, name: str, group: int, batch: int, wanted: tuple[int, int]) -> Iterator:
        """Of one group; wanted: its rows."""
        first, last = wanted
        start = 0
        with self._reading():
            for part in self._file.iter_batches(batch, row_groups=[group], columns=[name]):
                end = start + part.num_rows
                low = max(first, start)
                high = min(last, end)
                if low < high:
                    yield part.column(name).slice(low - start, high - low)
                start = end
                if start >= last:
                    return

    def _as_vectors(self, column: Any, name: str, dim: int) -> np.ndarray:
        compute = needs.library("pyarrow.compute")
        if _is_number(column.type):
            lengths = np.ones(len(column), np.int64)
            values = column
        elif hasattr(column.type, "value_type") and _is_number(column.type.value_type):
            lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
            values = column.flatten()
        else:
            raise self._wrong(name, str(column.type), "vectors of numbers")
        if (lengths != dim).any():
            found = int(lengths[lengths != dim][0])
            raise self._wrong(name, f"a row of {found} numbers", f"vectors of {dim}")
        # An empty entry becomes not-a-number, which is refused where values are looked at.
        with np.errstate(over="ignore"):  # likewise, what float32 cannot hold
            numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
        return numbers.reshape(-1, dim)

    def _wrong(self, name: str, found: str, wanted: str) -> ValueError:
        return ValueError(
            f"column {name!r} of {self.path} has {outside.shown(found)} and should have {wanted}; "
            f"{outside.AGAIN}"
        )

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return reading.reading(self.path, "parquet file", self._fault)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Table]:
    """A file that is closed again."""
    table = Table(path)
    try:
        yield table
    finally:
        table.close()


def _is_integer(kind: Any) -> bool:
    return needs.library("pyarrow").types.is_integer(kind)


def _is_number(kind: Any) -> bool:
    types = needs.library("pyarrow").types
    return types.is_integer(kind) or types.is_floating(kind)
