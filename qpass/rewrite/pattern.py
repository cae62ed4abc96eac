"""Patterns: the terms they are written in, and what a search for one answers (`Match` or `Miss`).

A pattern is declared as a class::

    class ReluOfRelu(Pattern):
        pattern = Node("relu", "outer", X=Node("relu", "inner", X=Value("x")))

        def rewrite(self, match: Match, e: Edit) -> None:
            e.rewire(match.ops["outer"], "X", 0, match.values["x"].name)
            e.remove(match.ops["inner"])

Matching is anchored at the last op and walks backwards along producers, so a search costs the size of the pattern, not
of the graph. The driver is in `apply.py`; when a match is legal is in `legal.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from qpass.ir.graph import Decl, Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op, is_absent
from qpass.ir.verify import enclosing
from qpass.rewrite.edit import Edit


@dataclass(frozen=True)
class Value:
    """A term that any value fits. The same name twice in a pattern means the same value."""

    name: str


@dataclass(frozen=True)
class Param:
    """A term that a persistable value fits, as it stands before the block runs."""

    name: str


class Either:
    """A term that fits where one of `terms` does; the first that fits is taken and never reconsidered."""

    def __init__(self, first: Term, *others: Term) -> None:
        self.terms = (first, *others)


class Node:
    """A term that the main output of an op fits.

    Parameters
    ----------
    types : str or iterable of str
        Op types that fit.
    name : str, optional
        Under which `Match.ops` gives the op.
    slots : Term or tuple of Term
        What the op reads in an input slot: exactly as many operands as there are terms. Slots not named here may hold
        anything.
    """

    def __init__(self, types: str | Iterable[str], name: str | None = None, **slots: Term | tuple[Term, ...]) -> None:
        self.types = frozenset((types,) if isinstance(types, str) else types)
        self.name = name
        self.slots = {slot: terms if isinstance(terms, tuple) else (terms,) for slot, terms in slots.items()}


Term: TypeAlias = Node | Param | Value | Either


@dataclass(frozen=True)
class Miss:
    """Why a pattern does not apply at an anchor.

    Parameters
    ----------
    reason : str
    op : Op
        The guilty op.
    where : str
        The anchor's place in the model.
    """

    reason: str
    op: Op
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason} ({self.op})"


@dataclass(frozen=True, eq=False)
class Match:
    """A place where a pattern fits.

    Parameters
    ----------
    model : Model
    graph : Graph
        The block that holds it.
    anchor : Op
        The last op of the region.
    region : tuple of Op
        Every op that a `Node` of the pattern matched, in program order.
    ops : Mapping[str, Op]
        Captured ops by the names of their nodes.
    values : Mapping[str, ValueRef]
        Captured values by the names of `Param` and `Value` terms; alternatives not taken capture nothing.
    elsewhere : frozenset of str
        Names that other blocks mention.
    """

    model: Model
    graph: Graph
    anchor: Op
    region: tuple[Op, ...]
    ops: Mapping[str, Op]
    values: Mapping[str, ValueRef]
    elsewhere: frozenset[str]

    @property
    def result(self) -> ValueRef:
        """The anchor's main output: the one value of the region that others may read."""
        return self.graph.written(self.anchor, main_output(self.anchor))

    def decl(self, ref: ValueRef) -> Decl | None:
        """The declaration of `ref`, in this block or an enclosing one."""
        return next((g.decls[ref.name] for g in enclosing(self.model, self.graph) if ref.name in g.decls), None)

    def touched(self) -> frozenset[ValueRef]:
        """Every value that the region reads or writes."""
        reads = (self.graph.read(op, slot, index) for op in self.region for slot, index, _ in op.reads())
        writes = (self.graph.written(op, slot, index) for op in self.region for slot, index, _ in op.writes())
        return frozenset((*reads, *writes))

    def take_over(self, e: Edit, op: Op) -> Op:
        """Put `op`, which writes the name of the result, in the anchor's place; who read the result reads that."""
        made = e.replace(self.anchor, op)
        for use in self.graph.uses(self.result):
            e.rewire(use.op, use.slot, use.index, self.result.name)
        return made

    def miss(self, reason: str, op: Op | str | None = None) -> Miss:
        """A `Miss` that blames `op`, given itself or by capture name; the anchor by default."""
        return Miss(reason, self.ops[op] if isinstance(op, str) else op or self.anchor)


