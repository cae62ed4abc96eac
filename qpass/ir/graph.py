"""Graphs of the IR: `Decl`, `ValueRef`, `Graph`.

A graph is one block of a program, as an immutable value: its ops in program order and its declarations by name. Paddle
names are not single-assignment (`batch_norm` writes its running mean onto the name it read), so a value is identified
by `(name, version)`: version 0 is what the name held before the block ran, version n what its n-th write left there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import networkx as nx

from qpass.ir.dtype import DType
from qpass.ir.op import Op

if TYPE_CHECKING:
    NxGraph: TypeAlias = nx.MultiDiGraph[int | "ValueRef"]


class ValueRef(NamedTuple):
    """Identity of a value inside its graph."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Use(NamedTuple):
    """One operand of one op, read or written: the op's uid, the slot, the index in the slot."""

    op: int
    slot: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass(frozen=True)
class Decl:
    """Declaration of a name: what the program says of the variable.

    Parameters
    ----------
    name : str
    kind : str
        ``tensor``, or Paddle's own word for another kind of variable (``FEED_MINIBATCH``, ``STEP_SCOPES``, ...).
    dtype : DType or None
        Element type; None when the kind has none.
    shape : tuple of int
        Dimensions; -1 is unknown until run time.
    persistable : bool
        Whether the value outlives a run (parameters, statistics).
    is_parameter : bool or None
        Whether the program calls it a trainable parameter; None when it does not say.
    extra : bytes
        What else the source format recorded of the variable, carried verbatim.
    """

    name: str
    kind: str = "tensor"
    dtype: DType | None = DType.FLOAT32
    shape: tuple[int, ...] = ()
    persistable: bool = False
    is_parameter: bool | None = None
    extra: bytes = b""


