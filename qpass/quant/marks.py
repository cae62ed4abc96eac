"""Attributes that say of an op that it is quantized.

The framework writes them on the ops of quantized layers, and thresholds on others too; what is left of them does no
harm. `mark` adds one and keeps what stands there already, and `mark_threshold` notes in it what it adds, so that
`unmark` gives back exactly what was there before.
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
_KEEP = "with_quant_attr"
_OURS = "qpass"
_THRESHOLDS, _ADDED, _RAISED = "+thresholds", "+kept", "+raised"
_MARK = re.compile(
    rf"{_OURS}(?P<added>(\{_THRESHOLDS}|\{_ADDED}|\{_RAISED})*)(?P<over> over (?P<before>.*))?", re.DOTALL
)
"""What we write: which attributes came with it (`with_quant_attr`: added, or false before), and over what value."""
_MARKS = (_TYPE, "bit_length")
_THRESHOLD = re.compile(r"(out|[A-Za-z]+\d+)_threshold")


def mark(e: Edit, uid: int) -> None:
    """Say of an op that it is quantized, by this library."""
    before = e.op(uid).attrs.get(_TYPE)
    if before is None:
        e.set_attr(uid, _TYPE, Attr.str(_OURS))
    elif isinstance(before.value, str):
        e.set_attr(uid, _TYPE, Attr(before.kind, f"{_OURS} over {before.value}"))


def unmark(e: Edit, uid: int) -> None:
    """Take back what `mark` and `mark_threshold` wrote; from an op that others marked, drop quantization attributes."""
    op = e.op(uid)
    found = _ours(op)
    thresholds = [name for name in op.attrs if _THRESHOLD.fullmatch(name)]
    if found is None:
        e.drop_attrs(uid, [*(name for name in op.attrs if name in _MARKS), *thresholds])
        return
    e.drop_attrs(uid, thresholds if _THRESHOLDS in found["added"] else [])
    e.drop_attrs(uid, [_KEEP] if _ADDED in found["added"] else [])
    if _RAISED in found["added"]:
        e.set_attr(uid, _KEEP, Attr.bool(False))
    if found["over"] is None:
        e.drop_attrs(uid, [_TYPE])
    else:
        e.set_attr(uid, _TYPE, Attr(op.attrs[_TYPE].kind, found["before"]))


def mark_threshold(e: Edit, graph: Graph, ref: ValueRef, threshold: np.ndarray) -> None:
    """Write the threshold of an op's result on the op, as the framework does under encoding A.

    Nothing is written where no op but a `feed` makes the value. The mark of an op that has one remembers what came in,
    so that `unmark` takes it out again; what others wrote before is overwritten for good, but for a
    false `with_quant_attr`. Source: post_training_quantization.py, _save_output_threshold.
    """
    made = graph.definition(ref)
    if made is None or graph.by_uid[made.op].type == "feed":
        return
    op = e.op(made.op)
    found = _ours(op)
    if found is not None:
        fresh = not any(_THRESHOLD.fullmatch(name) for name in op.attrs)
        added = f"{found['added']}{_THRESHOLDS if fresh else ''}{_change_of_keep(op)}"
        e.set_attr(op, _TYPE, Attr(op.attrs[_TYPE].kind, f"{_OURS}{added}{found['over'] or ''}"))
    attr = Attr.float(float(np.float32(threshold)))
    e.set_attr(op, f"{made.slot}{made.index}_threshold", attr)
    e.set_attr(op, "out_threshold", attr)
    if _change_of_keep(op):
        e.set_attr(op, _KEEP, Attr.bool(True))


def is_ours(op: Op) -> bool:
    """Whether `mark` was here."""
    return _ours(op) is not None


def _ours(op: Op) -> re.Match[str] | None:
    value = op.attr(_TYPE)
    return _MARK.fullmatch(value) if isinstance(value, str) else None


def _change_of_keep(op: Op) -> str:
    """What becoming true means for `with_quant_attr`; nothing where it is true, or of another kind than Paddle's."""
    before = op.attrs.get(_KEEP)
    return _ADDED if before is None else _RAISED if before == Attr.bool(False) else ""
