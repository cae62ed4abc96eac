"""When the region of a match may be replaced.

A region is a set of ops with one result, the main output of its last op. Three things make its replacement invisible:

1. *Pure*: every op of it only writes its outputs, and no output is a variable that outlives the run.
2. *Nothing escapes*: no op outside reads, fetches or captures a value written inside, the result excepted.
3. *In time*: what the region reads still stands when its last op runs, so that the replacement may read it there.

With one result, 2 makes the region convex: a path that leaves it goes through the last op and cannot come back.
"""

from __future__ import annotations

from qpass.ir.graph import ValueRef
from qpass.ir.op import AttrKind, Op
from qpass.ir.schema import INPLACE_PAIRS, PURE
from qpass.rewrite.pattern import Match, Miss


def illegal(match: Match) -> Miss | None:
    """The first of the three conditions that `match` breaks; None when it is legal."""
    inside = {op.uid for op in match.region}
    for op in match.region:
        miss = _impure(match, op) or _escapes(match, op, inside) or _overtaken(match, op, inside)
        if miss is not None:
            return miss
    return None


def overwritten(match: Match, ref: ValueRef, until: Op) -> Op | None:
    """The op that writes the name of `ref` anew before `until` runs; None when `ref` still stands there."""
    nxt = match.graph.writer(ValueRef(ref.name, ref.version + 1))
    if nxt is None or match.graph.position[nxt.uid] >= match.graph.position[until.uid]:
        return None
    return nxt


def local(match: Match, ref: ValueRef) -> bool:
    """Whether `ref` can be seen by its own block only."""
    return ref.name not in match.elsewhere and ref.name in match.graph.decls


def _impure(match: Match, op: Op) -> Miss | None:
    if op.type not in PURE:
        return Miss(f"{op.type} is not known to be free of effects", op)
    if any(a.kind in (AttrKind.BLOCK, AttrKind.BLOCKS) for a in op.attrs.values()):
        return Miss(f"{op.type} carries a block", op)
    inplace = {target for _, target in INPLACE_PAIRS.get(op.type, ())}
    for slot, _, name in op.writes():
        decl = match.graph.decls.get(name)
        if decl is not None and decl.persistable and slot not in inplace:
            return Miss(f"{op.type} writes {name!r}, which outlives the run", op)
    return None


def _escapes(match: Match, op: Op, inside: set[int]) -> Miss | None:
    inplace = {target for _, target in INPLACE_PAIRS.get(op.type, ())}
    for slot, index, _ in op.writes():
        ref = match.graph.written(op, slot, index)
        if ref == match.result:
            continue
        if not local(match, ref) and (slot not in inplace or ref.name in match.elsewhere):
            return Miss(f"{ref} ({slot}) is visible in another block", op)
        for reader in match.graph.readers(ref):
            if reader.uid not in inside:
                return Miss(f"{ref} ({slot}) is also read by {reader.type}", reader)
    return None


def _overtaken(match: Match, op: Op, inside: set[int]) -> Miss | None:
    for slot, index, _ in op.reads():
        ref = match.graph.read(op, slot, index)
        writer = match.graph.writer(ref)
        if writer is not None and writer.uid in inside:
            continue
        thief = overwritten(match, ref, match.anchor)
        if thief is not None and thief.uid not in inside:
            return Miss(f"{ref} ({slot}) is overwritten before {match.anchor.type} runs", thief)
    return None
