"""Many names for few: a program in which every value has a name of its own, the opposite of `reuse_names`."""

from __future__ import annotations

import dataclasses

from qpass.ir.graph import ValueRef
from qpass.ir.model import Model


def distinct_names(model: Model) -> Model:
    """Give values that share a name names of their own; inputs, outputs and what is persistable keep theirs.

    An op that writes onto its operand then writes elsewhere. oneDNN's kernels need that: one that works in place fails
    when the batch changes its size between two runs (relu behind a matrix product, 3.3.1).

    Parameters
    ----------
    model : Model
        With one block.

    Returns
    -------
    Model
        `model` itself where no name is written twice.
    """
    graph = model.graph
    fed = {name for op in graph.ops if op.type == "feed" for _, _, name in op.writes()}
    decls = dict(graph.decls)
    names: dict[ValueRef, str] = {}

    def name_of(ref: ValueRef) -> str:
        kept = ref.version <= 1 if ref.name in fed else ref.version in (0, graph.last(ref.name).version)
        if kept or graph.decls[ref.name].persistable:
            return ref.name
        if ref not in names:
            name = f"{ref.name}@{ref.version}"
            while name in decls:
                name += "_"
            decls[name] = dataclasses.replace(graph.decls[ref.name], name=name)
            names[ref] = name
        return names[ref]

    ops = []
    for op in graph.ops:
        made = op
        for slot, index, _ in op.reads():
            made = made.with_input(slot, index, name_of(graph.read(op, slot, index)))
        for slot, index, _ in op.writes():
            made = made.with_output(slot, index, name_of(graph.written(op, slot, index)))
        ops.append(made)
    return model.replaced(graph=dataclasses.replace(graph, ops=tuple(ops), decls=decls)) if names else model
