"""WeightCorrection gives, bit for bit, the integers that the framework stores under ``bias_correction=True``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.corpus import corpus, golden
from support.quantized import quantized, residual_net

from qpass.errors import QuantError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.passes import FoldQuant, InsertQuant, WeightCorrection
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.site import Role
from qpass.quant.spec import QuantSpec
from qpass.quant.weight_correction import corrected_like_paddle
from qpass.runtime.paddle_env import legacy_static


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("axis", "shape"), [(0, (5, 3, 3, 3)), (1, (6, 7)), (1, (4, 3, 2, 2)), (None, (5, 3, 3, 3))])
def test_one_weight(bits, axis, shape):
    with legacy_static():
        from paddle.static.quantization import utils
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[0] *= 1.7
    others = tuple(i for i in range(weight.ndim) if i != axis)
    threshold = np.abs(weight).max(axis=None if axis is None else others).astype(np.float32) * np.float32(0.9)
    scale = threshold if axis is None else [float(s) for s in threshold]
    levels = np.round(utils.quant_tensor(weight.copy(), scale, axis or 0, bits, onnx_format=False))
    made = utils.bias_correction_w(weight, levels, scale, axis or 0, weight_bits=bits)
    found = corrected_like_paddle(weight, threshold, QuantSpec(bits, axis))
    assert np.array_equal(found, np.round(made))
    assert found.dtype == np.float32


def written_by_paddle(folder: Path, x: np.ndarray, out: Path, *, onnx_format: bool, correct: bool = True) -> Model:
    """The model as the framework quantizes it on two batches."""
    with legacy_static() as paddle:
        from paddle.static.quantization import PostTrainingQuantization

        class Loader(paddle.io.DataLoader):  # type: ignore[misc, name-defined]
            """2.6 asserts the class; what it calls is this."""

            def __init__(self) -> None:
                pass

            def __call__(self) -> Iterator[dict[str, np.ndarray]]:
                return ({"image": batch} for batch in (x[:8], x[8:]))

        ptq = PostTrainingQuantization(
            executor=paddle.static.Executor(paddle.CPUPlace()),
            model_dir=str(folder),
            model_filename="inference.pdmodel",
            params_filename="inference.pdiparams",
            data_loader=Loader(),
            batch_nums=2,
            algo="abs_max",
            onnx_format=onnx_format,
            bias_correction=correct,
            quantizable_op_type=["conv2d", "matmul_v2"],
            optimize_model=False,
        )
        ptq.quantize()
        ptq.save_quantized_model(str(out), model_filename="inference.pdmodel", params_filename="inference.pdiparams")
    return load(out / "inference.pdmodel")


def test_a_whole_model(tmp_path):
    folder = corpus("models/resnet8_cifar10")
    with np.load(golden("resnet8_calibration.npz")) as data:
        x = data["x"][:16].astype(np.float32)
    theirs = written_by_paddle(folder, x, tmp_path, onnx_format=False)
    sites = {site.value.name: site for site in find_sites(theirs) if site.role is Role.WEIGHT}
    model = load(folder / "inference.pdmodel")
    layers = find_layers(model)
    assert set(sites) == {layer.name for layer in layers}
    scales = ScaleTable(
        activations={},
        weights={name: site.threshold for name, site in sites.items()},
        weight_axes={name: site.spec.axis for name, site in sites.items()},
    )
    ours = FoldQuant()(WeightCorrection()(InsertQuant(scales, activations=False)(model)))
    for name in sites:
        assert np.array_equal(ours.params[name], theirs.params[name]), name


def test_in_the_other_format_the_framework_ignores_the_argument(tmp_path):
    folder, x = corpus("models/resnet8_cifar10"), np.zeros((16, 3, 32, 32), np.float32) + 100
    both = [written_by_paddle(folder, x, tmp_path / str(on), onnx_format=True, correct=on) for on in (True, False)]
    assert all(np.array_equal(both[0].params[name], both[1].params[name]) for name in both[0].params)


def test_only_chosen_float_weights_change():
    inserted = quantized(residual_net())
    made = WeightCorrection(layers=("conv2d_1.w_0",))(inserted)
    assert [n for n in made.params if not np.array_equal(made.params[n], inserted.params[n])] == ["conv2d_1.w_0"]
    folded = FoldQuant()(inserted)
    assert WeightCorrection()(folded) is folded
    assert WeightCorrection()(residual_net()) == residual_net()
    with pytest.raises(QuantError, match="there is no layer"):
        WeightCorrection(layers=("nobody",))(inserted)
