"""Encoding A, the framework's `onnx_format=False`: integers held in floats flow through the op itself.

``fake_quantize_*`` before the op makes integers of its activation, the weight parameter holds integers in float32, and
``fake_*dequantize_max_abs`` *after* the op divides both scales out again. So an activation and a weight of one op go
together: neither can be taken out alone. Activations of ops without weights (sums, pools, products of two activations)
are spelled as encoding D in such files (quantization_pass.py, AddQuantDequantPass).

The framework lets the op write its old name and the dequantize op a new one; here it is the other way round, so that
whoever knows the output by its name (a fetch, another block) goes on reading it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.ir.graph import Decl, Graph, Use
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.ir.schema import FAMILIES, FORWARD, OPERANDS
from qpass.quant.encoding import (
    data_in,
    data_out,
    declare_param,
    insert_chain,
    real_uses,
    role_of,
    scale_value,
    spec_of,
)
from qpass.quant.encoding_d import EncodingD
from qpass.quant.layers import is_param, layer_axis, root
from qpass.quant.ops import OLD_DEQUANTIZE, OLD_QUANTIZE
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec, Rounding
from qpass.quant.stored import held_as_floats
from qpass.rewrite.edit import Edit

_QUANTIZE = "fake_quantize_moving_average_abs_max"
_CHANNELS = "fake_channel_wise_dequantize_max_abs"
_WHOLE = "fake_dequantize_max_abs"
_QUANTIZED = ".quantized"


class EncodingA:
    """Recognises and spells encoding A."""

    name = "A"

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order of their ops."""
        sites = [*_activations(model), *_weights(model)]
        return tuple(sorted(sites, key=lambda site: model.graph.position[site.ops[0]]))

    def spell(self, e: Edit, graph: Graph, sites: Sequence[QuantSite]) -> None:
        """Write quantize ops before the ops of layers, and dequantize ops after them; weights become integers.

        Raises
        ------
        QuantError
            If a layer has only its weight or only its activation quantized, if a pair only observes, if its op does
            more than multiply, or per-channel thresholds lie along another axis than its output channels.
        """
        weights = {use.op: site for site in sites if site.role is Role.WEIGHT for use in site.uses}
        scales: dict[int, tuple[str, int]] = {}
        for site in sites:
            if site.role is Role.ACTIVATION:
                scales.update(_spell_activation(e, graph, site, weights))
        for uid, site in weights.items():
            _check_layer(graph, graph.by_uid[uid], site, paired=uid in scales)
        for site in sites:
            if site.role is Role.WEIGHT:
                _spell_weight(e, graph, site, scales)


def _spell_activation(
    e: Edit, graph: Graph, site: QuantSite, weights: Mapping[int, QuantSite]
) -> dict[int, tuple[str, int]]:
    """Uid of each op that reads the integers -> name of their scale, and bits."""
    if site.observer_only:
        raise QuantError(
            "it only observes, which encoding A cannot say", where=f"value {site.value}", hint="use encoding B"
        )
    mine = [use for use in site.uses if is_activation_of_layer(graph, use)]
    rest = tuple(use for use in site.uses if use not in mine)
    for use in mine:
        if use.op not in weights:
            raise _alone("activation", graph.by_uid[use.op])
    if rest:
        EncodingD().spell(e, graph, [dataclasses.replace(site, uses=rest)])
    if not mine:
        return {}
    scale = declare_param(e, f"{site.value.name}@scale", np.asarray(site.threshold, np.float32).reshape(1))
    # moving_rate is not read at inference time; 0.9 is Paddle's default (phi/ops/yaml/ops.yaml).
    attrs = {
        "bit_length": Attr.int(site.spec.bits),
        "is_test": Attr.bool(True),
        "moving_rate": Attr.float(float(np.float32(0.9))),
        "round_type": Attr.int(site.spec.rounding.value),
        **FORWARD,
    }

    def quantize(source: str, target: str) -> Op:
        return Op.make(_QUANTIZE, {"X": source, "InScale": scale}, {"Out": target, "OutScale": scale}, attrs)

    insert_chain(e, graph, dataclasses.replace(site, uses=tuple(mine)), [(_QUANTIZED, quantize)])
    return {use.op: (scale, site.spec.bits) for use in mine}


def is_activation_of_layer(graph: Graph, use: Use) -> bool:
    """Whether `use` is the activation of an op whose weight is a parameter, quantized or not."""
    op = graph.by_uid[use.op]
    if op.type not in OPERANDS or use.slot != OPERANDS[op.type][1]:
        return False
    weight = graph.sole_read(op, OPERANDS[op.type][0])
    return weight is not None and is_param(graph, root(graph, weight))


