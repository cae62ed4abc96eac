"""Say what quantization ops of old files leave unsaid: ``round_type``.

Files of before Paddle 2.4 do not store it. The kernels then take the op's own default, but the translator of programs
to PIR in Paddle 3 reads the attribute itself and fails ("Type of attribute: round_type is not pir::Int32Attribute").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.quant.ops import FAKE, LINEAR, OLD_QUANTIZE
from qpass.quant.spec import Rounding
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass

DEFAULT_ROUNDING: Mapping[str, Rounding] = {
    **dict.fromkeys((*FAKE, *OLD_QUANTIZE, "fake_channel_wise_quantize_abs_max"), Rounding.HALF_AWAY),
    **dict.fromkeys(LINEAR, Rounding.HALF_EVEN),
}
"""Op type -> its rounding where the file does not say (phi/ops/yaml/ops.yaml)."""


@dataclass(frozen=True)
class AddQuantDefaults(Pass):
    """Add the rounding to quantization ops that do not say it, as Paddle 3's translation to PIR demands.

    Outputs stay the same bit for bit.
    """

    def run(self, model: Model) -> Model:
        """The model with every ``round_type`` said, or `model` itself."""
        for graph in model.blocks:
            with edit(model, graph.index) as e:
                for op in graph.ops:
                    rounding = DEFAULT_ROUNDING.get(op.type)
                    if rounding is not None and "round_type" not in op.attrs:
                        e.set_attr(op, "round_type", Attr.int(rounding.value))
            model = e.model
        return model
