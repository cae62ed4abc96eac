"""Drop ops that hand on what they read.

``y = f(x)`` with ``y == x`` for every x goes in one of two ways. Where y is read inside only, its readers read x. Where
y is an output of the model its name must live, so the op that made x writes y, and the other readers of x read y.

What makes each op an identity:

===========  ===================================================================================================
assign       always
scale        ``scale == 1`` and ``bias == 0`` as attributes
dropout      ``is_test``, and ``upscale_in_train`` or probability 0 (``downgrade_in_infer`` multiplies by 1 - p)
cast         the same element type on both sides
transpose    the axes in order
reshape      every dimension of the target equals, or copies, the declared one; one may be inferred
pad          all paddings are 0
concat       of one tensor
===========  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from qpass.ir.graph import Decl, ValueRef
from qpass.ir.op import Op
from qpass.rewrite.apply import PatternPass
from qpass.rewrite.edit import Edit
from qpass.rewrite.legal import local, overwritten
from qpass.rewrite.pattern import Match, Miss, Node, Pattern, Value


def _assign(op: Op, x: Decl) -> str | None:
    return None


def _scale(op: Op, x: Decl) -> str | None:
    if op.input("ScaleTensor"):
        return "the factor is a tensor"
    factor, bias = op.attr("scale", 1.0), op.attr("bias", 0.0)
    return None if factor == 1 and bias == 0 else f"multiplies by {factor!r} and adds {bias!r}"


def _dropout(op: Op, x: Decl) -> str | None:
    if op.attr("is_test", False) is not True:
        return "drops out: is_test is not set"
    if op.attr("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        return None
    p = op.attr("dropout_prob", 0.5)
    return None if p == 0 else f"downgrade_in_infer multiplies by 1 - {p!r}"


def _cast(op: Op, x: Decl) -> str | None:
    source, target = op.attr("in_dtype"), op.attr("out_dtype")
    return None if source is not None and source == target else f"casts from type {source!r} to {target!r}"


def _transpose(op: Op, x: Decl) -> str | None:
    axes = op.attr("axis")
    ordered = isinstance(axes, tuple) and axes == tuple(range(len(axes)))
    return None if ordered else f"reorders the axes to {axes!r}"


def _reshape(op: Op, x: Decl) -> str | None:
    if op.input("Shape") or op.input("ShapeTensor"):
        return "the shape is a tensor"
    target = op.attr("shape")
    if not isinstance(target, tuple) or len(target) != len(x.shape):
        return f"shape {target!r} from {list(x.shape)}"
    kept = [t == 0 or (t == d and d > 0) for t, d in zip(target, x.shape, strict=True)]
    inferred = [t for t, k in zip(target, kept, strict=True) if not k]
    return None if inferred in ([], [-1]) else f"shape {list(target)} is not provably {list(x.shape)}"


def _pad(op: Op, x: Decl) -> str | None:
    if op.input("Paddings"):
        return "the paddings are a tensor"
    paddings = op.attr("paddings")
    zero = isinstance(paddings, tuple) and not any(paddings)
    return None if zero else f"pads by {paddings!r}"


_IDENTITY: Mapping[str, Callable[[Op, Decl], str | None]] = {
    "assign": _assign,
    "scale": _scale,
    "dropout": _dropout,
    "cast": _cast,
    "transpose": _transpose,
    "transpose2": _transpose,
    "reshape": _reshape,
    "reshape2": _reshape,
    "pad": _pad,
    "pad2d": _pad,
    "pad3d": _pad,
    "concat": _assign,
}


class _Identity(Pattern):
    pattern = Node(_IDENTITY, "op", X=Value("x"))

    def check(self, match: Match) -> Miss | None:
        x, y = match.values["x"], match.result
        before, after = match.graph.decls.get(x.name), match.graph.decls.get(y.name)
        if before is None or after is None or not local(match, x) or not local(match, y):
            return match.miss(f"{x} or {y} is visible in another block")
        reason = _IDENTITY[match.anchor.type](match.anchor, before)
        if reason is not None:
            return match.miss(reason)
        if (before.kind, before.dtype) != (after.kind, after.dtype) or before.kind != "tensor":
            return match.miss(f"{x} and {y} are declared as different things")
        if _fetched(match, y):
            return self._cannot_redirect(match, x, y)
        for reader in match.graph.readers(y):
            thief = overwritten(match, x, reader)
            if thief is not None and thief is not match.anchor:
                return match.miss(f"{x} is overwritten before {reader.type} reads {y}", thief)
        return None

    def _cannot_redirect(self, match: Match, x: ValueRef, y: ValueRef) -> Miss | None:
        maker = match.graph.writer(x)
        if maker is None or maker.type == "feed":
            return match.miss(f"{y.name!r} is an output, and {x.name!r} is no op's result that could take its name")
        if match.graph.decls[x.name].persistable or _fetched(match, x):
            return match.miss(f"{x.name!r} and {y.name!r} must both keep their names")
        for ref in (x, y):
            if ref.version != 1 or match.graph.last(ref.name) != ref:
                return match.miss(f"{ref.name!r} names more than one value")
        return None

    def rewrite(self, match: Match, e: Edit) -> None:
        x, y = match.values["x"], match.result
        e.remove(match.anchor)
        kept = y if _fetched(match, y) else x
        maker = match.graph.writer(x)
        if kept is y and maker is not None:
            slot, index = next((s, i) for s, i, _ in maker.writes() if match.graph.written(maker, s, i) == x)
            e.redirect(maker, slot, index, y.name)
        for use in (*match.graph.uses(x), *match.graph.uses(y)):
            if use.op != match.anchor.uid:
                e.rewire(use.op, use.slot, use.index, kept.name)


def _fetched(match: Match, ref: ValueRef) -> bool:
    return any(reader.type == "fetch" for reader in match.graph.readers(ref))


@dataclass(frozen=True)
class DropIdentity(PatternPass):
    """Drop ops that hand on what they read: assign, scale by 1, dropout at inference, ..."""

    patterns: ClassVar[tuple[Pattern, ...]] = (_Identity(),)
