"""Make every pair of linear quantization ops read one Scale variable, and give every such op a zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.encoding import declare_param
from qpass.quant.encodings import find_sites
from qpass.quant.ops import LINEAR
from qpass.rewrite.edit import Edit, edit
from qpass.rewrite.passes import Pass
from qpass.rewrite.uses import undeclare_unused

_ZERO = "ZeroPoint"


@dataclass(frozen=True)
class MendPairs(Pass):
    """Let both ops of a pair read one Scale variable, where the values are equal, and give each an int32 zero point.

    Pairs of encoding C are left alone: `ConvertEncoding` mends them. Simulated numbers do not change.
    """

    def run(self, model: Model) -> Model:
        """The model with mended pairs, or `model` itself when nothing was wrong."""
        graph, dropped = model.graph, set[str]()
        with edit(model) as e:
            for site in find_sites(model):
                if site.encoding == "B" and len(site.ops) == 2:
                    quantize, dequantize = (graph.by_uid[uid] for uid in site.ops)
                    ours, theirs = quantize.input("Scale")[0], dequantize.input("Scale")[0]
                    if ours != theirs and _equal(model, ours, theirs):
                        e.rewire(dequantize, "Scale", 0, ours)
                        dropped.add(theirs)
            for op in graph.ops:
                if op.type in LINEAR and not op.input(_ZERO):
                    _give_zero(e, model, e.op(op))
        return undeclare_unused(e.model, dropped) if dropped else e.model


def _equal(model: Model, left: str, right: str) -> bool:
    params = model.params
    return left in params and right in params and np.array_equal(np.ravel(params[left]), np.ravel(params[right]))


def _give_zero(e: Edit, model: Model, op: Op) -> None:
    scale = op.input("Scale")[0]
    count = model.params[scale].size if scale in model.params else 1
    name = declare_param(e, f"{scale.removesuffix('@scale')}@zero_point", np.zeros(count, np.int32))
    inputs = {slot: names for slot, names in op.inputs if slot != _ZERO}
    made = Op.make(op.type, {**inputs, _ZERO: name}, dict(op.outputs), op.attrs)
    e.replace(op, Op(made.type, made.inputs, made.outputs, made.attrs, op.extra))
