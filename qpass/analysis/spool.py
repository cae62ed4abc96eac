"""`Spool`: batches of arrays, written once and read often, in memory or on disk as they grow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from qpass.errors import DataError

MEMORY_BYTES = 64 << 20
"""What is kept in memory before everything goes to an unnamed temporary file."""


class Spool:
    """Lists of arrays in the order they were added; memory does not grow beyond `MEMORY_BYTES`."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - lives as long as the spool
        self._lengths: list[int] = []

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Append one list of arrays.

        Raises
        ------
        DataError
            If the disk does not take it.
        """
        try:
            self._file.seek(0, 2)
            for array in arrays:
                np.save(self._file, array, allow_pickle=False)
            self._file.flush()
        except OSError as e:
            raise DataError(
                f"cannot keep a batch ({e.strerror})",
                where="temporary file",
                hint=f"make room in {tempfile.gettempdir()}, set TMPDIR to another folder, or give fewer batches",
            ) from e
        self._lengths.append(len(arrays))

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """One pass over everything added; only one pass at a time."""
        self._file.seek(0)
        for length in self._lengths:
            yield [np.load(self._file, allow_pickle=False) for _ in range(length)]
