"""Element types of tensors, and how numpy holds them."""

from __future__ import annotations

import enum

import numpy as np


class DType(enum.Enum):
    """Element type of a tensor; the value is its name in Paddle's Python API."""

    BOOL = "bool"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy dtype that holds it; bfloat16 is held as its uint16 bit pattern, as in Paddle's own Python API."""
        return np.dtype("uint16" if self is DType.BFLOAT16 else self.value)

    @property
    def is_float(self) -> bool:
        """Whether values of this type are real floating-point numbers."""
        return self in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)

    @classmethod
    def of(cls, array: np.ndarray) -> DType:
        """Element type of `array` (uint16 means bfloat16).

        Raises
        ------
        KeyError
            If Paddle has no such tensor type.
        """
        return _OF_NUMPY[array.dtype.name]


_OF_NUMPY = {d.numpy.name: d for d in DType}

NUMPY_NAMES = frozenset(_OF_NUMPY)
"""Names of the numpy dtypes that hold tensors."""
