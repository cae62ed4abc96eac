"""Where oneDNN's int8 engine uses other scales than the file says (see docs/onednn-int8.md)."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers, root
from qpass.quant.onednn_fusion import SAME_VALUES, fused_operand, source_of
from qpass.quant.site import QuantSite, Role, Storage


def lent_scales(model: Model) -> Mapping[ValueRef, tuple[QuantSite, ...]]:
    """Quantized values whose scale the engine lends to the value before, where that one has another range.

    What an average pool makes; what reshape2, transpose2, slice, split and nearest interpolation make of a value that
    others read too, and that has no scale of its own (compute_propagate_scales_onednn_pass.cc, UpdateScales); what
    ``scale`` makes of such a value, since the engine divides by the factor where it should multiply
    (UpdateScaleOpInOutScales).

    Returns
    -------
    Mapping[ValueRef, tuple of QuantSite]
        The sites of each such value, in program order.
    """
    graph = model.graph
    quantized: dict[ValueRef, list[QuantSite]] = {}
    for site in find_sites(model):
        if site.role is Role.ACTIVATION:
            quantized.setdefault(site.value, []).append(site)
    makers = {value: graph.writer(value) for value in quantized}
    return {
        value: tuple(sites)
        for value, sites in quantized.items()
        if (maker := makers[value]) is not None and _lends_wrongly(graph, maker, quantized)
    }


def cut_product_weights(model: Model) -> tuple[QuantSite, ...]:
    """Weights of matrix products for which the engine computes scales over the wrong axis.

    Those of products that become an `fc`, unless one quantize op stands on the float weight
    (compute_propagate_scales_onednn_pass.cc, GetScales with axis 0).
    """
    graph = model.graph
    products = (layer for layer in find_layers(model) if layer.family == "matmul")
    uses = {op.weight for layer in products for op in layer.ops if fused_operand(graph, graph.by_uid[op.uid])}
    return tuple(
        site
        for site in find_sites(model)
        if site.role is Role.WEIGHT
        and not uses.isdisjoint(site.uses)
        and site.encoding != "A"
        and (site.spec.axis is not None or site.storage is not Storage.FLOAT)
    )


def _lends_wrongly(graph: Graph, op: Op, quantized: Mapping[ValueRef, object]) -> bool:
    if op.type == "pool2d":
        return op.attr("pooling_type") == "avg"
    source = source_of(graph, op) if op.type in (*SAME_VALUES, "scale") else None
    if source is None:
        return False
    value = root(graph, source)
    if op.type == "scale":
        maker = graph.writer(value)
        return value not in quantized and maker is not None and maker.type != "feed"
    return value not in quantized and len(graph.uses(value)) > 1
