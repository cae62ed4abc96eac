"""Encoding A, the framework's `onnx_format=False`: integers held in floats flow through the op itself.

``fake_quantize_*`` before the op makes integers of its activation, the weight parameter holds integers in float32, and
``fake_*dequantize_max_abs`` *after* the op divides both scales out again. So an activation and a weight of one op go
together: neither can be taken out alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.ir.graph import Use
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.schema import OPERANDS
from qpass.quant.encoding import data_in, data_out, real_uses, role_of, scale_value, spec_of
from qpass.quant.layers import is_param
from qpass.quant.ops import OLD_DEQUANTIZE, OLD_QUANTIZE
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec, Rounding


class EncodingA:
    """Recognises encoding A."""

    name = "A"

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order of their ops."""
        sites = [*_activations(model), *_weights(model)]
        return tuple(sorted(sites, key=lambda site: model.graph.position[site.ops[0]]))


def _activations(model: Model) -> Iterator[QuantSite]:
    graph = model.graph
    for op in graph.ops:
        value, out = (data_in(graph, op), data_out(graph, op)) if op.type in OLD_QUANTIZE else (None, None)
        if value is not None and out is not None:
            yield QuantSite(
                role=role_of(graph, value),
                value=value,
                uses=real_uses(graph, out),
                threshold=scale_value(model, op, "InScale"),
                spec=spec_of(op, None, Rounding.HALF_AWAY),
                encoding=EncodingA.name,
                ops=(op.uid,),
            )


def _weights(model: Model) -> Iterator[QuantSite]:
    """One site for each weight parameter, with the dequantize ops after all ops that use it."""
    graph = model.graph
    found: dict[str, list[tuple[Use, Op]]] = {}
    for op in graph.ops:
        source = data_in(graph, op) if op.type in OLD_DEQUANTIZE else None
        layer = graph.writer(source) if source is not None else None
        if layer is None or layer.type not in OPERANDS:
            continue
        weight = graph.sole_read(layer, OPERANDS[layer.type][0])
        if weight is not None and is_param(graph, weight):
            found.setdefault(weight.name, []).append((Use(layer.uid, OPERANDS[layer.type][0], 0), op))
    for parts in found.values():
        use, op = parts[0]
        threshold, spec = _weight_scale(model, op)
        yield QuantSite(
            role=Role.WEIGHT,
            value=graph.read(graph.by_uid[use.op], use.slot),
            uses=tuple(use for use, _ in parts),
            threshold=threshold,
            spec=spec,
            encoding=EncodingA.name,
            ops=tuple(op.uid for _, op in parts),
            storage=Storage.INT_AS_FLOAT,
        )


def _weight_scale(model: Model, op: Op) -> tuple[npt.NDArray[np.float32], QuantSpec]:
    if op.type == "fake_channel_wise_dequantize_max_abs":
        bits = op.attr("quant_bits", (8,))
        if not (isinstance(bits, tuple) and bits and isinstance(bits[0], int) and 2 <= bits[0] <= 16):
            raise QuantError(f"quant_bits is {bits!r}, expected a list of 2 to 16", where=str(op))
        spec = QuantSpec(bits[0], op.int_attr("quant_axis", 0), Rounding.HALF_AWAY, narrow=True)
        return scale_value(model, op, "Scales").reshape(-1), spec
    # quantization_pass.py, _insert_post_dequant_op: max_range = weight_range * activation_range / weight_scale
    spec = QuantSpec(8, None, Rounding.HALF_AWAY, narrow=True)
    max_range = op.attr("max_range")
    if not (isinstance(max_range, float) and max_range > 0):
        raise QuantError(f"max_range is {max_range!r}, expected a number > 0", where=str(op))
    return np.float32(spec.qmax**2) / np.array(max_range, np.float32), spec
