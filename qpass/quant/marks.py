"""Attributes that say of an op that it is quantized.

The framework writes them on the ops of quantized layers, and thresholds on others too; what is left of them does no
harm. `mark` adds one and keeps what stands there already, so that `unmark` gives back exactly what was there before.
Engines look whether ``quantization_type`` is there, not at its value (Paddle Inference: quant_dequant_mkldnn_pass.cc),
with the exception of ``post_weight_*`` in Paddle Lite (mir/weight_quantization_preprocess_pass.cc).
"""

from __future__ import annotations

import re

import numpy as np

from qpass.ir.graph import Graph, ValueRef
from qpass.ir.op import Attr, Op
from qpass.rewrite.edit import Edit

_TYPE = "quantization_type"
_OURS = "qpass"
_OVER = f"{_OURS} over "
_MARKS = (_TYPE, "bit_length")
_THRESHOLD = re.compile(r"(out|[A-Za-z]+\d+)_threshold")


def mark(e: Edit, uid: int) -> None:
    """Say of an op that it is quantized, by this library."""
    before = e.op(uid).attrs.get(_TYPE)
    if before is None:
        e.set_attr(uid, _TYPE, Attr.str(_OURS))
    elif isinstance(before.value, str):
        e.set_attr(uid, _TYPE, Attr(before.kind, f"{_OVER}{before.value}"))


def unmark(e: Edit, uid: int) -> None:
    """Take back what `mark` wrote; from an op marked by others, drop all quantization attributes."""
    op = e.op(uid)
    value = op.attr(_TYPE)
    if not is_ours(op):
        e.drop_attrs(uid, [n for n in op.attrs if n in _MARKS or _THRESHOLD.fullmatch(n)])
    elif value == _OURS:
        e.drop_attrs(uid, [_TYPE])
    else:
        e.set_attr(uid, _TYPE, Attr(op.attrs[_TYPE].kind, str(value).removeprefix(_OVER)))


def mark_threshold(e: Edit, graph: Graph, ref: ValueRef, threshold: np.ndarray) -> None:
    """Write the threshold of an op's result on the op, as the framework does under encoding A.

    Nothing is written where no op but a `feed` makes the value. Source: post_training_quantization.py,
    _save_output_threshold.
    """
    made = graph.definition(ref)
    if made is None or graph.by_uid[made.op].type == "feed":
        return
    attr = Attr.float(float(np.float32(threshold)))
    e.set_attr(made.op, f"{made.slot}{made.index}_threshold", attr)
    e.set_attr(made.op, "out_threshold", attr)
    e.set_attr(made.op, "with_quant_attr", Attr.bool(True))


def is_ours(op: Op) -> bool:
    """Whether `mark` was here."""
    value = op.attr(_TYPE)
    return isinstance(value, str) and (value == _OURS or value.startswith(_OVER))
