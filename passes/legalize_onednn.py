"""Rewrite what oneDNN's int8 engine would compute otherwise than the quantization in the file says.

Three things, each seen with Paddle Inference 2.6.2 and 3.3.1 and found in its source (fluid/framework/ir/onednn/):

**Scales are lent to neighbours.** The engine copies the scale of a value across ops that it takes to keep the range
(`compute_propagate_scales_onednn_pass.cc`): pooling, reshape2, transpose2, slice, split and nearest interpolation; from
input to output, or backwards where only the output has one. An *average* pool does not keep the range: behind a
squeeze-and-excite pool the map itself is clipped to the range of its means. A copy (``assign``) of the pool's output,
which is what gets quantized, keeps the two apart; so it does for a mover whose input others read as well.

**The weights of a matrix product are cut.** The scale of column n of a [K, N] weight is computed from the n-th run of K
numbers in memory, which is no column (`GetScales`, axis 0): columns that hold larger numbers saturate. A scale that the
engine collects from a quantize op on the weight is left alone, but is one number. So the weight of a product that
becomes an `fc` is quantized per tensor, by a pair on its float values.

**A layer without a mark is left float.** See `MarkSkipQuant` for the opposite: ops that would be quantized and should
not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.schema import FORWARD
from qpass.quant.encodings import SPELLERS, find_sites
from qpass.quant.layers import find_layers, root
from qpass.quant.onednn_placement import fused_operand
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec
from qpass.quant.strip import strip_sites
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass

_MOVERS = ("transpose2", "reshape2", "slice", "split", "nearest_interp", "nearest_interp_v2")


@dataclass(frozen=True)
class LegalizeOnednn(Pass):
    """Keep oneDNN's int8 engine to the scales in the file: end the lending of scales, quantize `fc` weights per tensor.

    What the model computes in Paddle's own kernels changes only where weights of products were quantized per channel.
    A float model is left alone.
    """

    def run(self, model: Model) -> Model:
        """The legal model, or `model` itself when it is."""
        return _per_tensor_products(_isolated(model))


def _isolated(model: Model) -> Model:
    """A copy between each op that lends scales wrongly and the quantization behind it."""
    graph = model.graph
    quantized: dict[ValueRef, list[QuantSite]] = {}
    for site in find_sites(model):
        if site.role is Role.ACTIVATION and graph.by_uid[site.ops[0]].type != "assign":
            quantized.setdefault(site.value, []).append(site)
    with edit(model) as e:
        for value, sites in quantized.items():
            maker = graph.writer(value)
            if maker is None or not _lends_wrongly(graph, maker, quantized):
                continue
            first = min((site.ops[0] for site in sites), key=graph.position.__getitem__)
            name = e.fresh(f"{value.name}.copy")
            e.declare(dataclasses.replace(graph.decls[value.name], name=name))
            e.insert(Op.make("assign", {"X": value.name}, {"Out": name}, FORWARD), before=first)
            for site in sites:
                e.rewire(site.ops[0], "X", 0, name)
    return e.model


def _lends_wrongly(graph: Graph, op: Op, quantized: dict[ValueRef, list[QuantSite]]) -> bool:
    if op.type == "pool2d":
        return op.attr("pooling_type") == "avg"
    if op.type not in _MOVERS:
        return False
    source = graph.sole_read(op, "Input" if op.type == "slice" else "X")
    if source is None:
        return False
    value = root(graph, source)
    return value not in quantized and len(graph.uses(value)) > 1


def _per_tensor_products(model: Model) -> Model:
    graph = model.graph
    uses = {
        op.weight
        for layer in find_layers(model)
        if layer.family == "matmul"
        for op in layer.ops
        if fused_operand(graph, graph.by_uid[op.uid]) is not None
    }
    sites = [s for s in find_sites(model) if s.role is Role.WEIGHT and not uses.isdisjoint(s.uses) and _cut(s)]
    if not sites:
        return model
    made = strip_sites(model, sites, None, ())
    with edit(made) as e:
        SPELLERS["B"].spell(e, made.graph, tuple(_per_tensor(made.graph, sites)))
    return e.model


def _cut(site: QuantSite) -> bool:
    return site.encoding != "A" and (site.spec.axis is not None or site.storage is not Storage.FLOAT)


def _per_tensor(graph: Graph, sites: list[QuantSite]) -> Iterator[QuantSite]:
    for site in sites:
        yield dataclasses.replace(
            site,
            uses=_standing(graph, site.uses),
            threshold=np.asarray(np.max(site.threshold), np.float32),
            spec=QuantSpec(site.spec.bits),
            encoding="B",
            ops=(),
            storage=Storage.FLOAT,
        )


def _standing(graph: Graph, uses: tuple[Use, ...]) -> tuple[Use, ...]:
    return tuple(use for use in uses if use.op in graph.by_uid)
