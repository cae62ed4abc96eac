"""Post-training quantization by options: what a target changes beside the encoding."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder

from qpass.errors import UsageError
from qpass.options import QuantOptions
from qpass.post_training import Quantized, post_training_quantize, quantize_prepared

MODEL = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).conv2d(4).relu().conv2d(4).model()
IMAGES = np.random.default_rng(3).standard_normal((4, 3, 8, 8)).astype(np.float32)


def thresholds(made: Quantized) -> dict[str, object]:
    ops = (op for op in made.model.graph.ops if "out_threshold" in op.attrs)
    return {name: op.attrs["out_threshold"].value for op in ops for _, _, name in op.writes()}


def test_a_target_of_encoding_a_keeps_scales_of_outputs_as_encoding_a_does() -> None:
    """Of the first convolution too, whose output only a quantized layer reads."""
    plain = post_training_quantize(MODEL, [IMAGES], QuantOptions(encoding="A", outputs=True))
    lite = post_training_quantize(MODEL, [IMAGES], QuantOptions(target="lite", outputs=True))
    assert len(thresholds(plain)) == 3
    assert thresholds(lite) == thresholds(plain)


@pytest.mark.parametrize(
    "options", [QuantOptions(encoding="A", outputs=True), QuantOptions(target="lite", outputs=True)]
)
def test_a_layer_that_is_skipped_late_keeps_no_scale_of_its_output(options: QuantOptions) -> None:
    whole = post_training_quantize(MODEL, [IMAGES], options)
    made = quantize_prepared(MODEL, whole.scales, options, None, ("conv2d_1.w_0",))
    assert made.layers == ("conv2d_0.w_0", "conv2d_2.w_0")
    first, _, last = thresholds(whole).values()
    assert list(thresholds(made).values()) == [first, last]


def test_neither_data_nor_scales() -> None:
    with pytest.raises(UsageError, match="neither data nor scales"):
        post_training_quantize(MODEL, None, QuantOptions())
