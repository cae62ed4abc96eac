"""What differs between two models: interface, blocks, declarations, ops, parameters, in that order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeAlias

import numpy as np

from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op, Slots
from qpass.ir.schema import DEBUG_ATTRS
from qpass.ir.text import dump_attr, dump_decl, dump_op

_MARKS = {"added": "+", "removed": "-", "changed": "~"}

Pair: TypeAlias = tuple[Op | None, Op | None]


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Parameters
    ----------
    subject : str
        ``interface``, ``program``, ``block``, ``variable``, ``op`` or ``parameter``.
    change : str
        ``added`` (only the second model has it), ``removed`` (only the first) or ``changed``.
    where : str
        Which one, in words.
    details : tuple of str
        What differs, or what was added or removed.
    max_abs : float or None
        For a parameter with other values of the same shape: the greatest absolute difference (infinite where one of
        the two is not a number).
    """

    subject: str
    change: str
    where: str
    details: tuple[str, ...] = ()
    max_abs: float | None = None

    def __str__(self) -> str:
        return f"{_MARKS[self.change]} {self.where}: {'; '.join(self.details)}"


@dataclass(frozen=True)
class Diff:
    """All differences between two models, in a stable order; false when there is none."""

    items: tuple[Difference, ...]

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        """One line a difference."""
        return "\n".join(str(item) for item in self.items)

    def to_dict(self) -> dict[str, object]:
        """The differences as plain lists, strings and numbers, for JSON; an infinite `max_abs` is written as None."""
        items = [dataclasses.asdict(item) for item in self.items]
        for item in items:
            item["details"] = list(item["details"])
            item["max_abs"] = None if item["max_abs"] == float("inf") else item["max_abs"]
        return {"equal": not items, "differences": items}


def diff(a: Model, b: Model) -> Diff:
    """What differs between `a` and `b`.

    Ops are aligned by type and outputs, and by type alone between such anchors (Ratcliff and Obershelp's matching, as
    in `difflib`). Parameter values are compared when both models hold parameters. The order of attributes inside an op
    is no difference, that of declarations is one.
    """
    return Diff((*_program(a, b), *_blocks(a, b), *_params(a, b)))


def _program(a: Model, b: Model) -> Iterator[Difference]:
    for kind, old, new in (("feeds", a.feeds, b.feeds), ("fetches", a.fetches, b.fetches)):
        if old != new:
            words = f"{', '.join(map(str, old)) or 'none'} -> {', '.join(map(str, new)) or 'none'}"
            yield Difference("interface", "changed", kind, (words,))
    if a.extra != b.extra:
        yield Difference("program", "changed", "program", ("what the format records of it (versions)",))


def _blocks(a: Model, b: Model) -> Iterator[Difference]:
    for old, new in zip(a.blocks, b.blocks, strict=False):
        yield from _graphs(old, new)
    common = min(len(a.blocks), len(b.blocks))
    for change, rest in (("removed", a.blocks[common:]), ("added", b.blocks[common:])):
        for graph in rest:
            details = (f"{len(graph.ops)} ops, {len(graph.decls)} declarations",)
            yield Difference("block", change, f"block {graph.index}", details)


def _graphs(a: Graph, b: Graph) -> Iterator[Difference]:
    where = f"block {a.index}"
    details = []
    if a.parent != b.parent:
        details.append(f"parent {a.parent} -> {b.parent}")
    if a.extra != b.extra:
        details.append("what the format records of it")
    if [n for n in a.decls if n in b.decls] != [n for n in b.decls if n in a.decls]:
        details.append("order of the declarations")
    if details:
        yield Difference("block", "changed", where, tuple(details))
    yield from _decls(a, b, where)
    for old, new in _aligned(a.ops, b.ops):
        yield from _ops(a, b, old, new)


def _decls(a: Graph, b: Graph, block: str) -> Iterator[Difference]:
    for name, old in a.decls.items():
        where = f"{block}, variable {name!r}"
        new = b.decls.get(name)
        if new is None:
            yield Difference("variable", "removed", where, (dump_decl(old),))
        elif old != new:
            yield Difference("variable", "changed", where, tuple(_decl_details(old, new)))
    for name, new in b.decls.items():
        if name not in a.decls:
            yield Difference("variable", "added", f"{block}, variable {name!r}", (dump_decl(new),))


def _decl_details(a: Decl, b: Decl) -> Iterator[str]:
    if dump_decl(a) != dump_decl(b):
        yield f"{dump_decl(a)} -> {dump_decl(b)}"
    if a.extra != b.extra:
        yield "what the format records of it"