class Pattern(abc.ABC):
    """Base of every pattern: what to look for, what must hold besides, and what to put in its place.

    Attributes
    ----------
    pattern : Node
        Its op is the anchor.
    """

    pattern: ClassVar[Node]

    def check(self, match: Match) -> Miss | None:
        """What speaks against a rewrite of this legal match; None when nothing does."""
        return None

    @abc.abstractmethod
    def rewrite(self, match: Match, e: Edit) -> None:
        """Replace the region. The main output of the anchor, or its readers, must be provided for."""


_MAIN_OUTPUTS = ("Out", "Output", "Y")


def main_output(op: Op) -> str:
    """The output slot that holds what an op is for: ``Out``, ``Output`` or ``Y``, else its first slot in use."""
    used = [slot for slot, _, _ in op.writes()]
    return next((slot for slot in _MAIN_OUTPUTS if slot in used), used[0] if used else "")


def is_parameter(model: Model, graph: Graph, ref: ValueRef) -> bool:
    """Whether `ref` is what a persistable tensor of this or an enclosing block holds before the block runs."""
    if ref.version:
        return False
    decl = next((g.decls[ref.name] for g in enclosing(model, graph) if ref.name in g.decls), None)
    return decl is not None and decl.persistable and decl.kind == "tensor"


def match(pattern: Pattern, model: Model, graph: Graph, anchor: Op, elsewhere: frozenset[str]) -> Match | Miss:
    """Match the terms of `pattern` backwards from `anchor`. Whether a rewrite is legal is not asked here.

    Where alternatives fail, the miss is that of the one that came furthest.
    """
    search = _Search(model, graph)
    if not search.node(pattern.pattern, anchor):
        return search.furthest
    region = tuple(sorted(search.region.values(), key=lambda op: graph.position[op.uid]))
    return Match(model, graph, anchor, region, search.ops, search.values, elsewhere)


class _Search:
    def __init__(self, model: Model, graph: Graph) -> None:
        self.model = model
        self.graph = graph
        self.region: dict[int, Op] = {}
        self.ops: dict[str, Op] = {}
        self.values: dict[str, ValueRef] = {}
        self.furthest = Miss("", Op(""))
        self._depth = -1

    def node(self, node: Node, op: Op) -> bool:
        if op.type not in node.types:
            return self.fail(f"expected {' or '.join(sorted(node.types))}, found {op.type}", op)
        if node.name is not None and self.ops.setdefault(node.name, op) is not op:
            return self.fail(f"{node.name!r} stands for another op already", op)
        self.region[op.uid] = op
        for slot, terms in node.slots.items():
            given = [name for name in op.input(slot) if not is_absent(name)]
            if len(given) != len(terms) or len(op.input(slot)) != len(terms):
                return self.fail(f"slot {slot} holds {len(given)} operands, expected {len(terms)}", op)
            if not all(self.term(term, op, slot, index) for index, term in enumerate(terms)):
                return False
        return True

    def term(self, term: Term, op: Op, slot: str, index: int) -> bool:
        ref = self.graph.read(op, slot, index)
        writer = self.graph.writer(ref)
        if isinstance(term, Either):
            return self.either(term, op, slot, index)
        if isinstance(term, Node):
            if writer is None:
                return self.fail(f"slot {slot} reads {ref}, which no op of the block writes", op)
            if writer.type in term.types and self.graph.written(writer, main_output(writer)) != ref:
                return self.fail(f"slot {slot} reads {ref}, which is not the main output of {writer.type}", writer)
            return self.node(term, writer)
        if isinstance(term, Param) and not is_parameter(self.model, self.graph, ref):
            return self.fail(f"slot {slot} reads {ref}, which is not a parameter", writer or op)
        if self.values.setdefault(term.name, ref) != ref:
            return self.fail(f"{term.name!r} stands for {self.values[term.name]}, found {ref}", op)
        return True

    def either(self, either: Either, op: Op, slot: str, index: int) -> bool:
        region, ops, values = dict(self.region), dict(self.ops), dict(self.values)
        earlier = self.furthest, self._depth
        for term in either.terms:
            if self.term(term, op, slot, index):
                self.furthest, self._depth = earlier
                return True
            self.region, self.ops, self.values = dict(region), dict(ops), dict(values)
        return False

    def fail(self, reason: str, op: Op) -> bool:
        if len(self.region) > self._depth:
            self.furthest, self._depth = Miss(reason, op), len(self.region)
        return False
