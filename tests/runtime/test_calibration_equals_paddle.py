"""Thresholds are, bit for bit, those that Paddle's own PTQ finds on the same machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.corpus import corpus, golden

from qpass.formats.files import load
from qpass.runtime.calibrate import calibrate
from qpass.runtime.paddle_env import legacy_static


def thresholds_of_paddle(folder: Path, batches: list[np.ndarray], algo: str) -> dict[str, float]:
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
            onnx_format=True,
            quantizable_op_type=["conv2d", "matmul_v2"],
            optimize_model=False,
        )
        ptq.quantize()
        found = {name: np.asarray(value).ravel() for name, value in ptq._quantized_threshold.items()}
        return {name: float(value[0]) for name, value in found.items() if value.size == 1}


@pytest.mark.parametrize("algo", ["abs_max", "avg"])
def test_activation_thresholds(algo: str) -> None:
    folder = corpus("models/resnet8_cifar10")
    with np.load(golden("resnet8_calibration.npz")) as data:
        x = data["x"][:24].astype(np.float32)
    batches = [x[:12], x[12:]]
    expected = thresholds_of_paddle(folder, batches, algo)
    table = calibrate(load(folder / "inference.pdmodel"), batches, algo=algo, engine="executor")
    assert len(table.activations) == 8
    for name, threshold in table.activations.items():
        assert threshold == expected[name], name
