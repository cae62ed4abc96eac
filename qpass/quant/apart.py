"""Weights of sites for themselves: a copy of each weight that somebody else reads, or quantizes otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.quant.encoding import declare_param
from qpass.quant.site import QuantSite
from qpass.rewrite.edit import edit
from qpass.rewrite.uses import used_names


def set_apart(model: Model, sites: Sequence[QuantSite], suffix: str) -> tuple[Model, list[QuantSite]]:
    """The same model and sites, each weight read by sites of one grid alone; copies are named ``<weight><suffix>``."""
    elsewhere = used_names(model, without=model.graph) if len(model.blocks) > 1 else set()
    made: list[QuantSite] = []
    with edit(model) as e:
        for site in sites:
            alike = [s for s in sites if s.value == site.value and _same_grid(s, site)]
            heads = {s.ops[0] for s in alike}
            others = [use for use in model.graph.uses(site.value) if use.op not in heads]
            name = site.value.name
            if others or name in elsewhere:
                name = declare_param(e, f"{name}{suffix}", np.array(model.params[name]))
                e.rewire(site.ops[0], "X", 0, name)
            made.append(dataclasses.replace(site, value=ValueRef(name, 0)))
    return e.model, made


def _same_grid(a: QuantSite, b: QuantSite) -> bool:
    return a.spec == b.spec and a.storage is b.storage and np.array_equal(a.threshold, b.threshold)
