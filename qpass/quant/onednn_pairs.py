"""Fake quantization by oneDNN's own pair of ops: faster, and not bit-equal to the framework's op.

The framework's op wants plain layouts, so that every activation is brought out of oneDNN's layout and back. The pair
stays in it. It rounds half to even and saturates at -128, and divides by the scale in another order: a value may differ
in its last bit, a value at a tie or beyond the threshold by a level.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qpass.ir.dtype import DType
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op

_FAKE = "fake_quantize_dequantize_moving_average_abs_max"


def with_onednn_pairs(model: Model) -> Model:
    """Spell the 8-bit fake quantization of activations as oneDNN's ``quantize`` and ``dequantize``.

    Parameters
    ----------
    model : Model
        What Paddle Inference's passes made; for its engine alone.
    """
    graph = model.graph
    decls = dict(graph.decls)
    fresh = max(op.uid for op in graph.ops) + 1
    ops: list[Op] = []
    for op in graph.ops:
        scale = model.params.get(op.input("InScale")[0]) if op.type == _FAKE else None
        if scale is None or op.attr("bit_length", 8) != 8:
            ops.append(op)
            continue
        (source,), (target,) = op.input("X"), op.output("Out")
        inside = f"{target}@int8"
        decls[inside] = Decl(inside, dtype=DType.INT8, shape=graph.decls[target].shape)
        # Levels per unit as the framework's kernel has them: float32(127) times float32(1 / threshold).
        levels = Attr.float(float(np.float32(127) * (np.float32(1) / np.float32(scale.reshape(-1)[0]))))
        common = {
            "Scale": levels,
            "Shift": Attr.float(0.0),
            "use_mkldnn": Attr.bool(True),
            "use_onednn": Attr.bool(True),
        }
        signed = {"is_negative_input": Attr.bool(True), "output_format": Attr.str("NCHW"), **common}
        ops.append(dataclasses.replace(Op.make("quantize", {"Input": source}, {"Output": inside}, signed), uid=fresh))
        ops.append(
            dataclasses.replace(Op.make("dequantize", {"Input": inside}, {"Output": target}, common), uid=op.uid)
        )
        fresh += 1
    return model.replaced(graph=dataclasses.replace(graph, ops=tuple(ops), decls=decls))
