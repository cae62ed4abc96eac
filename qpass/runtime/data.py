"""`Batches`: whatever the user calls data, as checked batches that can be gone over again."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from qpass.errors import DataError, UsageError
from qpass.ir.model import Model, Port
from qpass.runtime.arrays import ArrayBatches, FileBatches, array_files, is_array_file, read_arrays
from qpass.runtime.feed import check_finite, checked_feed, warn_spatial

Data: TypeAlias = Iterable[object] | Callable[[], object]
"""A `paddle.io.DataLoader`, any iterable of batches, whole arrays, a function that gives one of them, or `Batches`.

A batch is one array (models with one input), a tuple or list of arrays by feed order, or a dict of arrays by feed name;
arrays may be Paddle tensors. Further elements (labels) are passed over. Whole arrays (`numpy.ndarray`, or a dict of
them by feed name) are cut along axis 0.
"""

CACHE_BYTES = 256 << 20
"""How much of a generator is kept, so that it can be gone over again."""


class Batches:
    """Batches of user data, each checked against the model's inputs as it is read.

    Parameters
    ----------
    feeds : sequence of Port
        The model's inputs.
    data : Data
    batch_size : int
        Where whole arrays are cut.
    limit : int, optional
        Stop after that many batches.
    cache_bytes : int
        A generator can be read only once: up to so many bytes of it are kept for further passes.

    Raises
    ------
    DataError
        If `data` is nothing that can be gone over, or `limit` is not positive.
    """

    def __init__(
        self,
        feeds: Sequence[Port],
        data: Data,
        *,
        batch_size: int = 32,
        limit: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if limit is not None and limit < 1:
            raise DataError(f"the number of batches is {limit}, expected a number >= 1")
        self.feeds = tuple(feeds)
        self._limit = limit
        self._digest: str | None = None
        self._warned = False
        self._source: Iterable[object] = _source(data, batch_size, cache_bytes)

    @classmethod
    def of(cls, model: Model, data: Data, *, batch_size: int = 32, limit: int | None = None) -> Batches:
        """Batches for a model; the same object when `data` are already batches for its inputs and no limit is given."""
        if isinstance(data, Batches) and limit is None and data.feeds == model.feeds:
            return data
        return cls(model.feeds, data, batch_size=batch_size, limit=limit)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """One pass: arrays by feed name, batch by batch.

        Raises
        ------
        DataError
            If a batch does not fit the model's inputs or holds NaN, the source fails, or there is no batch at all.
        """
        digest = hashlib.sha256()
        count = 0
        for item in itertools.islice(_guarded(self._source), self._limit):
            where = f"batch {count + 1}"
            batch = as_feed(self.feeds, item, where)
            if not self._warned:
                self._warned = True
                warn_spatial(self.feeds, batch, where)
            if self._digest is None:
                for name, array in batch.items():
                    digest.update(f"{name}\0{array.dtype.str}{array.shape}".encode())
                    digest.update(array.data)
            count += 1
            yield batch
        if not count:
            raise DataError(
                "there is no batch",
                where="data",
                hint="the source yields nothing; was it a generator that had been read before?",
            )
        self._digest = self._digest or digest.hexdigest()

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all batches, in hex; of the first complete pass.

        A loader that shuffles has another digest each time it is made.
        """
        if self._digest is None:
            for _ in self:
                pass
        return self._digest or ""


def as_feed(feeds: Sequence[Port], item: object, where: str) -> dict[str, np.ndarray]:
    """One item of a source of batches as checked arrays by feed name.

    Parameters
    ----------
    feeds : sequence of Port
        The model's inputs.
    item : object
        A batch in any of the forms of `Data`.
    where : str
        Name of the batch, for messages.

    Raises
    ------
    DataError
        If it does not fit the inputs or holds NaN.
    """
    batch = checked_feed(feeds, _named(feeds, item, where), where)
    check_finite(batch, where)
    return batch


def load_data(spec: str | Path, *, batch_size: int = 32) -> Data:
    """Data from a command-line word.

    Parameters
    ----------
    spec : str or Path
        A `.npz` (arrays by feed name, or ``x`` for models with one input), a `.npy`, a folder of them, or
        ``module:function``.
    batch_size : int
        Where whole arrays are cut.

    Raises
    ------
    DataError
        If the file or folder is missing or unreadable, or the function cannot be imported.
    """
    path = Path(spec)
    if path.is_dir():
        return FileBatches(array_files(path), batch_size)
    if path.is_file() or is_array_file(path):
        if path.is_file() and not is_array_file(path):
            raise DataError("unknown kind of data file, expected .npz or .npy", where=str(path))
        return ArrayBatches(read_arrays(path), batch_size, str(path))
    if ":" not in str(spec):
        raise DataError(
            "no such file or folder", where=str(spec), hint="give a .npz, a .npy, a folder of them, or module:function"
        )
    try:
        return _Called(load_function(str(spec)), batch_size, CACHE_BYTES)
    except UsageError as e:
        raise DataError(e.what, where=e.where, hint=e.hint) from e


