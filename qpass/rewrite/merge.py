"""Several variants of a model as one program that computes every shared value once.

Values are numbered by how they are computed (hash-consing; Ershov 1958, "value numbering" in compilers): an op of a
variant whose type, attributes and operands are those of an op that is there already *is* that op. What is left of a
variant is what lies downstream of where it differs from the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from qpass.errors import PassError
from qpass.ir.graph import Decl, Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op, is_absent
from qpass.ir.params import Params
from qpass.ir.schema import DEBUG_ATTRS, INPLACE_PAIRS, PURE

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
        self._params: dict[str, str] = {}
        self._sources: dict[str, Params] = {}
        self._known: dict[Hashable, Mapping[tuple[str, int], str]] = {}
        self._numbers: dict[int, tuple[Op, Hashable]] = {}
        self._kinds: dict[Hashable, int] = {}
        self._fetched: dict[str, int] = {}
        self._suffix: dict[str, int] = {}
        self._holder = next(op.input("X")[0] for op in first.graph.ops if op.type == "feed")

    def add(self, model: Model) -> tuple[int, ...]:
        """Take a model in; the columns of its outputs."""
        graph = model.graph
        names: dict[ValueRef, str] = {}
        for op in _needed(graph):
            if op.type != "fetch":
                self._add_op(model, op, names)
        fetches = sorted((op for op in graph.ops if op.type == "fetch"), key=lambda op: op.int_attr("col", 0))
        found = [self._name(model, graph.read(op, "X"), names) for op in fetches]
        return tuple(self._fetched.setdefault(name, len(self._fetched)) for name in found)

    def model(self) -> Model:
        """Everything taken in."""
        graph = self._first.graph
        fetch = next(op for op in graph.ops if op.type == "fetch")
        for holder in (self._holder, fetch.output("Out")[0]):
            self._decls[holder] = graph.decls[holder]
        ends = [
            Op("fetch", (("X", (name,)),), fetch.outputs, {**fetch.attrs, "col": Attr.int(column)}, fetch.extra, uid)
            for uid, (name, column) in enumerate(self._fetched.items(), len(self._ops))
        ]
        params = Params({name: self._sources[name][source] for name, source in self._params.items()})
        return self._first.replaced(
            graph=dataclasses.replace(graph, ops=(*self._ops, *ends), decls=self._decls), params=params
        )

    def _add_op(self, model: Model, op: Op, names: dict[ValueRef, str]) -> None:
        graph = model.graph
        reads = tuple(
            (slot, index, self._name(model, graph.read(op, slot, index), names)) for slot, index, _ in op.reads()
        )
        key: Hashable = (self._kind(op), reads) if is_shareable(op) else object()
        made = self._known.get(key)
        if made is None:
            made = self._known[key] = self._emit(graph, op, {(slot, index): name for slot, index, name in reads})
        for slot, index, _ in op.writes():
            names[graph.written(op, slot, index)] = made[slot, index]

    def _emit(self, graph: Graph, op: Op, reads: Mapping[tuple[str, int], str]) -> Mapping[tuple[str, int], str]:
        inplace = {out: reads[source, 0] for source, out in INPLACE_PAIRS.get(op.type, ()) if (source, 0) in reads}
        writes: dict[tuple[str, int], str] = {}
        for slot, index, name in op.writes():
            writes[slot, index] = inplace[slot] if slot in inplace else self._declare(graph.decls.get(name), name)
        self._ops.append(
            Op(op.type, _named(op.inputs, reads), _named(op.outputs, writes), op.attrs, op.extra, len(self._ops))
        )
        return writes

    def _name(self, model: Model, ref: ValueRef, names: dict[ValueRef, str]) -> str:
        """The name of a value; parameters and what is held are taken in when they are first read."""
        if ref in names:
            return names[ref]
        if ref.name == self._holder:
            return ref.name
        params = model.params
        key: Hashable = ("param", params.digest(ref.name) if ref.name in params else ref.name)
        made = self._known.get(key)
        if made is None:
            name = self._declare(model.graph.decls.get(ref.name), ref.name)
            if ref.name in params:
                self._params[name], self._sources[name] = ref.name, params
            made = self._known[key] = {("", 0): name}
        names[ref] = made["", 0]
        return names[ref]

    def _declare(self, decl: Decl | None, wanted: str) -> str:
        name = wanted
        while name in self._decls:
            self._suffix[wanted] = self._suffix.get(wanted, 0) + 1
            name = f"{wanted}.{self._suffix[wanted]}"
        self._decls[name] = Decl(name) if decl is None else dataclasses.replace(decl, name=name)
        return name

    def _kind(self, op: Op) -> Hashable:
        """A number for what an op does to its operands; ops that are one object are looked at once."""
        held = self._numbers.get(id(op))
        if held is None:
            attrs = tuple(sorted((name, attr) for name, attr in op.attrs.items() if name not in DEBUG_ATTRS))
            layout = tuple((slot, len(operands)) for slots in (op.inputs, op.outputs) for slot, operands in slots)
            held = self._numbers[id(op)] = (op, self._kinds.setdefault((op.type, attrs, layout), len(self._kinds)))
        return held[1]


def is_shareable(op: Op) -> bool:
    """Whether equal ops with equal operands compute equal values: pure ones, and what engines fuse of them."""
    return op.type in PURE or op.type in _ENGINE_OPS or op.type == "feed" or op.type.startswith(_FUSED)


def _needed(graph: Graph) -> list[Op]:
    """The ops that outputs depend on, in program order."""
    wanted = {op.uid for op in graph.ops if op.type == "fetch"}
    keep = {op.uid for op in graph.upstream(wanted)} | wanted
    return [op for op in graph.ops if op.uid in keep]


def _named(
    slots: tuple[tuple[str, tuple[str, ...]], ...], names: Mapping[tuple[str, int], str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (slot, tuple(old if is_absent(old) else names.get((slot, i), old) for i, old in enumerate(operands)))
        for slot, operands in slots
    )
