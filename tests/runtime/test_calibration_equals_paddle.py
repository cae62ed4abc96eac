"""With `compat="paddle"` scales are, bit for bit, those that Paddle's own PTQ finds on the same machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.corpus import corpus, golden

from qpass.formats.files import load
from qpass.quant.observer_options import ObserverOptions
from qpass.runtime.calibrate import calibrate_many
from qpass.runtime.paddle_env import legacy_static

BINS = 512
"""The framework's KL takes two seconds a tensor with its 2048."""


def scales_of_paddle(folder: Path, batches: list[np.ndarray], algo: str, onnx_format: bool) -> dict[str, float]:
    with legacy_static() as paddle:
        from paddle.static.quantization import PostTrainingQuantization

        class Loader(paddle.io.DataLoader):  # type: ignore[misc, name-defined]
            """2.6 asserts the class; what it calls is this."""

            def __init__(self) -> None:
                pass

            def __call__(self) -> Iterator[dict[str, np.ndarray]]:
                return ({"image": batch} for batch in batches)

        ptq = PostTrainingQuantization(
            executor=paddle.static.Executor(paddle.CPUPlace()),
            model_dir=str(folder),
            model_filename="inference.pdmodel",
            params_filename="inference.pdiparams",
            data_loader=Loader(),
            batch_nums=len(batches),
            algo=algo,
            onnx_format=onnx_format,
            quantizable_op_type=["conv2d", "matmul_v2"],
            optimize_model=False,
        )
        ptq._histogram_bins = BINS
        ptq.quantize()
        held = ptq._quantized_var_threshold if algo in ("KL", "hist") else ptq._quantized_threshold
        found = {name: np.asarray(value).ravel() for name, value in held.items()}
        return {name: float(value[0]) for name, value in found.items() if value.size == 1}


ALGOS = ("abs_max", "avg", "hist", "KL", "mse", "emd", "ptf")


@pytest.mark.parametrize("onnx_format", [True, False])
def test_activation_scales(onnx_format: bool) -> None:
    folder = corpus("models/resnet8_cifar10")
    with np.load(golden("resnet8_calibration.npz")) as data:
        x = data["x"][:4].astype(np.float32)
    batches = [x[:3], x[3:] / 2]
    options = ObserverOptions(bins=BINS, onnx_format=onnx_format)
    tables = calibrate_many(
        load(folder / "inference.pdmodel"), batches, algos=ALGOS, compat="paddle", options=options, engine="executor"
    )
    # the format matters for mse and emd only: the others are compared once
    for algo in ALGOS if onnx_format else ("mse", "emd"):
        expected = scales_of_paddle(folder, batches, algo, onnx_format)
        found = tables[algo].activations
        assert len(found) == 8
        assert found == {name: expected[name] for name in found}, algo
