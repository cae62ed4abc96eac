"""Layers as matrix products: rows of the weight times patches of the input.

Every layer computes, at each position of its output, ``y = rows @ patch`` for each group of channels: a convolution's
patch is the window of its input that the position sees (im2col), zeros of the padding included; a matrix product's is
one row of its input. ``conv2d_transpose`` is the convolution of its input with zeros put in between the pixels
(Dumoulin and Visin 2016, *A guide to convolution arithmetic*, section 4), its kernel turned by half a turn.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.ir.op import Op
from qpass.ir.schema import FAMILIES

Floats: TypeAlias = npt.NDArray[np.floating]


def to_rows(weight: np.ndarray, op: Op) -> np.ndarray:
    """The weight of `op` as rows: [groups, outputs of a group, length of a patch].

    Raises
    ------
    QuantError
        If the weight does not fit the op.
    """
    family, groups = FAMILIES[op.type], op.int_attr("groups", 1)
    if family == "matmul":
        if weight.ndim != 2:
            raise _unfit(op, f"its weight has shape {list(weight.shape)}, expected two dimensions")
        return (weight if _turned(op) else weight.T)[None]
    if weight.ndim != 4 or groups < 1 or weight.shape[0] % groups:
        raise _unfit(op, f"a weight of shape {list(weight.shape)} does not go into {groups} groups")
    if family == "conv2d_transpose":  # [in, out / groups, h, w], the inputs of a group together
        split = weight.reshape(groups, -1, *weight.shape[1:])[..., ::-1, ::-1]
        return split.swapaxes(1, 2).reshape(groups, weight.shape[1], -1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def from_rows(rows: np.ndarray, op: Op, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this shape whose rows these are: ``from_rows(to_rows(w, op), op, w.shape)`` is w."""
    family = FAMILIES[op.type]
    if family == "matmul":
        matrix: np.ndarray = rows[0]
        return matrix if _turned(op) else matrix.T
    if family == "conv2d_transpose":
        split = rows.reshape(len(rows), shape[1], -1, *shape[2:]).swapaxes(1, 2)
        turned: np.ndarray = split.reshape(shape)[..., ::-1, ::-1]
        return turned
    return rows.reshape(shape)


def to_patches(x: np.ndarray, op: Op, kernel: tuple[int, ...]) -> np.ndarray:
    """What the rows of `op` are multiplied by: [groups, length of a patch, positions], in the dtype of `x`.

    Parameters
    ----------
    x : np.ndarray
        The op's input activation.
    op : Op
    kernel : tuple of int
        Shape of the weight.

    Raises
    ------
    QuantError
        If the op has attributes that are not known here, or `x` does not fit.
    """
    if FAMILIES[op.type] == "matmul":
        return _features(x, op, kernel)
    if x.ndim != 4 or op.attr("data_format", "NCHW") not in ("NCHW", "AnyLayout"):
        raise _unfit(op, f"input of {x.ndim} dimensions, data_format {op.attr('data_format')!r}: expected NCHW")
    groups, window = op.int_attr("groups", 1), kernel[2:]
    strides = _pair(op, "strides")
    dilations = (1, 1) if op.attr("padding_algorithm") == "SAME" else _pair(op, "dilations")
    pads = _pads(op, x.shape[2:], window, strides)
    if FAMILIES[op.type] == "conv2d_transpose":
        x, pads = _stuffed(x, op, window, strides, dilations, pads)
        strides = (1, 1)
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, window, strict=True)]
    if x.shape[2] < spans[0] or x.shape[3] < spans[1] or x.shape[1] % groups:
        raise _unfit(op, f"input of shape {list(x.shape)}, padded, does not fit its weight {list(kernel)}")
    seen = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    seen = seen[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    n, c, h, w = seen.shape[:4]
    split = seen.reshape(n, groups, c // groups, h, w, *window)
    return split.transpose(1, 2, 5, 6, 0, 3, 4).reshape(groups, c // groups * window[0] * window[1], n * h * w)


def _features(x: np.ndarray, op: Op, kernel: tuple[int, ...]) -> np.ndarray:
    length = kernel[1] if _turned(op) else kernel[0]
    if op.attr("trans_x") or op.attr("transpose_X"):
        x = x.swapaxes(-1, -2)
    columns = op.int_attr("x_num_col_dims", 1) if op.type == "mul" else x.ndim - 1
    features = x.reshape(int(np.prod(x.shape[:columns])), -1)
    if features.shape[1] != length or op.int_attr("y_num_col_dims", 1) != 1:
        raise _unfit(op, f"input of shape {list(x.shape)} does not fit its weight {list(kernel)}")
    alpha = op.attr("alpha", 1.0)
    if isinstance(alpha, float) and alpha != 1.0:
        features = features * np.float32(alpha)
    return features.T[None]


def _stuffed(
    x: np.ndarray,
    op: Op,
    window: tuple[int, ...],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> tuple[np.ndarray, tuple[tuple[int, int], tuple[int, int]]]:
    """The input of a transposed convolution with zeros between its pixels, and what to pad around it."""
    if op.attr("output_size") or op.input("OutputSizeTensor"):
        raise _unfit(op, "its output size is given apart")
    n, c, h, w = x.shape
    made = np.zeros((n, c, (h - 1) * strides[0] + 1, (w - 1) * strides[1] + 1), x.dtype)
    made[:, :, :: strides[0], :: strides[1]] = x
    more = op.attr("output_padding") or (0, 0)
    extra = [int(e) for e in more] if isinstance(more, tuple) else [0, 0]
    reach = [d * (k - 1) for d, k in zip(dilations, window, strict=True)]
    around = [(reach[i] - pads[i][0], reach[i] - pads[i][1] + extra[i]) for i in (0, 1)]
    if min(min(side) for side in around) < 0:
        raise _unfit(op, "it pads by more than its kernel reaches")
    return made, (around[0], around[1])


def _pads(
    op: Op, size: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding before and after each axis (Paddle, phi/kernels/cpu/conv_util.h, UpdatePaddingAndDilation).

    SAME also takes dilations for 1 there.
    """
    how = op.attr("padding_algorithm", "EXPLICIT")
    if how == "VALID":
        return (0, 0), (0, 0)
    if how == "SAME":
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(size, strides, window, strict=True)]
        if FAMILIES[op.type] == "conv2d_transpose":
            raise _unfit(op, "SAME padding of a transposed convolution")
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    given = op.attr("paddings", (0, 0))
    sides = [int(p) for p in given] if isinstance(given, tuple) else []
    if len(sides) == 2:
        return (sides[0], sides[0]), (sides[1], sides[1])
    if len(sides) == 4:
        return (sides[0], sides[1]), (sides[2], sides[3])
    raise _unfit(op, f"paddings {given!r}, expected 2 or 4 numbers")


def _pair(op: Op, name: str) -> tuple[int, int]:
    value = op.attr(name, (1, 1))
    if not isinstance(value, tuple) or len(value) != 2:
        raise _unfit(op, f"{name} is {value!r}, expected two numbers")
    return int(value[0]), int(value[1])


def _turned(op: Op) -> bool:
    return bool(op.attr("trans_y") or op.attr("transpose_Y"))


def _unfit(op: Op, what: str) -> QuantError:
    return QuantError(f"the layer cannot be written as a product of rows and patches: {what}", where=str(op))