def _spell_weight(e: Edit, graph: Graph, site: QuantSite, scales: Mapping[int, tuple[str, int]]) -> None:
    held = held_as_floats(e, graph, site)
    # max_range does not say bits, so other bits than 8 go by channel too.
    whole = site.spec.axis is None and {site.spec.bits, *(scales[use.op][1] for use in site.uses)} == {8}
    channels = None if whole else _channel_scales(e, graph, site)
    for use in held.uses:
        op = graph.by_uid[use.op]
        out = graph.written(op, OPERANDS[op.type][2])
        source = e.fresh(out.name + _QUANTIZED)
        e.declare(Decl(source, shape=e.decl(out.name).shape))
        e.redirect(op, OPERANDS[op.type][2], 0, source)
        scale, bits = scales[op.uid]
        if channels is None:
            # quantization_pass.py, _insert_post_dequant_op; infinity for a weight of zeros makes zeros.
            with np.errstate(divide="ignore"):
                max_range = float(np.float32(site.spec.qmax**2) / np.float32(site.threshold))
            attrs = {"max_range": Attr.float(max_range), **FORWARD}
            made = Op.make(_WHOLE, {"X": source, "Scale": scale}, {"Out": out.name}, attrs)
        else:
            name, axis = channels
            attrs = _channel_attrs(op, axis, (site.spec.bits, bits), rank=len(e.decl(out.name).shape))
            made = Op.make(_CHANNELS, {"X": source, "Scales": (name, scale)}, {"Out": out.name}, attrs)
        e.insert(made, after=op)
        for reader in graph.uses(out):
            name = e.op(reader.op).input(reader.slot)[reader.index]
            e.rewire(reader.op, reader.slot, reader.index, name)


def _channel_scales(e: Edit, graph: Graph, site: QuantSite) -> tuple[str, int]:
    """Declare one scale for each output channel: name and axis."""
    axis = layer_axis(graph, site.value, graph.by_uid[site.uses[0].op]) if site.spec.axis is None else site.spec.axis
    if axis is None:
        raise QuantError(
            f"encoding A says scales of {site.spec.bits} bits by channel, and this weight has no channels",
            where=f"weight {site.value.name!r}",
            hint="use 8 bits, or encoding B",
        )
    threshold = np.asarray(site.threshold, np.float32).reshape(-1)
    by_channel = np.broadcast_to(threshold, (graph.decls[site.value.name].shape[axis],))
    return declare_param(e, f"{site.value.name}@scale", by_channel), axis


def _channel_attrs(op: Op, axis: int, bits: tuple[int, int], *, rank: int) -> dict[str, Attr]:
    # quantization_pass.py, _insert_post_channel_dequant_op
    columns = op.int_attr("x_num_col_dims", rank - 1 if FAMILIES[op.type] == "matmul" else 1)
    return {
        "quant_axis": Attr.int(axis),
        "quant_bits": Attr.ints(bits),
        "x_num_col_dims": Attr.int(columns),
        **FORWARD,
    }


def _check_layer(graph: Graph, op: Op, site: QuantSite, *, paired: bool) -> None:
    """Check that scales can be taken out of the result of `op` by output channel."""
    where = f"weight {site.value.name!r}"
    if op.type not in OPERANDS or site.uses[0].slot != OPERANDS[op.type][0]:
        raise QuantError(f"encoding A does not quantize {op.type}", where=where, hint="use encoding B or D")
    if not paired:
        raise _alone("weight", op)
    fused = [name for name in ("fuse_relu", "fuse_activation", "with_bias") if op.attr(name) not in (None, False, "")]
    if op.input("Bias") or op.input("ResidualData") or fused:
        raise QuantError(
            f"{op.type} does more than multiply, and encoding A scales what comes after", where=where, hint="use B"
        )
    axis = layer_axis(graph, site.value, op)
    grouped = op.type.endswith("transpose") and op.int_attr("groups", 1) > 1
    if site.spec.axis is not None and (site.spec.axis != axis or grouped):
        raise QuantError(
            f"thresholds along axis {site.spec.axis} are not one for each output channel, which encoding A needs",
            where=where,
            hint="use encoding B or D, or thresholds for the whole weight",
        )


def _alone(what: str, op: Op) -> QuantError:
    return QuantError(
        f"only the {what} of this {op.type} is quantized; encoding A quantizes weight and activation together",
        where=str(op),
        hint="quantize both, strip this layer, or use encoding B or D",
    )


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
