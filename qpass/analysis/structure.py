"""Structural labels of layers: what a layer is and where it stands, without any name.

Two layers of two models get the same label when they look alike (kind, weight shape, strides, ...) and so does
everything above and below them. This is colour refinement (Weisfeiler and Lehman 1968) on the graph of layers: ops
without weights are transparent, as twins differ in them (quantize and dequantize ops, `shape` and `slice` and `scale`);
only where such an op joins several data streams, the order of its operands counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qpass.ir.graph import Graph, ValueRef
from qpass.ir.op import Op

_ROUNDS = 4
"""Upper bound of refinement rounds. One round sees all ancestors and all descendants, the second their relatives; more
than two split no class of any model in the corpus."""

_SHAPE_OPS = frozenset({"shape", "size"})
"""Ops that read the extent of a value, not its content: twins read extents at different places."""

_Term = Hashable


@dataclass(frozen=True)
class Node:
    """A layer as alignment sees it.

    Parameters
    ----------
    name : str
    kind : tuple of str
        What kind of layer it is, in words that are alike for layers that compute alike.
    shape : tuple of int
        Of the weight.
    uids : tuple of int
        Of the ops that use the weight.
    """

    name: str
    kind: tuple[str, ...]
    shape: tuple[int, ...]
    uids: tuple[int, ...]


class Labels:
    """Numbers for terms; models that are to be compared share one object."""

    def __init__(self) -> None:
        self._numbers: dict[_Term, int] = {}

    def number(self, term: _Term) -> int:
        """The number of a term: equal terms have equal numbers."""
        return self._numbers.setdefault(term, len(self._numbers))


def above(graph: Graph, nodes: Sequence[Node], start: Sequence[int], labels: Labels, *, ordered: bool) -> list[int]:
    """Label of each layer from its own start label and all its ancestors.

    Parameters
    ----------
    graph : Graph
    nodes : sequence of Node
        The layers of `graph`.
    start : sequence of int
        A label for each of them.
    labels : Labels
    ordered : bool
        Whether the order of the operands of a join counts.
    """
    of_op = _layer_of_op(nodes)
    found: dict[int, list[int]] = {i: [] for i in range(len(nodes))}
    terms: dict[ValueRef, int | None] = {}
    for op in graph.ops:
        sources = [t for t in (terms.get(graph.read(op, s, i)) for s, i, _ in op.reads()) if t is not None]
        if op.uid in of_op:
            layer = of_op[op.uid]
            term: int | None = labels.number(("layer", start[layer], *_arranged(sources, ordered)))
            found[layer].append(labels.number(("at", term)))
        elif op.type == "feed":
            term = labels.number(("feed", op.int_attr("col", 0)))
        elif op.type in _SHAPE_OPS or not sources:
            term = None
        else:
            term = sources[0] if len(sources) == 1 else labels.number(("join", *_arranged(sources, ordered)))
        for slot, index, _ in op.writes():
            part = None if term is None else _part(labels, op, slot, index, term)
            terms[graph.written(op, slot, index)] = part
    return [labels.number(("above", start[i], *found[i])) for i in range(len(nodes))]


def below(graph: Graph, nodes: Sequence[Node], start: Sequence[int], labels: Labels, *, ordered: bool) -> list[int]:
    """Label of each layer from its own start label and all its descendants; parameters as of `above`."""
    of_op = _layer_of_op(nodes)
    data = _data_operands(graph)
    found: dict[int, list[int]] = {i: [] for i in range(len(nodes))}
    uses: dict[ValueRef, list[int]] = {}
    for op in reversed(graph.ops):
        outward: list[int] = []
        for slot, index, _ in op.writes():
            terms = uses.get(graph.written(op, slot, index), [])
            outward.extend(_part(labels, op, slot, index, term) for term in terms)
        outward.sort()
        operands = data[op.uid]
        if op.uid in of_op:
            layer = of_op[op.uid]
            outward = [labels.number(("layer", start[layer], *outward))]
            found[layer].extend(outward)
        elif op.type == "fetch":
            outward = [labels.number(("fetch", op.int_attr("col", 0)))]
        elif op.type in _SHAPE_OPS or not outward:
            continue
        for place, ref in enumerate(operands):
            terms = outward
            if len(operands) > 1:
                terms = [labels.number(("join", place if ordered else -1, *outward))]
            uses.setdefault(ref, []).extend(terms)
    return [labels.number(("below", start[i], *found[i])) for i in range(len(nodes))]


def refine(graph: Graph, nodes: Sequence[Node], start: Sequence[int], labels: Labels, *, ordered: bool) -> list[int]:
    """Labels from start labels and everything above and below, refined until no class splits."""
    current = list(start)
    for _ in range(_ROUNDS):
        up = above(graph, nodes, current, labels, ordered=ordered)
        down = below(graph, nodes, current, labels, ordered=ordered)
        current = [labels.number(("round", *pair)) for pair in zip(up, down, strict=True)]
    return current


def same_labels(a: Iterable[int], b: Iterable[int]) -> bool:
    """Whether two models have the same labels, each as often."""
    return sorted(a) == sorted(b)


def _layer_of_op(nodes: Sequence[Node]) -> Mapping[int, int]:
    return {uid: i for i, node in enumerate(nodes) for uid in node.uids}


def _arranged(terms: list[int], ordered: bool) -> list[int]:
    return terms if ordered else sorted(terms)


def _part(labels: Labels, op: Op, slot: str, index: int, term: int) -> int:
    """Tell the outputs of a `split` apart."""
    return term if len(op.output(slot)) == 1 else labels.number(("part", index, term))


def _data_operands(graph: Graph) -> dict[int, list[ValueRef]]:
    """For each op the operands that depend on a feed, in operand order."""
    fed: set[ValueRef] = set()
    found: dict[int, list[ValueRef]] = {}
    for op in graph.ops:
        found[op.uid] = [ref for ref in (graph.read(op, s, i) for s, i, _ in op.reads()) if ref in fed]
        if op.type == "feed" or (found[op.uid] and op.type not in _SHAPE_OPS):
            fed.update(graph.written(op, s, i) for s, i, _ in op.writes())
    return found
