"""Let pairs that only observe quantize, as an engine does that quantizes the outputs they stand behind."""

from __future__ import annotations

from dataclasses import dataclass

from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.quant.encodings import find_sites
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass

ENABLED = "qpass_enabled_observer"
"""Attribute that says of an op that it only observed before."""


@dataclass(frozen=True)
class EnableObservers(Pass):
    """Switch on quantize/dequantize pairs with ``only_observer``, which Paddle itself runs as identity.

    Simulates an engine that quantizes what they observe. What was switched on carries an attribute, so that it can be
    switched off again.

    Parameters
    ----------
    undo : bool
        Switch off what this pass switched on: the model as it was before.
    """

    undo: bool = False

    def run(self, model: Model) -> Model:
        """The model with active pairs, or `model` itself when there was nothing to switch."""
        with edit(model) as e:
            if self.undo:
                for op in model.graph.ops:
                    if op.attr(ENABLED):
                        e.drop_attrs(op, (ENABLED,))
                        e.set_attr(op, "only_observer", Attr.bool(True))
            else:
                for uid in (uid for site in find_sites(model) if site.observer_only for uid in site.ops):
                    if "only_observer" in e.op(uid).attrs:
                        e.set_attr(uid, "only_observer", Attr.bool(False))
                        e.set_attr(uid, ENABLED, Attr.bool(True))
        return e.model
