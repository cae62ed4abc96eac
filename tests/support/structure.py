"""Questions about the structure of a model, answered naively: the reference for the real thing."""

from __future__ import annotations

from qpass.formats import pdmodel
from qpass.ir.model import Model
from qpass.ir.op import Op


def find(model: Model, kind: str) -> Op:
    return next(op for op in model.graph.ops if op.type == kind)


def encoded(model: Model) -> bytes:
    return pdmodel.encode(model.blocks, model.extra)


def producers(ops: list[Op]) -> dict[tuple[int, str, int], tuple[int, str, int] | None]:
    """For each operand that is read, the operand that wrote it: one naive scan, the reference for the real thing."""
    wrote: dict[str, tuple[int, str, int]] = {}
    found = {}
    for op in ops:
        for slot, names in op.inputs:
            for i, name in enumerate(names):
                if name not in ("", "@EMPTY@"):
                    found[op.uid, slot, i] = wrote.get(name)
        for slot, names in op.outputs:
            for i, name in enumerate(names):
                if name not in ("", "@EMPTY@"):
                    wrote[name] = (op.uid, slot, i)
    return found
