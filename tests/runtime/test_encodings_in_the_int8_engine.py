"""What Paddle Inference's oneDNN int8 makes of the encodings: C is silent garbage there, and mended when converted."""

from __future__ import annotations

import numpy as np
import pytest
from support.corpus import corpus
from support.infer import infer
from support.quantized import written_by_paddle

from qpass.formats.files import load, to_bytes
from qpass.ir.model import Model
from qpass.mend import mend
from qpass.passes import ConvertEncoding
from qpass.runtime.engines import get_engine
from qpass.runtime.onednn_plan import onednn_plan
from qpass.runtime.simulate import has_vnni

# `fc` has two errors of its own: weight scales over the wrong axis, which LegalizeOnednn mends, and sums that saturate.
CONVOLUTIONS = {"fused_conv2d"}


def int8(model: Model, feed: dict[str, np.ndarray], ops: set[str] | None = None) -> np.ndarray:
    """First output of oneDNN int8, without qpass's runtime."""
    from paddle import inference

    program, params = to_bytes(model)
    config = inference.Config()
    config.set_model_buffer(program, len(program), params, len(params))
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(1)
    config.enable_mkldnn()
    config.enable_mkldnn_int8(CONVOLUTIONS if ops is None else ops)
    predictor = inference.create_predictor(config)
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu(feed[name])
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def calibration_images() -> dict[str, np.ndarray]:
    """Those that `tools/make_quant_fixtures.py` calibrated with."""
    images = [np.random.default_rng(i).standard_normal((3, 8, 8)) for i in range(4)]
    return {"x": np.stack(images).astype(np.float32)}


def test_c_is_garbage_and_its_conversion_is_not() -> None:
    model, x = written_by_paddle("c"), calibration_images()
    simulated = infer(model, x)[0]
    assert np.abs(int8(model, x) - simulated).max() > 0.5
    for to in ("A", "B"):
        # A level of the largest activation is 5.1 / 127 = 0.04; the mean over 64 pixels takes most of it.
        assert np.abs(int8(ConvertEncoding(to)(model), x) - simulated).max() < 0.02


@pytest.mark.parametrize(("kind", "to"), [("a", "B"), ("b", "A"), ("t", "B")])
def test_the_engine_computes_the_same_of_a_and_b(kind: str, to: str) -> None:
    model, x = written_by_paddle(kind), calibration_images()
    np.testing.assert_allclose(int8(ConvertEncoding(to)(model), x), int8(model, x), rtol=0, atol=1e-6)


def test_what_is_left_of_the_error_of_products_are_sums_in_16_bits() -> None:
    model, x = mend(written_by_paddle("b"), "onednn")[0], calibration_images()
    plan = onednn_plan(model)
    (fc,) = (op for op in plan.ops if op.type == "fc")
    (name,) = fc.reads
    assert fc.weight_value is not None
    assert fc.weight_scales is not None
    step = plan.quantized[name].threshold / 127
    session = get_engine("int8").session(model, [model.graph.last(name), model.graph.last(fc.outputs[0])])
    values, made = (array.reshape(4, -1) for array in session.run(x))
    weights = np.rint(fc.weight_value * fc.weight_scales)
    shifted = (
        np.clip(np.rint(values * np.float32(1 / step)), -128, 127) + 128
    )  # signed bytes are made unsigned, and that taken back
    pairs = (shifted[:, :, None] * weights).reshape(4, -1, 2, weights.shape[1]).sum(axis=2)
    held = pairs if has_vnni() else np.clip(pairs, -(2**15), 2**15 - 1)
    (add,) = (op for op in model.graph.ops if fc.outputs[0] in [n for _, _, n in op.writes()])
    product = (held.sum(axis=1) - 128 * weights.sum(axis=0)) * step / fc.weight_scales
    np.testing.assert_allclose(made, product + model.params[add.input("Y")[0]], rtol=0, atol=1e-5)


def test_official_qat_model_runs_as_int8() -> None:
    model = load(corpus("models/ppocr_cls_qat"))
    x = {"x": np.random.default_rng(0).standard_normal((4, 3, 48, 192)).astype(np.float32)}
    simulated = infer(model, x)[0]
    made = ConvertEncoding("B")(model)
    np.testing.assert_array_equal(infer(made, x)[0], simulated)
    assert np.abs(int8(made, x) - simulated).max() < 0.1
