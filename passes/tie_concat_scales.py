"""Give all quantized inputs of a concatenation one scale: the largest of theirs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.ops import scale_names
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class TieConcatScales(Pass):
    """Give all quantized inputs of each concatenation the largest of their scales.

    A pair that other ops read too changes for them as well, and chains of concatenations end at one scale: engines
    hold one scale for a value. Nothing is clipped that was not clipped before; steps become coarser. Scales that no
    parameter holds, or that are no finite numbers, are left.
    """

    def run(self, model: Model) -> Model:
        """The model with tied scales, or `model` itself when they were equal."""
        graph = model.graph
        groups: dict[int, set[str]] = {}
        for site in find_sites(model):
            names = {n for uid in site.ops for n in scale_names(graph.by_uid[uid])[:1] if n in model.params}
            known = site.threshold.size == 1 and bool(np.isfinite(site.threshold).all())
            for use in site.uses if names and known and not site.observer_only else ():
                if graph.by_uid[use.op].type == "concat":
                    groups.setdefault(use.op, set()).update(names)
        with edit(model) as e:
            for tied in _merged(list(groups.values())):
                largest = max(float(np.ravel(model.params[name])[0]) for name in tied)
                for name in sorted(tied):
                    e.set_param(name, np.full(model.params[name].shape, largest, np.float32))
        return e.model


def _merged(groups: list[set[str]]) -> list[set[str]]:
    """Groups that share a name, joined."""
    done: list[set[str]] = []
    for group in groups:
        apart = [other for other in done if other.isdisjoint(group)]
        done = [*apart, group.union(*(other for other in done if other not in apart))]
    return done
