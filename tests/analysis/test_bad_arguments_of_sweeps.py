from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.errors import AlignError, QuantError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.params import Params
from qpass.runtime.calibrate import calibrate

IMAGES = [demo.calibration_data()[0]]
QUANT = Path(__file__).resolve().parents[1] / "data" / "quant"


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def quantized() -> Model:
    return load(demo.qat_prefix())


def test_a_quantized_model_in_ptq_mode(quantized: Model) -> None:
    with pytest.raises(UsageError, match=r"quantized already: 16 sites(.|\n)*analyze_qat"):
        analyze_ptq(quantized, IMAGES)


def test_swapped_models_in_qat_mode(digits: Model, quantized: Model) -> None:
    with pytest.raises(UsageError, match=r"no quantization.*\n.*swapped"):
        analyze_qat(digits, quantized, data=IMAGES)
    with pytest.raises(UsageError, match=r"the float model is quantized\n.*swapped"):
        analyze_qat(quantized, quantized, data=IMAGES)


def test_op_types(digits: Model, quantized: Model) -> None:
    with pytest.raises(UsageError, match="'conv3d'"):
        analyze_ptq(digits, IMAGES, op_types=("conv3d",))
    with pytest.raises(UsageError, match="no layer of the op types conv2d_transpose"):
        analyze_ptq(digits, IMAGES, op_types=("conv2d_transpose",))
    with pytest.raises(UsageError, match="no quantized layer of the op types conv2d_transpose"):
        analyze_qat(quantized, digits, data=IMAGES, op_types=("conv2d_transpose",))


def test_families_choose_the_layers(digits: Model) -> None:
    table = calibrate(digits, IMAGES)
    result = analyze_ptq(digits, table, data=IMAGES, op_types=("depthwise_conv2d", "matmul"))
    assert {row.layer for row in result.rows} == {"conv2d_1.w_0", "linear_0.w_0", "linear_1.w_0"}


def test_a_scale_table_of_another_model(digits: Model) -> None:
    with pytest.raises(QuantError, match=r"no threshold|thresholds on axis"):
        analyze_ptq(digits, calibrate(load(QUANT / "float"), _noise()), data=IMAGES)


def test_neither_data_nor_a_function(digits: Model, quantized: Model) -> None:
    with pytest.raises(UsageError, match="must be data"):
        analyze_ptq(digits, calibrate(digits, IMAGES))
    with pytest.raises(UsageError, match="must be data"):
        analyze_qat(quantized, digits)


def test_the_direction_of_cosine_cannot_be_turned(digits: Model) -> None:
    with pytest.raises(UsageError, match="cosine similarity"):
        analyze_ptq(digits, IMAGES, higher_is_better=False)


def test_restore(digits: Model, quantized: Model) -> None:
    with pytest.raises(UsageError, match="restore is 'both', expected one of float, self"):
        analyze_qat(quantized, digits, data=IMAGES, restore="both")
    with pytest.raises(UsageError, match="needs the float model"):
        analyze_qat(quantized, None, data=IMAGES)


@pytest.mark.parametrize("encoding", ["a", "b", "c"])
def test_integers_are_no_latent_weight(encoding: str) -> None:
    with pytest.raises(QuantError, match=f"encoding {encoding.upper()} holds integers only"):
        analyze_qat(load(QUANT / encoding), None, data=_noise(), restore="self")


def test_a_metric_that_is_no_number(digits: Model, quantized: Model) -> None:
    with pytest.raises(UsageError, match="qat_metric is nan"):
        analyze_qat(quantized, digits, data=IMAGES, qat_metric=float("nan"))


def test_a_float_model_without_parameters(digits: Model, quantized: Model) -> None:
    structure = digits.replaced(params=Params())
    with pytest.raises(AlignError, match=r"has no parameters, expected float32"):
        analyze_qat(quantized, structure, data=IMAGES)


def test_another_model_as_the_twin(quantized: Model) -> None:
    with pytest.raises(AlignError, match="part here"):
        analyze_qat(quantized, load(QUANT / "float"), data=IMAGES)


def _noise() -> list[np.ndarray]:
    return [np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)]
