"""Remove ops, declarations and parameters that no output depends on.

An op is live when it has an effect, or when a live op reads what it writes. Effects are: being of a type not known to
be pure (feed, fetch, control flow and every unknown type), writing a name that another block mentions or declares, and
writing a persistable variable that another op reads, perhaps in the next run. A persistable that only its own op reads
(`batch_norm`'s running mean) is no effect. All the rest is dead; then names that no remaining op mentions go.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpass.ir.graph import Graph
from qpass.ir.model import Model
from qpass.ir.op import AttrKind, Op
from qpass.ir.schema import PURE
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass
from qpass.rewrite.uses import undeclare_unused, used_names


@dataclass(frozen=True)
class RemoveUnused(Pass):
    """Remove ops, declarations and parameters that no output depends on."""

    def run(self, model: Model) -> Model:
        """The model without them, or `model` itself when everything is used."""
        # Inner blocks first: what they no longer capture may be dead outside. A parent comes before its children.
        for index in reversed(range(len(model.blocks))):
            graph = model.blocks[index]
            dead = _dead(model, graph)
            if dead:
                with edit(model, index) as e:
                    for op in dead:
                        e.remove(op)
                model = e.model
        return undeclare_unused(model)


def _dead(model: Model, graph: Graph) -> list[Op]:
    elsewhere = used_names(model, without=graph)
    reads: dict[str, set[int]] = {}
    for op in graph.ops:
        for _, _, name in op.reads():
            reads.setdefault(name, set()).add(op.uid)
    live = {op.uid for op in graph.ops if _has_effect(graph, op, elsewhere, reads)}
    pending = [graph.by_uid[uid] for uid in sorted(live)]
    while pending:
        op = pending.pop()
        for slot, index, _ in op.reads():
            writer = graph.writer(graph.read(op, slot, index))
            if writer is not None and writer.uid not in live:
                live.add(writer.uid)
                pending.append(writer)
    return [op for op in graph.ops if op.uid not in live]


def _has_effect(graph: Graph, op: Op, elsewhere: set[str], reads: dict[str, set[int]]) -> bool:
    if op.type not in PURE or any(a.kind in (AttrKind.BLOCK, AttrKind.BLOCKS) for a in op.attrs.values()):
        return True
    for _, _, name in op.writes():
        decl = graph.decls.get(name)
        if decl is None or name in elsewhere:
            return True
        if decl.persistable and reads.get(name, set()) - {op.uid}:
            return True
    return False
