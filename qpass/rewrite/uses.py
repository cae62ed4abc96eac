"""Which names a model still uses, and the removal of declarations that nothing uses."""

from __future__ import annotations

from collections.abc import Collection

from qpass.ir.graph import Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.rewrite.edit import edit


def op_names(op: Op) -> set[str]:
    """Every name that an op mentions: operands, and variables named in its attributes.

    Control-flow ops also name variables in plain string lists (Paddle's `skip_eager_deletion_vars` of `while`), so for
    ops that carry a block every string list counts.
    """
    names = {name for _, _, name in (*op.reads(), *op.writes())}
    nested = any(a.kind in (AttrKind.BLOCK, AttrKind.BLOCKS) for a in op.attrs.values())
    for attr in op.attrs.values():
        if attr.kind in (AttrKind.VAR, AttrKind.VARS) or (nested and attr.kind is AttrKind.STRINGS):
            names.update(_strings(attr))
    return names


def used_names(model: Model, *, without: Graph | None = None) -> set[str]:
    """Every name that an op of any block mentions; `without` leaves one block out."""
    return {name for graph in model.blocks if graph is not without for op in graph.ops for name in op_names(op)}


def undeclare_unused(model: Model, names: Collection[str] | None = None) -> Model:
    """Drop declarations, with their parameters, that no op of any block mentions; `model` itself if there are none.

    Parameters
    ----------
    model : Model
    names : collection of str, optional
        Only these are looked at; None looks at all.
    """
    used = used_names(model)
    for graph in model.blocks:
        gone = [n for n in graph.decls if n not in used and (names is None or n in names)]
        if gone:
            with edit(model, graph.index) as e:
                for name in gone:
                    e.undeclare(name)
            model = e.model
    return model


def _strings(attr: Attr) -> list[str]:
    values = attr.value if isinstance(attr.value, tuple) else (attr.value,)
    return [v for v in values if isinstance(v, str)]
