"""Rewrite what oneDNN's int8 engine would compute otherwise than the quantization in the file says.

Three things, each seen with Paddle Inference 2.6.2 and 3.3.1 and found in its source (fluid/framework/ir/onednn/):

**Scales are lent to neighbours.** The engine copies the scale of a value across ops that it takes to keep the range
(`compute_propagate_scales_onednn_pass.cc`): pooling, reshape2, transpose2, slice, split and nearest interpolation; from
input to output, or backwards where only the output has one. An *average* pool does not keep the range: behind a
squeeze-and-excite pool the map itself is clipped to the range of its means. A copy (``assign``) of the pool's output,
which is what gets quantized, keeps the two apart; so it does for a mover whose input others read as well, and for
``scale``, behind which the engine divides by the factor where it should multiply: the value before is held at a scale
that is off by its square.

**The weights of a matrix product are cut.** The scale of column n of a [K, N] weight is computed from the n-th run of K
numbers in memory, which is no column (`GetScales`, axis 0): columns that hold larger numbers saturate. A scale that the
engine collects from a quantize op on the weight is left alone, but is one number. So the weight of a product that
becomes an `fc` is quantized per tensor, by a pair on its float values.

**Sums that are fused into a convolution can spoil it**: a sum without scales takes the convolution back to float, and
one of a signed and an unsigned value reads bytes with the wrong sign (`qpass.quant.onednn_sums`). A copy before the sum
keeps it out of the convolution, in float.

`MarkSkipQuant` is for ops that would be quantized although nobody simulated it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.ir.model import Model
from qpass.quant.encodings import ENCODINGS
from qpass.quant.onednn_scales import cut_product_weights, lent_scales
from qpass.quant.onednn_sums import spoiling_sums
from qpass.quant.site import QuantSite, Storage
from qpass.quant.spec import QuantSpec
from qpass.quant.strip import strip_sites
from qpass.rewrite.copies import insert_copy
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class LegalizeOnednn(Pass):
    """Keep oneDNN's int8 engine to the scales in the file: no lending of scales, `fc` weights per tensor, sound sums.

    What the model computes in Paddle's own kernels changes only where weights of products were quantized per channel.
    A float model is left alone.
    """

    def run(self, model: Model) -> Model:
        """The legal model, or `model` itself when it is."""
        return _unfused_sums(_per_tensor_products(_isolated(model)))


def _isolated(model: Model) -> Model:
    """A copy between each op that lends scales wrongly and the quantization behind it."""
    graph = model.graph
    with edit(model) as e:
        for value, sites in lent_scales(model).items():
            first = min((site.ops[0] for site in sites), key=graph.position.__getitem__)
            name = insert_copy(e, value.name, graph.decls[value.name], "copy", before=first)
            for site in sites:
                e.rewire(site.ops[0], "X", 0, name)
    return e.model


def _unfused_sums(model: Model) -> Model:
    """A copy before each sum that would spoil the convolution it is fused into."""
    graph = model.graph
    with edit(model) as e:
        for uid, uses in spoiling_sums(model).items():
            for use in uses:
                source = graph.by_uid[uid].input(use.slot)[use.index]
                name = insert_copy(e, source, graph.decls[source], "float", before=uid)
                e.rewire(uid, use.slot, use.index, name)
    return e.model


def _per_tensor_products(model: Model) -> Model:
    sites = cut_product_weights(model)
    if not sites:
        return model
    made = strip_sites(model, sites, None, ())
    with edit(made) as e:
        ENCODINGS["B"].spell(e, made.graph, tuple(_per_tensor(sites)))
    return e.model


def _per_tensor(sites: Sequence[QuantSite]) -> Iterator[QuantSite]:
    for site in sites:
        yield dataclasses.replace(
            site,
            threshold=np.asarray(np.max(site.threshold), np.float32),
            spec=QuantSpec(site.spec.bits),
            encoding="B",
            ops=(),
            storage=Storage.FLOAT,
        )
