"""Fold batch normalization into the convolution or matrix product before it.

With running statistics, batch normalization is an affine map of each channel, and so is what it follows::

    z = x * W + b                                     b may be absent (0)
    y = scale * (z - mean) / sqrt(variance + eps) + beta

    a  = scale / sqrt(variance + eps)
    W' = a W            on the output-channel axis of W
    b' = a (b - mean) + beta
    y  = x * W' + b'

computed in float64 and rounded once to float32. ``[reshape,] linear, [add,] batch_norm`` becomes ``linear, add``: W'
takes the place of W, b' that of beta, and the sum the name of y. Weights that others read too are left alone, and with
them their batch normalization; a shared beta is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from qpass.errors import PassError
from qpass.ir.graph import Decl, ValueRef
from qpass.ir.op import Attr, Op
from qpass.ir.schema import FORWARD
from qpass.rewrite.apply import PatternPass
from qpass.rewrite.edit import Edit
from qpass.rewrite.pattern import Either, Match, Miss, Node, Param, Pattern

_CONV = ("conv2d", "depthwise_conv2d")
_CONV_TRANSPOSE = ("conv2d_transpose", "depthwise_conv2d_transpose")
_MATMUL = ("mul", "matmul", "matmul_v2")
_LINEAR = Either(
    Node((*_CONV, *_CONV_TRANSPOSE), "linear", Filter=Param("w")),
    Node(_MATMUL, "linear", Y=Param("w")),
)
_BIAS = Either(Param("b"), Node(("reshape", "reshape2"), "reshape", X=Param("b")))
_EPSILON = 1e-5  # the default in Paddle, phi/ops/yaml/ops.yaml, batch_norm
_FUSED = ("fuse_with_relu", "fuse_relu", "fuse_activation", "fuse_residual_connection")


class _BatchNorm(Pattern):
    pattern = Node(
        "batch_norm",
        "bn",
        X=Either(Node("elementwise_add", "sum", X=_LINEAR, Y=_BIAS), _LINEAR),
        Scale=Param("scale"),
        Bias=Param("beta"),
        Mean=Param("mean"),
        Variance=Param("variance"),
    )

    def check(self, match: Match) -> Miss | None:
        return next(_obstacles(match), None)

    def rewrite(self, match: Match, e: Edit) -> None:
        bn, linear, beta = match.ops["bn"], match.ops["linear"], match.values["beta"].name
        folded = _folded(match)
        if isinstance(folded, Miss):
            raise PassError(folded.reason, where=str(folded.op))
        weight, bias = folded
        e.set_param(match.values["w"].name, weight)
        if _shared(match, match.values["beta"]):
            beta = e.fresh(beta)
            e.declare(Decl(beta, shape=bias.shape, persistable=True, is_parameter=True))
        e.set_param(beta, bias)
        for name in ("sum", "reshape"):
            if name in match.ops:
                e.remove(match.ops[name])
        product = linear.output(_output_slot(linear))[0]
        axis = 1 if _channel_axis(match) == 1 else -1
        attrs = {"axis": Attr.int(axis), **FORWARD}
        add = Op.make("elementwise_add", {"X": product, "Y": beta}, {"Out": bn.output("Y")}, attrs)
        match.take_over(e, add)


def _obstacles(match: Match) -> Iterator[Miss]:
    bn, linear = match.ops["bn"], match.ops["linear"]
    running = bn.attr("use_global_stats", False) or (
        bn.attr("is_test", False) and not bn.attr("trainable_statistics", False)
    )
    if not running:
        yield match.miss("batch_norm normalizes by the statistics of the batch, not by the running ones")
    for op in (bn, linear):
        for name in _FUSED:
            if op.attr(name):
                yield match.miss(f"{op.type} has {name}={op.attr(name)!r}", op)
        for slot in ("ResidualData", "Bias") if op is linear else ():
            if any(op.input(slot)):
                yield match.miss(f"{op.type} has an operand in slot {slot}", op)
    for ref in match.values.values():
        yield from _bad_value(match, ref)
    if _shared(match, match.values["w"]):
        yield match.miss(f"others use the weight {match.values['w'].name!r} too", "linear")
    folded = _folded(match)
    if isinstance(folded, Miss):
        yield folded


def _bad_value(match: Match, ref: ValueRef) -> Iterator[Miss]:
    array = match.model.params.get(ref.name)
    if array is None:
        yield match.miss(f"parameter {ref.name!r} has no value")
    elif array.dtype != np.float32:
        yield match.miss(f"parameter {ref.name!r} is {array.dtype.name}, expected float32")


def _folded(match: Match) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | Miss:
    """(W', b'), or what is wrong with the shapes or the numbers."""
    channels = _array(match, "scale").size
    scale, beta, mean, variance = arrays = tuple(_array(match, n) for n in ("scale", "beta", "mean", "variance"))
    if any(array.shape != (channels,) for array in arrays):
        return match.miss("scale, bias, mean and variance of batch_norm are not vectors of one length")
    axis = _channel_axis(match)
    if axis is None:
        return match.miss("batch_norm does not normalize the channels that the weight makes", "linear")
    epsilon = match.ops["bn"].attr("epsilon", _EPSILON)
    if not isinstance(epsilon, float):
        return match.miss(f"epsilon is {epsilon!r}, expected a number")
    with np.errstate(all="ignore"):
        gain = scale / np.sqrt(variance + epsilon)
        spread = _spread(match, gain)
        if spread is None:
            return match.miss(f"weight {list(_array(match, 'w').shape)} does not make {channels} channels", "linear")
        bias = _bias(match, channels, axis)
        if bias is None:
            return match.miss("what is added in between is not one number a channel", "sum")
        weight = (spread * _array(match, "w")).astype(np.float32)
        made = (gain * (bias - mean) + beta).astype(np.float32)
    if not (np.isfinite(weight).all() and np.isfinite(made).all()):
        return match.miss("the folded weight or bias is not finite in float32")
    return weight, made


def _array(match: Match, name: str) -> npt.NDArray[np.float64]:
    return match.model.params[match.values[name].name].astype(np.float64)


def _channel_axis(match: Match) -> int | None:
    """Axis of the channels that both the linear op makes and batch_norm normalizes; None when they differ."""
    bn, linear = match.ops["bn"], match.ops["linear"]
    conv = linear.type not in _MATMUL
    decl = match.graph.decls.get(linear.output(_output_slot(linear))[0])
    rank = 4 if conv else len(decl.shape) if decl is not None else 0
    last = linear.attr("data_format", "NCHW") == "NHWC" if conv else True
    made = rank - 1 if last else 1
    normalized = rank - 1 if bn.attr("data_layout", "NCHW") == "NHWC" else 1
    return made if made == normalized and rank >= 2 else None


def _spread(match: Match, gain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """`gain` laid out along the output channels of the weight; None when their number is another.

    Filters are [out, in/groups, h, w]; transposed ones [in, out/groups, h, w] with the inputs of a group together
    (Paddle, phi/infermeta/binary.cc, ConvInferMeta and ConvTransposeInferMeta); matrices [in, out].
    """
    op, shape = match.ops["linear"], match.model.params[match.values["w"].name].shape
    if op.type in _CONV and len(shape) == 4:
        return gain[:, None, None, None] if shape[0] == gain.size else None
    if op.type in _CONV_TRANSPOSE and len(shape) == 4:
        groups = op.int_attr("groups", 1)
        if groups < 1 or shape[0] % groups or groups * shape[1] != gain.size:
            return None
        return np.repeat(gain.reshape(groups, shape[1]), shape[0] // groups, axis=0)[:, :, None, None]
    if op.type not in _MATMUL or len(shape) != 2 or op.int_attr("y_num_col_dims", 1) != 1:
        return None
    turned = op.attr("transpose_Y", False) or op.attr("trans_y", False)
    if shape[0 if turned else 1] != gain.size:
        return None
    return gain[:, None] if turned else gain[None, :]


def _bias(match: Match, channels: int, axis: int) -> npt.NDArray[np.float64] | None:
    """What is added between the two ops, one number a channel; None when it varies along another axis.

    Broadcasting of ``elementwise_add``: the dimensions of Y stand at `axis` of X, or at the end for -1 (Paddle,
    phi/kernels/funcs/common_shape.h, GetMidDims).
    """
    if "sum" not in match.ops:
        return np.zeros(channels)
    array, shape = _array(match, "b"), list(_array(match, "b").shape)
    if "reshape" in match.ops:
        reshape = match.ops["reshape"]
        target = reshape.attr("shape")
        if reshape.input("Shape") or reshape.input("ShapeTensor") or not isinstance(target, tuple):
            return None
        shape = [d if isinstance(d, int) else -1 for d in target]
        if any(d == 0 and i >= array.ndim for i, d in enumerate(shape)):
            return None
        shape = [array.shape[i] if d == 0 else d for i, d in enumerate(shape)]
        if shape.count(-1) == 1:
            rest = int(np.prod([d for d in shape if d != -1]))
            shape[shape.index(-1)] = array.size // rest if rest else 0
    rank = 4 if match.ops["linear"].type not in _MATMUL else axis + 1
    start = match.ops["sum"].int_attr("axis", -1)
    start = rank - len(shape) if start == -1 else start
    around = [d for i, d in enumerate(shape, start) if i != axis]
    if start < 0 or start + len(shape) > rank or any(d != 1 for d in around) or array.size not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def _output_slot(linear: Op) -> str:
    return "Out" if linear.type in _MATMUL else "Output"


def _shared(match: Match, ref: ValueRef) -> bool:
    return len(match.graph.uses(ref)) > 1 or match.graph.last(ref.name) != ref or ref.name in match.elsewhere


@dataclass(frozen=True)
class FoldBatchNorm(PatternPass):
    """Fold batch normalization into the convolution or matrix product before it."""

    patterns: ClassVar[tuple[Pattern, ...]] = (_BatchNorm(),)
