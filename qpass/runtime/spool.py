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

_CHUNK = 1 << 18  # stays in a core's cache


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
        views = [flat_bytes(array).data for array in arrays]
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

    def pick(self, index: int, positions: Sequence[int]) -> list[np.ndarray]:
        """Some arrays of the list of an index, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the disk does not give them back.
        """
        return [self._read(self._items[index][position]) for position in positions]

    def rows(self, index: int, position: int, rows: Sequence[int]) -> np.ndarray:
        """Some rows along axis 0 of one array of the list of an index, as an array that the caller owns.

        Raises
        ------
        DataError
            If the disk does not give them back.
        """
        place = self._items[index][position]
        array = np.empty((len(rows), *place.shape[1:]), place.dtype)
        view = flat_bytes(array).data
        size = len(view) // len(rows) if rows else 0
        for i, row in enumerate(rows):
            self._fill(place, row * size, view[i * size : (i + 1) * size])
        return array

    def shapes(self, index: int) -> list[tuple[int, ...]]:
        """Shapes of the arrays of the list of an index."""
        return [place.shape for place in self._items[index]]

    def holds(self, index: int, arrays: Sequence[np.ndarray]) -> bool:
        """Whether the list of an index is `arrays` bit for bit; stops at the first difference and allocates little.

        Ten times as fast as a digest of the arrays, in memory and on disk (4 MB: 0.4 ms against 4.8 ms for BLAKE2b).

        Raises
        ------
        DataError
            If the disk does not give it back.
        """
        places = self._items[index]
        buffer = np.empty(_CHUNK, np.uint8)
        return len(places) == len(arrays) and all(
            self._is(place, array, buffer) for place, array in zip(places, arrays, strict=True)
        )

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
        self._fill(place, 0, flat_bytes(array).data)
        return array

    def _fill(self, place: _Place, start: int, view: memoryview) -> None:
        """Copy bytes of an array, from `start` on, into `view`."""
        if isinstance(place.at, bytes):
            view[:] = memoryview(place.at)[start : start + len(view)]
            return
        with self._lock:
            assert self._file is not None
            try:
                self._file.seek(place.at + start)
                while view:
                    count = self._file.readinto(view)
                    if not count:
                        raise DataError("a batch that was kept is gone: the file was cut", where="temporary file")
                    view = view[count:]
            except OSError as e:
                raise DataError(f"cannot read a batch back ({e.strerror})", where="temporary file") from e

    def _is(self, place: _Place, array: np.ndarray, buffer: np.ndarray) -> bool:
        if (place.dtype, place.shape) != (array.dtype, array.shape):
            return False
        given = flat_bytes(array)
        for start in range(0, given.size, buffer.size):
            part = given[start : start + buffer.size]
            kept = buffer[: part.size]
            self._fill(place, start, kept.data)
            if not np.array_equal(kept, part):
                return False
        return True


def flat_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, uint8 [N], without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
