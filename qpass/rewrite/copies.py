"""A copy of a value under a name of its own, by an `assign` op."""

from __future__ import annotations

import dataclasses

from qpass.ir.graph import Decl
from qpass.ir.op import Op
from qpass.ir.schema import FORWARD
from qpass.rewrite.edit import Edit


def insert_copy(e: Edit, source: str, decl: Decl, suffix: str, *, before: int | Op) -> str:
    """Copy what `source` holds there; the name of the copy, ``<source>.<suffix>`` or the next that is free.

    Parameters
    ----------
    e : Edit
    source : str
    decl : Decl
        Of a value of this shape and type: the copy is a temporary like it.
    suffix : str
    before : int or Op
        The op, or its uid, in front of which the copy is made.
    """
    name = e.fresh(f"{source}.{suffix}")
    e.declare(dataclasses.replace(decl, name=name, persistable=False, is_parameter=None))
    e.insert(Op.make("assign", {"X": source}, {"Out": name}, FORWARD), before=before)
    return name
