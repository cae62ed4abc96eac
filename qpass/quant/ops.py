"""The op types that spell quantization, and their data slots."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.ir.op import Op

LINEAR = ("quantize_linear", "dequantize_linear")
"""Encodings B and C: integers between the two."""

FAKE = (
    "fake_quantize_dequantize_abs_max",
    "fake_quantize_dequantize_moving_average_abs_max",
    "fake_channel_wise_quantize_dequantize_abs_max",
)
"""Encoding D: floats in, floats out."""

OLD_QUANTIZE = ("fake_quantize_abs_max", "fake_quantize_range_abs_max", "fake_quantize_moving_average_abs_max")
"""Encoding A, before an op: floats in, integers held in floats out."""

OLD_DEQUANTIZE = ("fake_dequantize_max_abs", "fake_channel_wise_dequantize_max_abs")
"""Encoding A, after an op."""

OBSERVERS = ("moving_average_abs_max_scale",)
"""Identity at inference time; they only carry a scale."""

DATA_SLOTS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(LINEAR, ("X", "Y")),
    **dict.fromkeys((*FAKE, *OLD_QUANTIZE, *OLD_DEQUANTIZE, *OBSERVERS), ("X", "Out")),
}
"""Op type -> slots of the data that goes in and of the data that comes out."""

SCALE_SLOTS: Mapping[str, str] = {
    **dict.fromkeys(LINEAR, "Scale"),
    "fake_quantize_dequantize_moving_average_abs_max": "InScale",
    "fake_quantize_range_abs_max": "InScale",
    "fake_quantize_moving_average_abs_max": "InScale",
    "fake_dequantize_max_abs": "Scale",
    "fake_channel_wise_dequantize_max_abs": "Scales",
}
"""Op type -> the slot of the scales that it reads; ops that compute theirs are left out."""


def scale_names(op: Op) -> tuple[str, ...]:
    """Names of the scales that a quantization op reads, that of the site first; none for another op."""
    slot = SCALE_SLOTS.get(op.type)
    return op.input(slot) if slot is not None else ()
