"""Several variants of a model as one program that computes every shared value once.

Values are numbered by how they are computed (hash-consing; Ershov 1958, "value numbering" in compilers): an op of a
variant whose type, attributes and operands are those of an op that is there already *is* that op. What is left of a
variant is what lies downstream of where it differs from the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import PassError
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op, Slots, is_absent
from qpass.ir.params import Params
from qpass.ir.schema import INPLACE_PAIRS, PURE

_ENGINE_OPS = frozenset({"fc", "dequantize", "quantize"})
_FUSED = "fused_"


@dataclass(frozen=True)
class Merged:
    """Models side by side.

    Parameters
    ----------
    model : Model
        Its inputs are those of the models, its outputs all distinct outputs of them.
    columns : tuple of tuple of int
        For each model, where its outputs are among those of `model`.
    """

    model: Model
    columns: tuple[tuple[int, ...], ...]


def merge(models: Sequence[Model]) -> Merged:
    """Put models with the same inputs side by side in one program.

    Ops stand in the order of the models, each model's in program order, so that little is held at a time when models
    come in the order of where they differ. Ops that are not known to be pure are kept apart for each model.

    Parameters
    ----------
    models : sequence of Model
        At least one; each with one block.

    Raises
    ------
    PassError
        If a model has control flow, or the inputs differ.
    """
    first = models[0]
    for model in models:
        if len(model.blocks) > 1:
            raise PassError("a model with control flow cannot be merged", where="merge")
        if model.feeds != first.feeds:
            raise PassError(
                f"the inputs differ: {[str(p) for p in model.feeds]} and {[str(p) for p in first.feeds]}", where="merge"
            )
    merger = _Merger(first)
    columns = tuple(merger.add(model) for model in models)
    return Merged(merger.model(), columns)


class _Merger:
    """The program as it grows; a value is known by the name that it has there."""

    def __init__(self, first: Model) -> None:
        self._first = first
        self._ops: list[Op] = []
        self._decls: dict[str, Decl] = {}
        self._params: dict[str, np.ndarray] = {}
        self._made: dict[Hashable, tuple[str, ...]] = {}
        self._held: dict[Hashable, str] = {}
        self._parts: dict[int, _Parts] = {}
        self._kinds: dict[Hashable, int] = {}
        self._fetched: dict[str, int] = {}
        self._suffix: dict[str, int] = {}

    def add(self, model: Model) -> tuple[int, ...]:
        """Take a model in; the columns of its outputs."""
        names: dict[str, str] = {}
        fetched: list[tuple[int, str]] = []
        for op in self._needed(model.graph):
            if op.type == "fetch":
                fetched.append((op.int_attr("col", 0), self._name(model, op.input("X")[0], names)))
            else:
                self._add_op(model, op, names)
        return tuple(self._fetched.setdefault(name, len(self._fetched)) for _, name in sorted(fetched))

    def model(self) -> Model:
        """Everything taken in."""
        graph = self._first.graph
        fetch = next(op for op in graph.ops if op.type == "fetch")
        for name in fetch.output("Out"):
            self._decls[name] = graph.decls[name]
        ends = [
            Op("fetch", (("X", (name,)),), fetch.outputs, {**fetch.attrs, "col": Attr.int(column)}, fetch.extra, uid)
            for uid, (name, column) in enumerate(self._fetched.items(), len(self._ops))
        ]
        merged = dataclasses.replace(graph, ops=(*self._ops, *ends), decls=self._decls)
        return self._first.replaced(graph=merged, params=Params(self._params))

    def _needed(self, graph: Graph) -> list[Op]:
        """The ops that outputs depend on, and all inputs, in program order."""
        alive: set[str] = set()
        needed = []
        for op in reversed(graph.ops):
            parts = self._parts_of(op)
            if op.type in ("fetch", "feed") or not alive.isdisjoint(parts.writes):
                alive.difference_update(parts.writes)
                alive.update(parts.reads)
                needed.append(op)
        return needed[::-1]

    def _add_op(self, model: Model, op: Op, names: dict[str, str]) -> None:
        parts = self._parts_of(op)
        reads = tuple([names.get(name) or self._name(model, name, names) for name in parts.reads])
        key: Hashable = (parts.kind, reads) if parts.shareable else object()
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._emit(model.graph, op, parts, reads)
        names.update(zip(parts.writes, made, strict=True))

    def _emit(self, graph: Graph, op: Op, parts: _Parts, reads: tuple[str, ...]) -> tuple[str, ...]:
        given = dict(zip(parts.read_at, reads, strict=True))
        inplace = {out: given[source, 0] for source, out in INPLACE_PAIRS.get(op.type, ()) if (source, 0) in given}
        made = {
            (slot, index): inplace[slot] if slot in inplace else self._declare(_temporary(graph.decls.get(name)), name)
            for (slot, index), name in zip(parts.write_at, parts.writes, strict=True)
        }
        inputs, outputs = _named(op.inputs, given), _named(op.outputs, made)
        self._ops.append(Op(op.type, inputs, outputs, op.attrs, op.extra, len(self._ops)))
        return tuple(made.values())

    def _name(self, model: Model, name: str, names: dict[str, str]) -> str:
        """The name of a value; what no op wrote before is taken in when it is first read."""
        if name in names:
            return names[name]
        params = model.params
        key: Hashable = ("param", params.digest(name)) if name in params else ("held", name)
        if key not in self._held:
            made = self._held[key] = self._declare(model.graph.decls.get(name), name)
            if name in params:
                self._params[made] = params[name]
        names[name] = self._held[key]
        return names[name]

    def _declare(self, decl: Decl | None, wanted: str) -> str:
        name = wanted
        while name in self._decls:
            self._suffix[wanted] = self._suffix.get(wanted, 0) + 1
            name = f"{wanted}.{self._suffix[wanted]}"
        self._decls[name] = Decl(name) if decl is None else dataclasses.replace(decl, name=name)
        return name

    def _parts_of(self, op: Op) -> _Parts:
        found = self._parts.get(id(op))
        if found is None:
            found = self._parts[id(op)] = self._taken_apart(op)
        return found

    def _taken_apart(self, op: Op) -> _Parts:
        attrs = tuple(sorted(op.attrs.items()))
        layout = tuple((slot, len(operands)) for slots in (op.inputs, op.outputs) for slot, operands in slots)
        reads, writes = tuple(op.reads()), tuple(op.writes())
        return _Parts(
            op,
            self._kinds.setdefault((op.type, attrs, layout), len(self._kinds)),
            is_shareable(op),
            tuple(name for _, _, name in reads),
            tuple((slot, index) for slot, index, _ in reads),
            tuple(name for _, _, name in writes),
            tuple((slot, index) for slot, index, _ in writes),
        )


@dataclass(frozen=True, eq=False)
class _Parts:
    """An op taken apart, once for all variants that hold it; keeps the op alive, so that its id stays its own."""

    op: Op
    kind: int
    shareable: bool
    reads: tuple[str, ...]
    read_at: tuple[tuple[str, int], ...]
    writes: tuple[str, ...]
    write_at: tuple[tuple[str, int], ...]


def is_shareable(op: Op) -> bool:
    """Whether equal ops with equal operands compute equal values: pure ones, and what engines fuse of them."""
    return op.type in PURE or op.type in _ENGINE_OPS or op.type == "feed" or op.type.startswith(_FUSED)


def _temporary(decl: Decl | None) -> Decl | None:
    """For what an op writes: persistable or not, no parameter is behind its new name."""
    return decl if decl is None or not decl.persistable else dataclasses.replace(decl, persistable=False)


def _named(slots: Slots, names: Mapping[tuple[str, int], str]) -> Slots:
    return tuple(
        (slot, tuple(old if is_absent(old) else names[slot, i] for i, old in enumerate(operands)))
        for slot, operands in slots
    )
