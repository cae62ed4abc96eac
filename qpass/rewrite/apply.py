"""The driver of patterns: rewrites until nothing matches, and explains what does not.

Each round scans a block once, takes the matches that share no value with one another, and rewrites them in one
transaction: no rewrite can invalidate what another one of its round has seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

from qpass.errors import PassError
from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.verify import place
from qpass.rewrite.edit import edit
from qpass.rewrite.legal import illegal
from qpass.rewrite.passes import Pass
from qpass.rewrite.pattern import Match, Miss, Pattern, match
from qpass.rewrite.uses import op_names, undeclare_unused, used_names


class PatternPass(Pass):
    """Base of the passes that apply patterns and nothing else.

    Attributes
    ----------
    patterns : tuple of Pattern
    """

    patterns: ClassVar[tuple[Pattern, ...]]

    def run(self, model: Model) -> Model:
        """The model rewritten until no pattern matches, or `model` itself."""
        return apply(model, self.patterns)

    def explain(self, model: Model) -> tuple[Miss, ...]:
        """Where the pass does not apply, and why: one `Miss` for each op of an anchor's type that stays as it is."""
        return explain(model, self.patterns)


def apply(model: Model, patterns: Pattern | Sequence[Pattern]) -> Model:
    """Rewrite every block until no pattern matches; declarations and parameters orphaned by that go too.

    Parameters
    ----------
    model : Model
    patterns : Pattern or sequence of Pattern
        Tried in this order at every op.

    Returns
    -------
    Model
        `model` itself when nothing matched.

    Raises
    ------
    PassError
        If rewriting does not come to an end.
    """
    several = (patterns,) if isinstance(patterns, Pattern) else tuple(patterns)
    made, touched = model, dict[str, None]()
    for index in range(len(model.blocks)):
        limit = len(made.blocks[index].ops) + 1
        for _ in range(limit):
            rewritten = _round(made, index, several, touched)
            if rewritten is made:
                break
            made = rewritten
        else:
            raise PassError(
                f"still matching after {limit} rounds on block {index}",
                where=", ".join(type(p).__name__ for p in several),
                hint="a rewrite makes what the pattern looks for again: a defect of the pattern",
            )
    return model if made is model else undeclare_unused(made, touched)


def explain(model: Model, patterns: Pattern | Iterable[Pattern]) -> tuple[Miss, ...]:
    """Why the patterns do not apply: one `Miss` an op of an anchor's type, by block, pattern and program order."""
    several = (patterns,) if isinstance(patterns, Pattern) else tuple(patterns)
    misses: list[Miss] = []
    for graph in model.blocks:
        elsewhere = frozenset(used_names(model, without=graph))
        for pattern in several:
            for op in graph.ops:
                if op.type in pattern.pattern.types:
                    found = _try(pattern, model, graph, op.uid, elsewhere)
                    if isinstance(found, Miss):
                        misses.append(dataclasses.replace(found, where=place(graph, op)))
    return tuple(misses)


def _try(pattern: Pattern, model: Model, graph: Graph, uid: int, elsewhere: frozenset[str]) -> Match | Miss:
    found = match(pattern, model, graph, graph.by_uid[uid], elsewhere)
    if isinstance(found, Miss):
        return found
    return illegal(found) or pattern.check(found) or found


def _round(model: Model, index: int, patterns: Sequence[Pattern], touched: dict[str, None]) -> Model:
    graph = model.blocks[index]
    elsewhere = frozenset(used_names(model, without=graph))
    taken: set[ValueRef] = set()
    chosen: list[tuple[Pattern, Match]] = []
    for op in graph.ops:
        for pattern in patterns:
            if op.type not in pattern.pattern.types:
                continue
            found = _try(pattern, model, graph, op.uid, elsewhere)
            if isinstance(found, Match):
                values = found.touched()
                if taken.isdisjoint(values):
                    chosen.append((pattern, found))
                    taken |= values
                break
    if not chosen:
        return model
    with edit(model, index) as e:
        for pattern, found in chosen:
            pattern.rewrite(found, e)
    if e.model is not model:
        touched.update((name, None) for _, found in chosen for op in found.region for name in sorted(op_names(op)))
    return e.model
