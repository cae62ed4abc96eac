"""`Target`: what a deployment engine takes, and what to write for it.

Every line was read in the engine's own source, or seen by running it; ``docs/lint.md`` has the details by rule.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from qpass.errors import UsageError
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.recipe import Recipe

_CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
_PRODUCTS = ("mul", "matmul", "matmul_v2")
_WEIGHTED = (*_CONVOLUTIONS, "conv2d_transpose", *_PRODUCTS)
_FAMILIES = (*_CONVOLUTIONS, "conv2d_transpose", "matmul")


@dataclass(frozen=True)
class Target:
    """One deployment engine.

    Parameters
    ----------
    name : str
        As the command line takes it.
    engine : str
        In words.
    op_types : tuple of str
        Op types whose weights and input activations are quantized.
    sums : tuple of str
        Op types without weights whose inputs are always quantized too: what the engine computes in one with a layer.
    activation_op_types : tuple of str
        Op types without weights whose inputs are quantized too, under `is_full_quantize`.
    encoding : str
        What to write.
    accepts : tuple of str
        Encodings that the engine reads.
    bits : tuple of int
        Bit lengths that it takes.
    attributes : tuple of str
        Attributes of ops that it reads: where scales of outputs stand, and what marks an op as quantized or not.
    before, after : tuple of str
        Passes, as text, to run before calibration, and on the quantized model before its weights become integers.
    int8_weights : tuple of str
        Families of layers whose weights are stored as integers.
    source : str
        Where all this was read.
    """

    name: str
    engine: str
    op_types: tuple[str, ...]
    sums: tuple[str, ...]
    activation_op_types: tuple[str, ...]
    encoding: str
    accepts: tuple[str, ...]
    bits: tuple[int, ...]
    attributes: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    int8_weights: tuple[str, ...]
    source: str

    def fitted(self, recipe: Recipe) -> Recipe:
        """A recipe with the op types of this engine where it has none but the default.

        Raises
        ------
        UsageError
            If the engine does not take its bits.
        """
        self._check_bits(recipe.weight_bits, "weight_bits")
        self._check_bits(recipe.activation_bits, "activation_bits")
        for override in recipe.overrides:
            for bits in (override.weight_bits, override.activation_bits):
                if bits is not None:
                    self._check_bits(bits, f"override {override}")
        return dataclasses.replace(
            recipe,
            op_types=self.op_types if recipe.op_types == DEFAULT_OP_TYPES else recipe.op_types,
            activation_op_types=recipe.activation_op_types or self.sums,
        )

    def _check_bits(self, bits: int, what: str) -> None:
        if bits not in self.bits:
            taken = ", ".join(map(str, self.bits))
            raise UsageError(f"{what} is {bits}, but {self.name} takes {taken} bits")


_FLOAT_PASSES = ("fold-batch-norm", "drop-identity")

_ONEDNN = Target(
    name="onednn",
    engine="Paddle Inference, oneDNN int8 on CPU",
    # Weights of other ops stay int8 and the kernel refuses them: quant_dequant_mkldnn_pass.cc, DequantizeWeights.
    op_types=(*_CONVOLUTIONS, *_PRODUCTS),
    # A residual sum is fused into a convolution, which stays in float where the sum has no scales: QuantizeConv.
    sums=("elementwise_add",),
    # Paddle 2.6, static/quantization/quant_config.py, MKLDNNQuantizer.
    activation_op_types=(
        "pool2d",
        "elementwise_add",
        "elementwise_mul",
        "concat",
        "nearest_interp",
        "nearest_interp_v2",
        "split",
    ),
    encoding="B",
    accepts=("A", "B"),
    bits=(8,),
    attributes=("quantization_type", "out_threshold", "skip_quant"),
    before=("fold-batch-norm", "fold-bias", "drop-identity"),
    after=("legalize-onednn", "mark-skip-quant"),
    # The engine wants to find a quantize op on the weight of a product: see LegalizeOnednn.
    int8_weights=_CONVOLUTIONS,
    source="paddle/fluid/framework/ir/onednn/quant_dequant_onednn_pass.cc, cpu_quantize_placement_pass.cc, "
    "cpu_quantize_pass.cc (in 2.6 in the folder mkldnn)",
)

_TENSORRT = Target(
    name="tensorrt",
    engine="Paddle Inference with TensorRT",
    op_types=_WEIGHTED,
    sums=(),
    # Paddle 3.3, static/quantization/quant_config.py, TensorRTQuantizer.
    activation_op_types=(
        "pool2d",
        "elementwise_add",
        "elementwise_sub",
        "elementwise_mul",
        "elementwise_pow",
        "concat",
        "softmax",
        "relu",
        "relu6",
        "leaky_relu",
        "tanh",
        "swish",
        "softplus",
        "gelu",
        "hard_sigmoid",
        "hard_swish",
        "sigmoid",
        "layer_norm",
        "split",
        "bilinear_interp",
        "bilinear_interp_v2",
        "nearest_interp",
        "nearest_interp_v2",
        "clip",
        "pow",
        "reduce_mean",
        "reduce_sum",
        "reduce_max",
    ),
    encoding="B",
    accepts=("A", "B"),
    bits=(8,),
    attributes=("quantization_type", "out_threshold"),
    before=_FLOAT_PASSES,
    after=(),
    int8_weights=_FAMILIES,
    source="paddle/fluid/framework/ir/quant_conv2d_dequant_fuse_pass.cc, delete_quant_dequant_linear_op_pass.cc, "
    "trt_delete_weight_dequant_linear_op_pass.cc",
)

_LITE = Target(
    name="lite",
    engine="Paddle Lite",
    op_types=_WEIGHTED,
    sums=(),
    # Paddle 3.3, static/quantization/quant_config.py: ARMCPUQuantizer keeps the base class's empty list.
    activation_op_types=(),
    encoding="A",
    accepts=("A", "B", "D"),
    bits=(8, 16),
    attributes=("quantization_type", "bit_length", "out_threshold", "<Arg><i>_threshold"),
    before=_FLOAT_PASSES,
    after=(),
    int8_weights=_FAMILIES,
    source="lite/core/optimizer/mir/fusion/quant_dequant_fuse_pass.cc, quant_dequant_op_fuser.cc, "
    "mir/quantization_parameters_propagation_pass.cc",
)

_GENERIC = Target(
    name="generic",
    engine="any engine that runs the ops as Paddle does",
    op_types=_WEIGHTED,
    sums=(),
    activation_op_types=(),
    encoding="B",
    accepts=("A", "B", "C", "D"),
    bits=tuple(range(2, 17)),
    attributes=("quantization_type",),
    before=(),
    after=(),
    int8_weights=_FAMILIES,
    source="Paddle's kernels: phi/kernels/cpu/quantize_linear_kernel.cc, funcs/fake_quantize_functor.cc",
)

TARGETS: Mapping[str, Target] = {target.name: target for target in (_ONEDNN, _TENSORRT, _LITE, _GENERIC)}
"""Every target, by name."""


def find_target(name: str) -> Target:
    """The target of a name.

    Raises
    ------
    UsageError
        If there is none; the message lists the known ones and suggests the nearest.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name.lower(), TARGETS, 1, 0.5)
    raise UsageError(
        f"unknown target {name!r}, expected one of {', '.join(TARGETS)}",
        hint=f"did you mean {near[0]!r}?" if near else None,
    )
