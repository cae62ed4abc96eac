"""Take quantization out of a model, or out of some layers of it."""

from __future__ import annotations

from dataclasses import dataclass

from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_weights, select
from qpass.quant.marks import is_ours
from qpass.quant.site import QuantSite
from qpass.quant.strip import strip_sites
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class StripQuant(Pass):
    """Remove the quantization of layers: their operands read float values again.

    Weights become the floats that the model holds: the latent weights of encoding D and of unfolded pairs as they are,
    stored integers dequantized. An activation pair with other consumers stays for them. Output observers of the layers
    and their quantization attributes go too, and so do scales that nobody reads any more. What `InsertQuant` inserted
    goes without a trace: attributes that other tools left on the ops before stay.

    Parameters
    ----------
    layers : tuple of str
        Layers by weight name; empty is everything that is quantized, whether in a layer or not.

    Raises
    ------
    QuantError
        If there is no layer of a name.
    """

    layers: tuple[str, ...] = ()

    def run(self, model: Model) -> Model:
        """The model without this quantization, or `model` itself when there was none."""
        sites, graph = find_sites(model), model.graph
        if not self.layers:
            ours = {op.uid for op in graph.ops if is_ours(op)}
            alone = all(_among(model, site, ours) for site in sites)
            return strip_sites(model, sites, None, sorted(ours) if alone else [op.uid for op in graph.ops])
        chosen = [op for layer in select(find_weights(model), self.layers) for op in layer.ops]
        uses = frozenset(use for op in chosen for use in (op.weight, op.activation))
        outputs = {graph.sole_written(graph.by_uid[op.uid], op.output.slot) for op in chosen}
        hit = [s for s in sites if not uses.isdisjoint(s.uses) or (s.observer_only and s.value in outputs)]
        marked = {use.op for site in hit for use in site.uses if use in uses}
        return strip_sites(model, hit, uses, sorted(marked))


def _among(model: Model, site: QuantSite, uids: set[int]) -> bool:
    """Whether a site is about these ops alone: their operands, or, of an observer, their results."""
    writer = model.graph.writer(site.value)
    if site.observer_only and writer is not None:
        return writer.uid in uids
    return bool(site.uses) and uids.issuperset(use.op for use in site.uses)
