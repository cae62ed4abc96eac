"""Let the bias of a convolution be added as the vector that it is, not through a reshape.

Exporters write ``conv2d, elementwise_add(reshape2(bias, [1, C, 1, 1]))``. The sum of a vector along an axis,
``elementwise_add(bias, axis=1)``, is the same numbers, and the only form that engines fuse into the convolution: Paddle
Inference's conv_bias fusion wants a 1-D bias, and else adds it in an op of its own, in int8 where that engine quantizes
(measured on 2.6.2 and 3.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qpass.ir.op import Attr, Op
from qpass.quant.layers import root
from qpass.rewrite.apply import PatternPass
from qpass.rewrite.edit import Edit
from qpass.rewrite.pattern import Match, Miss, Node, Param, Pattern, Value

_CONV = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "depthwise_conv2d_transpose")
_RANK = 4


class _Bias(Pattern):
    pattern = Node(
        "elementwise_add", "sum", X=Value("product"), Y=Node(("reshape", "reshape2"), "reshape", X=Param("bias"))
    )

    def check(self, match: Match) -> Miss | None:
        conv = _convolution(match)
        if conv is None:
            return match.miss("what the bias is added to comes from no convolution", "sum")
        axis = 3 if conv.attr("data_format", "NCHW") == "NHWC" else 1
        bias = match.graph.decls[match.values["bias"].name]
        reshape = match.ops["reshape"]
        if reshape.input("Shape") or reshape.input("ShapeTensor"):
            return match.miss("the shape is a tensor", "reshape")
        shape = reshape.attr("shape")
        wanted = tuple(bias.shape[0] if i == axis else 1 for i in range(_RANK)) if len(bias.shape) == 1 else None
        inferred = tuple(-1 if i == axis else 1 for i in range(_RANK))
        if wanted is None or shape not in (wanted, inferred):
            return match.miss(f"shape {shape!r} does not lay the bias along the channels", "reshape")
        if match.ops["sum"].int_attr("axis", -1) not in (-1, 0):
            return match.miss(f"added at axis {match.ops['sum'].attr('axis')!r}", "sum")
        return None

    def rewrite(self, match: Match, e: Edit) -> None:
        conv = _convolution(match)
        last = conv is not None and conv.attr("data_format", "NCHW") == "NHWC"
        e.rewire(match.ops["sum"], "Y", 0, match.values["bias"].name)
        e.set_attr(match.ops["sum"].uid, "axis", Attr.int(3 if last else 1))
        e.remove(match.ops["reshape"])


def _convolution(match: Match) -> Op | None:
    """The convolution that the bias is added to, behind quantization ops too."""
    conv = match.graph.writer(root(match.graph, match.values["product"]))
    return conv if conv is not None and conv.type in _CONV else None


@dataclass(frozen=True)
class FoldBias(PatternPass):
    """Add the bias of a convolution as a vector along the channels, not through a reshape."""

    patterns: ClassVar[tuple[Pattern, ...]] = (_Bias(),)
