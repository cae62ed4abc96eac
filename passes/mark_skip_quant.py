"""Keep oneDNN's int8 engine from quantizing what nobody simulated.

The engine quantizes every op of its list for whose values it has scales, wherever quantization ops stood
(`qpass.quant.onednn_placement`). An integer attribute ``skip_quant`` of 1 spares an op. Two kinds of ops lose it when
they are fused: a matrix product with a bias, which becomes an `fc`, and a sum with the output of a convolution. There
an `assign` goes before the operand through which they are fused: it ends the fusion of the sum, and what it makes has
no scale, without which neither `fc` nor sum is quantized (cpu_quantize_pass.cc, QuantizeFc and QuantizeElementwise;
seen on 2.6.2 and 3.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from qpass.ir.graph import Graph, Use
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.quant.encodings import find_sites
from qpass.quant.layers import root
from qpass.quant.onednn_fusion import fused_operand
from qpass.quant.onednn_placement import SKIP, unsimulated
from qpass.rewrite.copies import insert_copy
from qpass.rewrite.edit import Edit, edit
from qpass.rewrite.passes import Pass

_SCOPE = "skip_quant"


@dataclass(frozen=True)
class MarkSkipQuant(Pass):
    """Mark the ops that oneDNN's int8 engine would quantize although nobody simulated it.

    Marks that are there already as booleans become integers: the engine dies of booleans. ``op_namescope`` gets the
    word that Paddle's own quantization passes look for, and ``with_quant_attr`` keeps the mark when the program is
    saved again (`python/paddle/base/framework.py`, `_remove_training_info`). A float model is left alone.
    """

    def run(self, model: Model) -> Model:
        """The model with marks, or `model` itself when there is nothing to mark."""
        if not find_sites(model):
            return model
        booleans = _with_boolean_marks(model)
        with edit(model) as e:
            for op in booleans:
                e.set_attr(op, SKIP, Attr.int(int(bool(op.attr(SKIP)))))
        model = e.model
        spared: set[int] = set()
        # Not one round alone: a sum that is spared no longer decides over the convolution that would have taken it in.
        while chosen := [op for op in unsimulated(model) if op.uid not in spared]:
            with edit(model) as e:
                for op in chosen:
                    operand = fused_operand(model.graph, op)
                    if operand is None:
                        _mark(e, op)
                    else:
                        _cut(e, model.graph, op, operand)
            spared.update(op.uid for op in chosen)
            model = e.model
        return model


def _with_boolean_marks(model: Model) -> list[Op]:
    return [op for op in model.graph.ops if SKIP in op.attrs and op.attrs[SKIP].kind is AttrKind.BOOLEAN]


def _mark(e: Edit, op: Op) -> None:
    scope = op.attr("op_namescope")
    scope = scope if isinstance(scope, str) else "/"
    e.set_attr(op, SKIP, Attr.int(1))
    if _SCOPE not in scope:
        e.set_attr(op, "op_namescope", Attr.str(f"{scope.rstrip('/')}/{_SCOPE}/"))
    e.set_attr(op, "with_quant_attr", Attr.bool(True))


def _cut(e: Edit, graph: Graph, op: Op, operand: Use) -> None:
    """Let an op read a copy of one operand, which the engine has no scale for."""
    source = op.input(operand.slot)[operand.index]
    decl = graph.decls[root(graph, graph.read(op, operand.slot, operand.index)).name]
    e.rewire(op, operand.slot, operand.index, insert_copy(e, source, decl, "float", before=op))
