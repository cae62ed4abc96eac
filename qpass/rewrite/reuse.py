"""Few names for many values: values that are never alive together share one name, and so the memory behind it.

Paddle keeps what a run computed under its name until the next run. Names in the role of registers are given back when
their value has been read for the last time (linear scan; Poletto and Sarkar 1999), only to values of the same dtype and
shape, so that memory is neither grown nor moved, and only to results of the same op type: a tensor that a oneDNN kernel
wrote keeps its layout, in which a kernel of another kind would write wrong numbers (seen with 3.3.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator

from qpass.ir.model import Model
from qpass.ir.op import Op


def reuse_names(model: Model) -> Model:
    """Let values of the root block share names where their lives do not overlap.

    Parameters
    ----------
    model : Model
        With one block, each temporary name written once. Inputs, outputs and what is persistable keep their names.
    """
    graph = model.graph
    last = {name: i for i, op in enumerate(graph.ops) for _, _, name in op.reads()}
    kept = {name for op in graph.ops if op.type in ("feed", "fetch") for name in _operands(op)}
    kept.update(name for name, decl in graph.decls.items() if decl.persistable)
    names: dict[str, str] = {}
    kinds: dict[str, Hashable] = {}
    free: dict[Hashable, list[str]] = {}
    ops = []
    for i, op in enumerate(graph.ops):
        for _, _, name in op.writes():
            if name not in kept and name not in names:
                kinds[name] = (op.type, graph.decls[name].kind, graph.decls[name].dtype, graph.decls[name].shape)
                pool = free.get(kinds[name])
                names[name] = pool.pop() if pool else name
        ops.append(op.with_names(lambda name: names.get(name, name)))
        for name in dict.fromkeys(_operands(op)):
            if name in names and last.get(name, i) <= i:
                free.setdefault(kinds[name], []).append(names[name])
    used = {name for op in ops for name in _operands(op)}
    decls = {name: decl for name, decl in graph.decls.items() if name in used}
    return model.replaced(graph=dataclasses.replace(graph, ops=tuple(ops), decls=decls))


def _operands(op: Op) -> Iterator[str]:
    for _, _, name in (*op.reads(), *op.writes()):
        yield name
