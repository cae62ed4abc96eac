"""Drop observer ops that are identity; the scale that each carries goes to the op that made the value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.quant.encodings import find_sites
from qpass.quant.ops import DATA_SLOTS, OBSERVERS
from qpass.quant.strip import strip_sites
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass

_THRESHOLD = "out_threshold"


@dataclass(frozen=True)
class DropObservers(Pass):
    """Drop ``moving_average_abs_max_scale`` ops; their scales become the attribute ``out_threshold``.

    That is where engines look for the scale of an output. A threshold that stands there already is left.
    """

    def run(self, model: Model) -> Model:
        """The model without them, or `model` itself when there were none."""
        graph = model.graph
        sites = [site for site in find_sites(model) if graph.by_uid[site.ops[0]].type in OBSERVERS]
        with edit(model) as e:
            for site in sites:
                writer = graph.writer(site.value)
                scale = _scale(model, graph.by_uid[site.ops[0]])
                if writer is None or writer.type in DATA_SLOTS or scale is None or _THRESHOLD in e.op(writer).attrs:
                    continue
                e.set_attr(writer, _THRESHOLD, Attr.float(scale))
                e.set_attr(writer, "with_quant_attr", Attr.bool(True))
        gone = {site.ops for site in sites}
        return strip_sites(e.model, [site for site in find_sites(e.model) if site.ops in gone], None, ())


def _scale(model: Model, op: Op) -> float | None:
    names = op.output("OutScale")
    array = model.params.get(names[0]) if names else None
    if array is None or array.size != 1:
        return None
    value = float(np.ravel(array)[0])
    return value if np.isfinite(value) and value > 0 else None
