"""Arrays as a source of batches: whole arrays cut along axis 0, and the `.npy` and `.npz` files that hold them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from qpass.errors import DataError

_SUFFIXES = (".npy", ".npz")


class ArrayBatches:
    """Whole arrays, cut along axis 0.

    Parameters
    ----------
    arrays : np.ndarray or Mapping[str, np.ndarray]
        One array, or arrays of the same length by name.
    batch_size : int
        The last batch may be smaller.
    where : str
        Name of the source, for messages.

    Raises
    ------
    DataError
        If the lengths differ, an array has no axis 0, or `batch_size` is not positive.
    """

    def __init__(self, arrays: np.ndarray | Mapping[str, np.ndarray], batch_size: int, where: str = "data") -> None:
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, expected a number >= 1", where=where)
        named = arrays if isinstance(arrays, Mapping) else {"": arrays}
        lengths = {name: len(a) if a.ndim else None for name, a in named.items()}
        if not named or None in lengths.values() or len(set(lengths.values())) > 1:
            raise DataError(
                f"cannot be cut into batches: lengths along axis 0 are {lengths}",
                where=where,
                hint="store arrays of the same length, one entry a sample",
            )
        self._arrays = arrays
        self._size = batch_size
        self._length = next(n for n in lengths.values() if n is not None)

    def __iter__(self) -> Iterator[np.ndarray | dict[str, np.ndarray]]:
        for start in range(0, self._length, self._size):
            cut = slice(start, start + self._size)
            if isinstance(self._arrays, Mapping):
                yield {name: array[cut] for name, array in self._arrays.items()}
            else:
                yield self._arrays[cut]


class FileBatches:
    """The batches of several files, one file in memory at a time.

    Parameters
    ----------
    files : tuple of Path
    batch_size : int
    """

    def __init__(self, files: tuple[Path, ...], batch_size: int) -> None:
        self._files = files
        self._size = batch_size

    def __iter__(self) -> Iterator[np.ndarray | dict[str, np.ndarray]]:
        for path in self._files:
            yield from ArrayBatches(read_arrays(path), self._size, str(path))


def is_array_file(path: Path) -> bool:
    """Whether the name is that of an array file."""
    return path.suffix in _SUFFIXES


def array_files(folder: Path) -> tuple[Path, ...]:
    """The array files of a folder, sorted by name.

    Raises
    ------
    DataError
        If there is none.
    """
    files = tuple(sorted(path for path in folder.iterdir() if is_array_file(path)))
    if not files:
        raise DataError("the folder holds no .npy or .npz file", where=str(folder))
    return files


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a `.npy`, the arrays by name of a `.npz`. Pickled objects are never read.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds Python objects.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except OSError as e:
        raise DataError(f"cannot read it ({e.strerror or e})", where=str(path)) from e
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
        objects = "allow_pickle" in str(e)
        raise DataError(
            "holds Python objects, expected plain arrays" if objects else f"not a readable array file ({e})",
            where=str(path),
            hint="write it with numpy.save or numpy.savez, with plain dtypes",
        ) from e
