"""`Params`: the parameters of a model, name -> read-only array, kept apart from structure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np


class Params(Mapping[str, np.ndarray]):
    """Immutable mapping from parameter name to read-only array, in byte order of the names.

    Arrays may be views of a memory-mapped file; a changed parameter replaces its array and leaves the others alone.
    bfloat16 parameters are held as uint16 bit patterns.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        The arrays; each is marked read-only.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        self._arrays = {name: _read_only((arrays or {})[name]) for name in sorted(arrays or {}, key=str.encode)}
        self._digests: dict[str, str] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        """Same names, and each array equal in dtype, shape and bytes."""
        if not isinstance(other, Params):
            return NotImplemented
        if self is other:
            return True
        return self._arrays.keys() == other._arrays.keys() and all(
            same_array(array, other._arrays[name]) for name, array in self._arrays.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Params], tuple[dict[str, np.ndarray]]]:
        """For pickle: arrays that other processes mark read-only again, views of files as plain arrays."""
        return Params, ({name: np.asarray(array) for name, array in self._arrays.items()},)

    def __repr__(self) -> str:
        return f"Params({len(self)} arrays, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def digest(self, name: str) -> str:
        """SHA-256 over dtype, shape and little-endian bytes of one parameter, in hex; computed once."""
        if name not in self._digests:
            array = self._arrays[name]
            h = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
            h.update(np.ascontiguousarray(array).data)
            self._digests[name] = h.hexdigest()
        return self._digests[name]

    def replaced(self, updates: Mapping[str, np.ndarray], drops: Iterable[str] = ()) -> Params:
        """A copy with `updates` set and `drops` left out; untouched arrays and their digests are shared."""
        gone = set(drops)
        arrays = {n: a for n, a in self._arrays.items() if n not in gone}
        arrays.update(updates)
        made = Params(arrays)
        made._digests = {n: d for n, d in self._digests.items() if n in arrays and n not in updates}
        return made


def _read_only(array: np.ndarray) -> np.ndarray:
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def same_array(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal in dtype, shape and bytes."""
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
