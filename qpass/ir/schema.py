"""What qpass knows of operator types: in-place pairs and purity. Unknown types are legal, opaque and impure."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.ir.op import Attr

INPLACE_PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "batch_norm": (("Mean", "MeanOut"), ("Variance", "VarianceOut")),
    "fake_quantize_moving_average_abs_max": (("InScale", "OutScale"),),
    "fake_quantize_dequantize_moving_average_abs_max": (("InScale", "OutScale"),),
    "fake_quantize_range_abs_max": (("InScale", "OutScale"),),
}
"""Op type -> (input slot, output slot) pairs that must name the same variable at inference time."""

PURE = frozenset(
    """
    abs arg_max arg_min assign batch_norm bilinear_interp bilinear_interp_v2 bmm cast clip concat conv2d
    conv2d_transpose depthwise_conv2d depthwise_conv2d_transpose dequantize_abs_max dequantize_linear dropout
    elementwise_add elementwise_div elementwise_max elementwise_min elementwise_mul elementwise_pow elementwise_sub elu
    equal exp expand_v2 fake_channel_wise_dequantize_max_abs fake_channel_wise_quantize_abs_max
    fake_channel_wise_quantize_dequantize_abs_max fake_dequantize_max_abs fake_quantize_abs_max
    fake_quantize_dequantize_abs_max fake_quantize_dequantize_moving_average_abs_max
    fake_quantize_moving_average_abs_max fake_quantize_range_abs_max fill_constant flatten flatten2
    flatten_contiguous_range floor gather gelu greater_than group_norm hard_sigmoid hard_swish hard_tanh
    instance_norm layer_norm leaky_relu less_than log logical_and logical_not logical_or lookup_table
    lookup_table_v2 matmul matmul_v2 mean mish mul nearest_interp nearest_interp_v2 not_equal one_hot_v2 p_norm
    pad pad2d pad3d pool2d pow prelu quantize_linear range reduce_max reduce_mean reduce_min reduce_prod
    reduce_sum relu relu6 reshape reshape2 rsqrt scale shape sigmoid silu slice softmax softplus split sqrt square
    squeeze squeeze2 stack strided_slice sum swish tanh tile top_k top_k_v2 transpose transpose2 unsqueeze unsqueeze2
    where
    """.split()  # noqa: SIM905 - a list literal of a hundred quoted words would be harder to read
)
"""Op types whose only effect, at inference time, is to write their outputs."""

FAMILIES: Mapping[str, str] = {
    "conv2d": "conv2d",
    "depthwise_conv2d": "depthwise_conv2d",
    "conv2d_transpose": "conv2d_transpose",
    "depthwise_conv2d_transpose": "conv2d_transpose",
    "mul": "matmul",
    "matmul": "matmul",
    "matmul_v2": "matmul",
}
"""Op types with weights -> family. `mul`, `matmul` and `matmul_v2` are one family."""

OPERANDS: Mapping[str, tuple[str, str, str]] = {
    "conv2d": ("Filter", "Input", "Output"),
    "depthwise_conv2d": ("Filter", "Input", "Output"),
    "conv2d_transpose": ("Filter", "Input", "Output"),
    "depthwise_conv2d_transpose": ("Filter", "Input", "Output"),
    "mul": ("Y", "X", "Out"),
    "matmul": ("Y", "X", "Out"),
    "matmul_v2": ("Y", "X", "Out"),
}
"""Op types with weights -> slots of (weight, activation, output)."""

EMBEDDINGS: Mapping[str, tuple[str, str, str]] = {
    "lookup_table": ("W", "Ids", "Out"),
    "lookup_table_v2": ("W", "Ids", "Out"),
}
"""Op types that look rows of a weight up -> slots of (weight, indices, output): only their weight can be quantized."""

_X_OUT = """
    abs assign bilinear_interp bilinear_interp_v2 clip concat dropout expand_v2 flatten flatten2
    flatten_contiguous_range gather gelu hard_sigmoid hard_swish leaky_relu mean nearest_interp nearest_interp_v2
    p_norm pad2d pad3d pool2d pow prelu reduce_max reduce_mean reduce_sum relu relu6 reshape reshape2 scale
    shuffle_channel sigmoid softmax softplus split square squeeze squeeze2 swish tanh tile transpose transpose2
    trilinear_interp unsqueeze2
"""
_XY_OUT = "elementwise_add elementwise_mul elementwise_pow elementwise_sub matmul matmul_v2 mul"

ACTIVATION_OPERANDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(_X_OUT.split(), (("X",), "Out")),
    **dict.fromkeys(_XY_OUT.split(), (("X", "Y"), "Out")),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm", "stack"), (("X",), "Y")),
    **dict.fromkeys(("slice", "strided_slice"), (("Input",), "Out")),
    "grid_sampler": (("X",), "Output"),
}
"""Op types whose input activations can be quantized too -> slots of (those activations, the main output).

The op types of Paddle 3.3's static/quantization/quant_config.py, SUPPORT_ACT_QUANTIZATION_OP_DICT, but for those that
compare, index, fill or convert, and recurrent ones, whose operands are no activations in the sense of a scale.
"""

FORWARD: Mapping[str, Attr] = {"op_role": Attr.int(0)}
"""What Paddle says of every op of a forward pass; `Program.clone(for_test=True)` fails on ops without it."""

DEBUG_ATTRS = ("op_callstack", "op_namescope", "op_role_var", "op_device", "op_role", "with_quant_attr")
"""Attributes that do not change what an op computes; text dumps hide them, and count them."""
