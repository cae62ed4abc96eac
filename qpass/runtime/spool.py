"""`Spool`: lists of arrays, written once and read often, in memory or on disk as they grow."""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import DataError

MEMORY_BYTES = 64 << 20
"""What a spool keeps in memory unless told otherwise; the rest goes to an unnamed temporary file."""


@dataclass(frozen=True)
class _Place:
    """Where one array is: its bytes, or the offset of them in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    at: bytes | int


class Spool:
    """Lists of arrays in the order they were added; any number of threads may add and read.

    Parameters
    ----------
    memory_bytes : int, optional
        How much of the arrays is kept in memory; default `MEMORY_BYTES`.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._room = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._items: list[list[_Place]] = []
        self._file: io.FileIO | None = None
        self._end = 0
        self._lock = threading.Lock()

    def add(self, arrays: Sequence[np.ndarray]) -> int:
        """Append one list of arrays of plain dtypes; its index.

        Raises
        ------
        DataError
            If the disk does not take it; what was added before stays readable.
        """
        views = [_as_bytes(array) for array in arrays]
        size = sum(view.nbytes for view in views)
        with self._lock:
            keep = size <= self._room
            places: Sequence[bytes | int] = [view.tobytes() for view in views] if keep else self._write(views)
            if keep:
                self._room -= size
            self._items.append([_Place(a.dtype, a.shape, at) for a, at in zip(arrays, places, strict=True)])
            return len(self._items) - 1

    @property
    def disk_bytes(self) -> int:
        """Size of what is on disk."""
        return self._end

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """The list of an index, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the disk does not give it back.
        """
        return [self._read(place) for place in self._items[index]]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """One pass over everything added; any number of passes at a time."""
        for index in range(len(self)):
            yield self[index]

    def _write(self, views: Sequence[memoryview]) -> Sequence[int]:
        """Append to the file; the offsets."""
        offsets = []
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the spool
            end = self._file.seek(self._end)
            for view in views:
                offsets.append(end)
                while view:
                    written = self._file.write(view)
                    view, end = view[written:], end + written
        except OSError as e:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._end)
            raise DataError(
                f"cannot keep a batch ({e.strerror})",
                where="temporary file",
                hint=f"make room in {tempfile.tempdir or 'the temporary folder'}, set TMPDIR to another folder, "
                "or give fewer batches",
            ) from e
        self._end = end
        return offsets

    def _read(self, place: _Place) -> np.ndarray:
        array = np.empty(place.shape, place.dtype)
        view = _as_bytes(array)
        if isinstance(place.at, bytes):
            view[:] = place.at
            return array
        with self._lock:
            assert self._file is not None
            try:
                self._file.seek(place.at)
                while view:
                    count = self._file.readinto(view)
                    if not count:
                        raise DataError("a batch that was kept is gone: the file was cut", where="temporary file")
                    view = view[count:]
            except OSError as e:
                raise DataError(f"cannot read a batch back ({e.strerror})", where="temporary file") from e
        return array


def _as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
