"""Checks of one batch against a model's inputs: names, dtypes, shapes, finite numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from qpass.errors import DataError
from qpass.ir.dtype import DType
from qpass.ir.model import Port

_SAFE = {("float64", "float32"), ("int32", "int64")}
_SPATIAL = (2, 3)


class ShapeWarning(UserWarning):
    """A spatial size differs from the one the program declares; convolutional models run at other sizes as well."""


def checked_feed(feeds: Sequence[Port], batch: Mapping[str, np.ndarray], where: str = "feed") -> dict[str, np.ndarray]:
    """The batch as arrays that an engine takes: C-contiguous, in feed order, safe casts done.

    Casts that lose nothing a model could tell (float64 to float32, int32 to int64) are done silently.

    Parameters
    ----------
    feeds : sequence of Port
        The model's inputs.
    batch : Mapping[str, np.ndarray]
        Arrays by feed name.
    where : str
        Name of the batch, for messages.

    Raises
    ------
    DataError
        If names, dtypes, ranks, fixed dimensions (other than spatial ones) or batch sizes are wrong, or an array is
        empty.
    """
    names = [port.name for port in feeds]
    if set(batch) != set(names):
        missing = [n for n in names if n not in batch]
        unknown = sorted(set(batch) - set(names))
        parts = [f"missing {missing}"] * bool(missing) + [f"unknown {unknown}"] * bool(unknown)
        raise DataError(
            f"wrong input names: {', '.join(parts)}", where=where, hint=f"the model expects {[str(p) for p in feeds]}"
        )
    arrays = {
        port.name: _checked(port, np.asarray(batch[port.name]), f"{where}, input {port.name!r}") for port in feeds
    }
    sizes = {p.name: arrays[p.name].shape[0] for p in feeds if p.shape and p.shape[0] == -1}
    if len(set(sizes.values())) > 1:
        raise DataError(f"inputs have different batch sizes: {sizes}", where=where)
    return arrays


def _checked(port: Port, array: np.ndarray, where: str) -> np.ndarray:
    array = _cast(port, array, where)
    _check_shape(port, array.shape, where)
    if array.size == 0:
        raise DataError(f"the array is empty: shape {list(array.shape)}", where=where, hint="drop empty batches")
    return np.ascontiguousarray(array).reshape(array.shape)


def _cast(port: Port, array: np.ndarray, where: str) -> np.ndarray:
    if port.dtype is None:
        return array
    want, have = port.dtype.numpy.name, array.dtype.name
    if have == want:
        return array
    if (have, want) in _SAFE:
        if (
            want == "float32"
            and np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0) > 3e38
        ):
            raise DataError("a number does not fit in float32", where=where, hint="scale the data")
        return array.astype(want)
    hint = f"convert it: array.astype('{want}')"
    if port.dtype is DType.FLOAT32 and have == "uint8":
        hint = "convert it to float32, scaled and normalized the way the model was trained"
    raise DataError(f"dtype is {have}, the model expects {port.dtype.value}", where=where, hint=hint)


def _check_shape(port: Port, shape: tuple[int, ...], where: str) -> None:
    if len(shape) != len(port.shape):
        raise DataError(
            f"shape {list(shape)} has rank {len(shape)}, the model expects {port}",
            where=where,
            hint="add the batch dimension: array[None]" if len(shape) + 1 == len(port.shape) else None,
        )
    for axis, (have, want) in enumerate(zip(shape, port.shape, strict=True)):
        if want in (-1, have):
            continue
        if len(shape) == 4 and axis in _SPATIAL:
            continue
        raise DataError(
            f"shape {list(shape)} has {have} at dimension {axis}, the model expects {port}",
            where=where,
            hint="is it channels last? transpose to NCHW" if len(shape) == 4 and shape[3] == port.shape[1] else None,
        )


def check_finite(batch: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse NaN and infinite numbers.

    Raises
    ------
    DataError
        Naming the batch and the input.
    """
    for name, array in batch.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise DataError(
                f"{count} of {array.size} numbers are NaN or infinite",
                where=f"{where}, input {name!r}",
                hint="clean the data",
            )


def warn_spatial(feeds: Sequence[Port], batch: Mapping[str, np.ndarray], where: str) -> None:
    """Warn where heights or widths differ from the declared ones.

    An error would be wrong: the official QAT twin of the PP-OCR classifier declares 32x100, is used at 48x192, and
    runs.
    """
    for port in feeds:
        shape = batch[port.name].shape
        if len(shape) == 4 and any(port.shape[a] not in (-1, shape[a]) for a in _SPATIAL):
            warnings.warn(
                f"{where}, input {port.name!r}: shape {list(shape)}, the program declares {list(port.shape)}",
                ShapeWarning,
                stacklevel=3,
            )