def load_function(spec: str) -> Callable[..., object]:
    """The function named by ``module:function``; modules of the current folder are found too.

    Raises
    ------
    UsageError
        If the module cannot be imported, or has no such function.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UsageError("expected module:function", where=spec, hint="for example my_data:calibration")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as e:  # user code: it may raise anything
        raise UsageError(
            f"cannot import {module_name!r} ({type(e).__name__}: {e})",
            where=spec,
            hint="run where the module is, or put its folder on PYTHONPATH",
        ) from e
    found: Callable[..., object] | None = getattr(module, name, None)
    if not callable(found):
        what = "has no" if found is None else "has a value, not a function, called"
        raise UsageError(f"{module_name!r} {what} {name!r}", where=spec)
    return found


class _Replay:
    """An iterator that can be read once, kept as far as it was read."""

    def __init__(self, iterator: Iterator[object], cache_bytes: int) -> None:
        self._iterator = iterator
        self._kept: list[object] = []
        self._room = cache_bytes
        self._lost = False

    def __iter__(self) -> Iterator[object]:
        if self._lost:
            raise DataError(
                "the data come from a generator that was read before and is too large to be kept",
                where="data",
                hint="pass a list, a DataLoader, or a function that returns a new generator",
            )
        yield from self._kept
        for item in self._iterator:
            self._room -= _nbytes(item)
            if self._room < 0:
                self._lost = True
                self._kept.clear()
            else:
                self._kept.append(item)
            yield item


class _Called:
    """What a function gives; it is called again for every pass when it gives a generator."""

    def __init__(self, function: Callable[[], object], batch_size: int, cache_bytes: int) -> None:
        self._function = function
        self._args = (batch_size, cache_bytes)
        self._result: Iterable[object] | None = None

    def __iter__(self) -> Iterator[object]:
        if self._result is not None:
            return iter(self._result)
        made = self._function()
        if isinstance(made, Iterator):
            return made
        if not isinstance(made, Iterable):
            raise DataError(f"the data function returned {type(made).__name__}, expected batches", where="data")
        self._result = _source(made, *self._args)
        return iter(self._result)


def _source(data: object, batch_size: int, cache_bytes: int) -> Iterable[object]:
    if isinstance(data, np.ndarray):
        return ArrayBatches(data, batch_size)
    if isinstance(data, Mapping):
        return ArrayBatches({str(name): _array(value, f"data {name!r}") for name, value in data.items()}, batch_size)
    if isinstance(data, Iterator):
        return _Replay(data, cache_bytes)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return data
    if callable(data):
        return _Called(data, batch_size, cache_bytes)
    raise DataError(
        f"data are {type(data).__name__}, expected an iterable of batches, arrays, or a function that returns them",
        where="data",
        hint=_source_hint(data),
    )


def _source_hint(data: object) -> str | None:
    if isinstance(data, (str, bytes, Path)):
        return "a path is read by qpass.runtime.data.load_data"
    return "wrap a dataset in paddle.io.DataLoader" if hasattr(data, "__getitem__") else None


def _guarded(source: Iterable[object]) -> Iterator[object]:
    """The items of `source`; what its code raises becomes a DataError."""
    count = 0
    try:
        for item in source:
            count += 1
            yield item
    except DataError:
        raise
    except Exception as e:  # user code: it may raise anything
        raise DataError(f"the data source raised {type(e).__name__}: {e}", where=f"after batch {count}") from e


def _named(feeds: Sequence[Port], item: object, where: str) -> dict[str, np.ndarray]:
    """One item of the source as arrays by feed name."""
    names = [port.name for port in feeds]
    hint = f"the model expects {[str(port) for port in feeds]}"
    # DataLoader(return_list=False) gives a list with one dict a device
    if isinstance(item, (list, tuple)) and len(item) == 1 and isinstance(item[0], Mapping):
        item = item[0]
    if isinstance(item, Mapping):
        if len(names) == 1 and names[0] not in item and "x" in item:
            return {names[0]: _array(item["x"], f"{where}, input 'x'")}
        missing = [name for name in names if name not in item]
        if missing:
            raise DataError(
                f"inputs {missing} are missing; it has {[str(key) for key in item]}", where=where, hint=hint
            )
        return {name: _array(item[name], f"{where}, input {name!r}") for name in names}
    values = list(item) if isinstance(item, (list, tuple)) else [item]
    if len(values) < len(names):
        raise DataError(f"{len(values)} arrays for {len(names)} inputs", where=where, hint=hint)
    return {n: _array(v, f"{where}, input {n!r}") for n, v in zip(names, values, strict=False)}


def _array(value: object, where: str) -> np.ndarray:
    """An array of a numpy array, a Paddle tensor of any kind, or nested lists."""
    numpy = getattr(value, "numpy", None)
    try:
        array = np.asarray(numpy() if callable(numpy) else value)
    except (ValueError, TypeError, RuntimeError) as e:
        raise DataError(f"{type(value).__name__} is no array ({e})", where=where) from e
    if array.dtype.kind not in "biuf":
        raise DataError(f"{type(value).__name__} of dtype {array.dtype} is no array of numbers", where=where)
    return array


def _nbytes(item: object) -> int:
    if isinstance(item, Mapping):
        return sum(_nbytes(value) for value in item.values())
    if isinstance(item, (list, tuple)):
        return sum(_nbytes(value) for value in item)
    return _array(item, "data").nbytes