@dataclass(frozen=True)
class Graph:
    """One block: ops in program order, declarations in file order.

    Parameters
    ----------
    ops : tuple of Op
        Each with a `uid` that is unique in the graph.
    decls : Mapping[str, Decl]
        Declarations by name, in file order (frozen on construction).
    index, parent : int
        Number of the block and of its parent block; the root's parent is -1.
    extra : bytes
        What else the source format recorded of the block.
    """

    ops: tuple[Op, ...] = ()
    decls: Mapping[str, Decl] = field(default_factory=dict)
    index: int = 0
    parent: int = -1
    extra: bytes = b""

    def __post_init__(self) -> None:
        if not isinstance(self.decls, MappingProxyType):
            object.__setattr__(self, "decls", MappingProxyType(dict(self.decls)))

    def __reduce__(self) -> tuple[type[Graph], tuple[object, ...]]:
        """For pickle, which does not take frozen mappings; what was computed from the ops stays behind."""
        return Graph, (self.ops, dict(self.decls), self.index, self.parent, self.extra)

    @cached_property
    def _links(self) -> _Links:
        return _Links(self.ops)

    @cached_property
    def by_uid(self) -> Mapping[int, Op]:
        """Ops by uid."""
        return {op.uid: op for op in self.ops}

    @cached_property
    def position(self) -> Mapping[int, int]:
        """Program position of each op by uid."""
        return {op.uid: i for i, op in enumerate(self.ops)}

    def read(self, op: Op, slot: str, index: int = 0) -> ValueRef:
        """The value that `op` reads at (`slot`, `index`).

        Raises
        ------
        KeyError
            If there is no such operand.
        """
        return self._links.reads[Use(op.uid, slot, index)]

    def written(self, op: Op, slot: str, index: int = 0) -> ValueRef:
        """The value that `op` writes at (`slot`, `index`).

        Raises
        ------
        KeyError
            If there is no such operand.
        """
        return self._links.writes[Use(op.uid, slot, index)]

    def sole_read(self, op: Op, slot: str) -> ValueRef | None:
        """The value that `op` reads in `slot`; None unless it is the only operand there, and present."""
        return self._links.reads.get(Use(op.uid, slot, 0)) if len(op.input(slot)) == 1 else None

    def sole_written(self, op: Op, slot: str) -> ValueRef | None:
        """The value that `op` writes in `slot`; None unless it is the only operand there, and present."""
        return self._links.writes.get(Use(op.uid, slot, 0)) if len(op.output(slot)) == 1 else None

    def writer(self, ref: ValueRef) -> Op | None:
        """The op that writes `ref`; None for version 0."""
        use = self.definition(ref)
        return None if use is None else self.by_uid[use.op]

    def definition(self, ref: ValueRef) -> Use | None:
        """The output operand that writes `ref`; None for version 0."""
        return self._links.writer.get(ref)

    def uses(self, ref: ValueRef) -> tuple[Use, ...]:
        """Every operand that reads `ref`, in program order."""
        return tuple(self._links.uses.get(ref, ()))

    def readers(self, ref: ValueRef) -> tuple[Op, ...]:
        """The ops that read `ref`, in program order, each once."""
        return tuple(self.by_uid[uid] for uid in dict.fromkeys(use.op for use in self.uses(ref)))

    def last(self, name: str) -> ValueRef:
        """The value `name` holds when the block has run."""
        return ValueRef(name, self._links.versions.get(name, 0))

    @cached_property
    def nx(self) -> NxGraph:
        """The bipartite graph of ops and values, frozen: any networkx algorithm applies.

        Nodes are op uids (attribute ``op``) and `ValueRef` (attribute ``decl``, None when undeclared here); edges run
        in the direction of the data and are keyed by ``(slot, index)``, so ``add(a, a)`` keeps both of its edges.
        """
        g: NxGraph = nx.MultiDiGraph()
        links = self._links
        for op in self.ops:
            g.add_node(op.uid, op=op)
        for use, ref in links.reads.items():
            g.add_node(ref, decl=self.decls.get(ref.name))
            g.add_edge(ref, use.op, key=(use.slot, use.index))
        for use, ref in links.writes.items():
            g.add_node(ref, decl=self.decls.get(ref.name))
            g.add_edge(use.op, ref, key=(use.slot, use.index))
        nx.freeze(g)
        return g

    def topological(self) -> tuple[Op, ...]:
        """Ops in the lexicographic topological order keyed by program position.

        Besides the data edges, an op that overwrites a name waits for the readers of what stood there before. On a
        well-formed program this is the program order itself.
        """
        before: dict[int, set[int]] = {op.uid: set() for op in self.ops}
        links = self._links
        for use, ref in links.reads.items():
            source = links.writer.get(ref)
            if source is not None:
                before[use.op].add(source.op)
            overwriter = links.writer.get(ValueRef(ref.name, ref.version + 1))
            if overwriter is not None and overwriter.op != use.op:
                before[overwriter.op].add(use.op)
        for use, ref in links.writes.items():
            previous = links.writer.get(ValueRef(ref.name, ref.version - 1))
            if previous is not None and previous.op != use.op:
                before[use.op].add(previous.op)
        order: nx.DiGraph[int] = nx.DiGraph()
        order.add_nodes_from(before)
        order.add_edges_from((b, uid) for uid, sources in before.items() for b in sources)
        return tuple(
            self.by_uid[uid] for uid in nx.lexicographical_topological_sort(order, key=self.position.__getitem__)
        )

    def downstream(self, uids: set[int]) -> tuple[Op, ...]:
        """Ops that depend on any of `uids` through data, without those ops themselves, in program order."""
        return self._reach(uids, forward=True)

    def upstream(self, uids: set[int]) -> tuple[Op, ...]:
        """Ops that any of `uids` depends on through data, without those ops themselves, in program order."""
        return self._reach(uids, forward=False)

    def _reach(self, uids: set[int], *, forward: bool) -> tuple[Op, ...]:
        seen = set(uids)
        waiting = list(uids)
        while waiting:
            op = self.by_uid[waiting.pop()]
            if forward:
                near = [r.uid for s, i, _ in op.writes() for r in self.readers(self.written(op, s, i))]
            else:
                sources = (self.writer(self.read(op, s, i)) for s, i, _ in op.reads())
                near = [w.uid for w in sources if w is not None]
            waiting.extend(uid for uid in near if uid not in seen)
            seen.update(near)
        return tuple(op for op in self.ops if op.uid in seen and op.uid not in uids)


class _Links:
    """Who reads and writes which version of which name: one scan over the ops."""

    def __init__(self, ops: tuple[Op, ...]) -> None:
        self.reads: dict[Use, ValueRef] = {}
        self.writes: dict[Use, ValueRef] = {}
        self.writer: dict[ValueRef, Use] = {}
        self.uses: dict[ValueRef, list[Use]] = {}
        self.versions: dict[str, int] = {}
        for op in ops:
            for slot, index, name in op.reads():
                ref = ValueRef(name, self.versions.get(name, 0))
                use = Use(op.uid, slot, index)
                self.reads[use] = ref
                self.uses.setdefault(ref, []).append(use)
            for slot, index, name in op.writes():
                self.versions[name] = self.versions.get(name, 0) + 1
                ref = ValueRef(name, self.versions[name])
                self.writes[Use(op.uid, slot, index)] = ref
                self.writer[ref] = Use(op.uid, slot, index)
