"""Store weights alone as integers, for engines that take them back to floats when they load the model (Paddle Lite).

Of a weight w with channels c: scale s[c] = max|w[c]| / (2**(bits-1) - 1), integers round(w / s), half to even, both in
float32. Ops say so by attributes. Source: Paddle's static/quantization/post_training_quantization.py, class
WeightQuantization, 2.6 and 3.3; for products of matrices and lookups, whose scales lie along axis 1, Paddle Lite's
optimizer/mir/post_quant_dynamic_pass.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qpass.errors import QuantError, UsageError
from qpass.ir.graph import Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.ir.schema import EMBEDDINGS, FAMILIES, OPERANDS
from qpass.ir.verify import place
from qpass.quant.candidates import is_float
from qpass.quant.layers import is_param
from qpass.quant.weight_observers import weight_scale
from qpass.rewrite.edit import Edit, edit
from qpass.rewrite.passes import Pass

WEIGHT_SLOTS: Mapping[str, str] = {
    **{name: OPERANDS[name][0] for name, family in FAMILIES.items() if family != "conv2d_transpose"},
    **{name: slots[0] for name, slots in EMBEDDINGS.items()},
}
"""Op types whose weights can be stored so -> the slot of the weight."""

_STORED = {8: np.int8, 16: np.int16}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store weights as int8 or int16 under declarations that go on saying float32, their scales as attributes.

    Paddle Lite reads such files, Paddle itself does not: `simulate` gives what Lite computes in a form that Paddle
    runs. Weights of matrix products that have not two dimensions stay as they are, and so do those in the blocks of
    loops and conditions.

    Parameters
    ----------
    bits : int
        8 or 16.
    op_types : tuple of str
        Exactly these op types.
    per_channel : bool
        A scale an output channel (of lookups: a column), or one a weight.
    simulate : bool
        Store the floats that the integers stand for.

    Raises
    ------
    UsageError
        If the bits or an op type cannot be had.
    QuantError
        If other ops read a weight too, or it holds NaN.
    """

    bits: int = 8
    op_types: tuple[str, ...] = ("conv2d", "mul")
    per_channel: bool = True
    simulate: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _STORED:
            raise UsageError(f"weight_bits is {self.bits}, expected 8 or 16", where="QuantizeWeights")
        for name in self.op_types:
            if name not in WEIGHT_SLOTS:
                raise UsageError(
                    f"the weights of op type {name!r} cannot be stored as integers alone, expected some of "
                    f"{sorted(WEIGHT_SLOTS)}",
                    where="QuantizeWeights",
                )

    def run(self, model: Model) -> Model:
        """The model with stored integers, or `model` itself when there was no weight to store."""
        with edit(model) as e:
            for name, ops in self._weights(model.graph).items():
                if name not in model.params:
                    raise QuantError("the model has no parameters to quantize", where=f"weight {name!r}")
                if model.params[name].dtype == np.float32:
                    self._store(e, name, model.params[name], ops)
        return e.model

    def _weights(self, graph: Graph) -> dict[str, list[Op]]:
        found: dict[str, list[Op]] = {}
        for op in graph.ops:
            ref = graph.sole_read(op, WEIGHT_SLOTS[op.type]) if op.type in self.op_types else None
            if ref is None or not is_param(graph, ref) or not is_float(graph, ref):
                continue
            if FAMILIES.get(op.type) == "matmul" and len(graph.decls[ref.name].shape) != 2:
                continue
            others = [use for use in graph.uses(ref) if graph.by_uid[use.op].type not in self.op_types]
            if others:
                other = graph.by_uid[others[0].op]
                raise QuantError(
                    f"{other.type} reads the weight {ref.name!r} too, and would see integers",
                    where=place(graph, other),
                    hint=f"name {other.type} among the op types as well, or leave {op.type} out",
                )
            found.setdefault(ref.name, []).append(op)
        return found

    def _store(self, e: Edit, name: str, weight: np.ndarray, ops: list[Op]) -> None:
        axes = {int(op.type in EMBEDDINGS or FAMILIES[op.type] == "matmul") for op in ops}
        if len(axes) > 1:
            raise QuantError("ops read it along different axes", where=f"weight {name!r}", hint="per_channel=False")
        axis = axes.pop() if self.per_channel else None
        levels = np.float32(2 ** (self.bits - 1) - 1)
        scales = weight_scale(weight, axis, name) / levels
        along = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) if axis is not None else scales
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(along == 0, np.float32(0), weight / along)
        ints = np.around(ratio).astype(_STORED[self.bits])
        e.set_param(name, ints * along if self.simulate else ints)
        kind = "post_weight_channel_wise_abs_max" if self.per_channel else "post_weight_abs_max"
        for op in ops:
            e.set_attr(op, "quantization_type", Attr.str(kind))
            e.set_attr(op, "quantize_weight_bits", Attr.int(self.bits))
            e.set_attr(op, f"{name}_quant_scale", Attr(AttrKind.FLOATS, tuple(float(s) for s in scales.reshape(-1))))
            e.set_attr(op, "with_quant_attr", Attr.bool(True))
