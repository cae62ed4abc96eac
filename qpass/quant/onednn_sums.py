"""Sums that oneDNN's int8 engine fuses into a convolution, and what it makes of the two then."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.layers import root
from qpass.quant.onednn_fusion import SAME_VALUES, activations, fused_convolution, fused_result, source_of
from qpass.quant.onednn_placement import known_scales

_UNSIGNED = ("relu", "relu6")
"""Held in levels 0 to 255: compute_propagate_scales_onednn_pass.cc, UpdateReluOutputScales."""

_KEEP_SIGN = ("pool2d", *SAME_VALUES)


def spoiling_sums(model: Model) -> Mapping[int, tuple[Use, ...]]:
    """Sums whose fusion into a quantized convolution spoils it, by uid, with the operands through which they are fused.

    - Without a scale for the sum, or for what is added, the whole convolution goes back to float
      (cpu_quantize_pass.cc, QuantizeConv).
    - Where only one of the sum and what is added is unsigned (made by relu), the added bytes are read as if they had
      the sign of the sum: the numbers are wrong. Measured on 2.6.2 and 3.3.1: `resnet8_cifar10` 77.25 simulated, 74.70
      in the engine, 17.7 dB behind the first such sum, 61 dB and more at the others.
    """
    graph, known = model.graph, known_scales(model)
    if not known:
        return {}
    found: dict[int, tuple[Use, ...]] = {}
    for op in graph.ops:
        through = _convolutions(graph, op)
        if through and not _is_sound(graph, op, through, known):
            found[op.uid] = through
    return found


def _convolutions(graph: Graph, op: Op) -> tuple[Use, ...]:
    """The operands of a sum of two activations through which it can be fused into a convolution."""
    uses = activations(graph, op) if op.type == "elementwise_add" else []
    return tuple(u for u in uses if len(uses) == 2 and fused_convolution(graph, graph.read(op, u.slot)) is not None)


def _is_sound(graph: Graph, op: Op, through: tuple[Use, ...], known: frozenset[ValueRef]) -> bool:
    made, last = fused_result(graph, op)
    unsigned = last.type in _UNSIGNED
    uses = activations(graph, op)
    # The engine fuses the sum into one of the convolutions: every choice must be sound.
    added = [root(graph, graph.read(op, use.slot)) for use in uses if len(through) > 1 or use not in through]
    return made in known and all(ref in known and _is_unsigned(graph, ref) is unsigned for ref in added)


def _is_unsigned(graph: Graph, ref: ValueRef) -> bool:
    writer = graph.writer(ref)
    if writer is None:
        return False
    if writer.type in _KEEP_SIGN:
        source = source_of(graph, writer)
        return source is not None and _is_unsigned(graph, root(graph, source))
    return writer.type in _UNSIGNED
