"""`.pdiparams` bytes <-> parameters: records concatenated in byte order of the parameters' names.

One record, as Paddle's `SerializeToStream(DenseTensor)` writes it (`paddle/fluid/framework/lod_tensor.cc`,
`tensor_util.cc`): uint32 version 0, uint64 number of LoD levels, uint32 tensor version 0, int32 length of a
`TensorDesc` message, the message (`data_type`, `dims`), the raw little-endian data. The file has no names: they come
from the program.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from google.protobuf.message import DecodeError

from qpass.errors import FormatError
from qpass.formats.framework_pb import framework_pb2
from qpass.formats.pdmodel import code_of_dtype, dtype_of_code
from qpass.ir.dtype import DType

_HEAD = struct.Struct("<IQIi")
_MAX_RANK = 9  # DDim::kMaxRank, paddle/common/ddim.h
_MAX_BYTES = 2**63 - 1
_HINT = "the file is truncated or damaged, or is not a .pdiparams (are program and parameters swapped?)"


def decode(buffer: np.ndarray, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """Split a parameter file into arrays that are views of `buffer`.

    Parameters
    ----------
    buffer : np.ndarray
        uint8, 1-D: the bytes of the file (a memory map, or an array in memory).
    names : sequence of str
        The persistable tensors of the program; any order.
    where : str
        Name of the source, for messages.

    Raises
    ------
    FormatError
        If a record is not what it should be, or there are more or fewer records than names.
    """
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    ordered = ordered_names(names)
    for name in ordered:
        if offset == buffer.size:
            raise FormatError(
                f"the file ends after {len(arrays)} of {len(ordered)} parameters; the next is {name!r}",
                where=f"{where}, offset {offset}",
                hint="the parameters do not belong to this program, or the file is truncated",
            )
        arrays[name], offset = decode_record(buffer, offset, f"{where}, offset {offset}, parameter {name!r}")
    if offset != buffer.size:
        raise FormatError(
            f"{buffer.size - offset} bytes are left after the {len(ordered)} parameters of the program",
            where=f"{where}, offset {offset}",
            hint="the parameters do not belong to this program",
        )
    return arrays


def decode_record(buffer: np.ndarray, offset: int, where: str) -> tuple[np.ndarray, int]:
    """Read one record at `offset`; the array (a view of `buffer`) and the offset behind it.

    Raises
    ------
    FormatError
        If the record is damaged, or declares more bytes than there are.
    """
    if offset + _HEAD.size > buffer.size:
        raise FormatError(
            f"{buffer.size - offset} bytes are left, a record header needs {_HEAD.size}", where=where, hint=_HINT
        )
    version, lod_levels, tensor_version, length = _HEAD.unpack(buffer[offset : offset + _HEAD.size].tobytes())
    if version != 0 or tensor_version != 0 or lod_levels != 0:
        raise FormatError(
            f"record header says version {version}, {lod_levels} LoD levels, tensor version {tensor_version}; "
            "expected 0, 0, 0",
            where=where,
            hint=_HINT,
        )
    start = offset + _HEAD.size
    if not 0 < length <= buffer.size - start:
        raise FormatError(
            f"the tensor description says {length} bytes, {buffer.size - start} are left", where=where, hint=_HINT
        )
    dtype, shape = _description(buffer[start : start + length].tobytes(), where)
    start += length
    size = math.prod(shape) * dtype.itemsize
    if size > buffer.size - start:
        raise FormatError(
            f"{dtype.name}{list(shape)} needs {size} bytes, {buffer.size - start} are left", where=where, hint=_HINT
        )
    data = buffer[start : start + size]
    return np.frombuffer(data.data, dtype=dtype).reshape(shape), start + size


def _description(message: bytes, where: str) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    desc = framework_pb2().VarType.TensorDesc()
    try:
        desc.ParseFromString(message)
    except (DecodeError, RecursionError) as e:
        raise FormatError(f"not a tensor description ({e})", where=where, hint=_HINT) from e
    if not desc.IsInitialized() or _encode_description(desc.data_type, desc.dims) != message:
        raise FormatError(
            f"the tensor description ({message[:40].hex(' ')}) has no known element type, or has unknown fields",
            where=where,
            hint=_HINT,
        )
    dtype = dtype_of_code(desc.data_type, where).numpy.newbyteorder("<")
    shape = tuple(desc.dims)
    if any(d < 0 for d in shape):
        raise FormatError(f"shape {list(shape)} has a negative dimension", where=where, hint=_HINT)
    # Also when a zero among the dimensions makes the array empty: numpy checks the product of the others.
    if len(shape) > _MAX_RANK or math.prod(d for d in shape if d) * dtype.itemsize > _MAX_BYTES:
        raise FormatError(f"shape {list(shape[:20])} is too large for a tensor", where=where, hint=_HINT)
    return dtype, shape


def _encode_description(code: int, shape: Iterable[int]) -> bytes:
    message: bytes = framework_pb2().VarType.TensorDesc(data_type=code, dims=shape).SerializeToString()
    return message


def encode_record(array: np.ndarray, where: str = "parameter") -> Iterator[bytes | memoryview]:
    """The chunks of one record: header, then data.

    Raises
    ------
    FormatError
        If Paddle has no tensors of this element type.
    """
    try:
        dtype = DType.of(array)
    except KeyError:
        raise FormatError(
            f"Paddle has no tensors of {array.dtype}",
            where=where,
            hint=f"convert it to one of {', '.join(d.value for d in DType)}",
        ) from None
    message = _encode_description(code_of_dtype(dtype), array.shape)
    yield _HEAD.pack(0, 0, 0, len(message)) + message
    if array.size:
        yield np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def encode(params: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The chunks of a parameter file: the inverse of `decode`."""
    for name in ordered_names(params):
        yield from encode_record(params[name], f"parameter {name!r}")


def ordered_names(names: Iterable[str]) -> list[str]:
    """Names in the order in which the file stores them: by bytes."""
    return sorted(names, key=str.encode)