def _aligned(a: tuple[Op, ...], b: tuple[Op, ...]) -> Iterator[Pair]:
    anchors = SequenceMatcher(None, [_anchor(op) for op in a], [_anchor(op) for op in b], autojunk=False)
    for tag, i1, i2, j1, j2 in anchors.get_opcodes():
        if tag == "equal":
            yield from zip(a[i1:i2], b[j1:j2], strict=True)
        else:
            yield from _aligned_by_type(a[i1:i2], b[j1:j2])


def _aligned_by_type(a: tuple[Op, ...], b: tuple[Op, ...]) -> Iterator[Pair]:
    types = SequenceMatcher(None, [op.type for op in a], [op.type for op in b], autojunk=False)
    for tag, i1, i2, j1, j2 in types.get_opcodes():
        if tag == "equal":
            yield from zip(a[i1:i2], b[j1:j2], strict=True)
        else:
            yield from ((op, None) for op in a[i1:i2])
            yield from ((None, op) for op in b[j1:j2])


def _anchor(op: Op) -> tuple[str, Slots]:
    # Every fetch op writes the same variable: what it reads tells it apart.
    return op.type, op.inputs if op.type == "fetch" else op.outputs


def _ops(a: Graph, b: Graph, old: Op | None, new: Op | None) -> Iterator[Difference]:
    if old is not None and new is not None:
        details = tuple(_op_details(old, new))
        if details:
            yield Difference("op", "changed", _op_place(a, old), details)
    elif old is not None:
        yield Difference("op", "removed", _op_place(a, old), (dump_op(a, old),))
    elif new is not None:
        yield Difference("op", "added", _op_place(b, new), (dump_op(b, new),))


def _op_place(graph: Graph, op: Op) -> str:
    return f"block {graph.index}, op {graph.position[op.uid]} ({op.type})"


def _op_details(a: Op, b: Op) -> Iterator[str]:
    for kind, old_slots, new_slots in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        old, new = dict(old_slots), dict(new_slots)
        for slot in dict.fromkeys((*old, *new)):
            if old.get(slot) != new.get(slot):
                yield f"{kind} {slot}: {_names(old, slot)} -> {_names(new, slot)}"
        if old == new and old_slots != new_slots:
            yield f"order of the {kind} slots"
    changed = [name for name in dict.fromkeys((*a.attrs, *b.attrs)) if a.attrs.get(name) != b.attrs.get(name)]
    for name in changed:
        if name not in DEBUG_ATTRS:
            yield f"attribute {name}: {_attr(a.attrs, name)} -> {_attr(b.attrs, name)}"
    hidden = [name for name in changed if name in DEBUG_ATTRS]
    if hidden:
        yield f"debug attributes ({', '.join(hidden)})"
    if a.extra != b.extra:
        yield "what the format records of it"


def _names(slots: Mapping[str, tuple[str, ...]], slot: str) -> str:
    return str(list(slots[slot])) if slot in slots else "absent"


def _attr(attrs: Mapping[str, Attr], name: str) -> str:
    return dump_attr(attrs[name]) if name in attrs else "absent"


def _params(a: Model, b: Model) -> Iterator[Difference]:
    if not a.params or not b.params:
        return
    for name, old in a.params.items():
        where = f"parameter {name!r}"
        if name not in b.params:
            yield Difference("parameter", "removed", where, (_kind(old),))
            continue
        new = b.params[name]
        if old.dtype != new.dtype or old.shape != new.shape:
            yield Difference("parameter", "changed", where, (f"{_kind(old)} -> {_kind(new)}",))
        elif old is not new and old.tobytes() != new.tobytes():
            gap = _gap(old, new)
            most = float(gap.max())
            words = f"max |difference| {most:.6g}, {np.count_nonzero(gap)} of {gap.size} values differ"
            yield Difference("parameter", "changed", where, (words,), most)
    for name, new in b.params.items():
        if name not in a.params:
            yield Difference("parameter", "added", f"parameter {name!r}", (_kind(new),))


def _kind(array: np.ndarray) -> str:
    return f"{DType.of(array).value}{list(array.shape)}"


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = _wide(a), _wide(b)
    with np.errstate(invalid="ignore"):
        gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    return np.where(np.isnan(gap), np.inf, gap)


def _wide(array: np.ndarray) -> np.ndarray:
    if DType.of(array) is DType.BFLOAT16:
        # A bfloat16 is the upper half of a float32.
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
