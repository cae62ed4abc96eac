"""The framework's own quantizers, run as PaddleSlim runs them: the judges of what the functions of its names write."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qpass.runtime.paddle_env import legacy_static

FILES = {"model_filename": "inference.pdmodel", "params_filename": "inference.pdiparams"}


def post_training(folder: Path, feed: str, batches: Sequence[np.ndarray], out: Path, **options: Any) -> Path:
    """`PostTrainingQuantization` of a folder's ``inference.pdmodel``; the prefix that it wrote."""
    with _quiet(), legacy_static() as paddle:
        from paddle.static.quantization import PostTrainingQuantization

        class Loader(paddle.io.DataLoader):  # type: ignore[misc, name-defined]
            """2.6 asserts the class; what it calls is this."""

            def __init__(self) -> None:
                pass

            def __call__(self) -> Iterator[dict[str, np.ndarray]]:
                return ({feed: batch} for batch in batches)

        scope = paddle.static.Scope()
        with paddle.static.scope_guard(scope):
            ptq = PostTrainingQuantization(
                executor=paddle.static.Executor(paddle.CPUPlace()),
                scope=scope,
                model_dir=str(folder),
                data_loader=Loader(),
                batch_nums=len(batches),
                **FILES,
                **options,
            )
            ptq.quantize()
            ptq.save_quantized_model(str(out), model_filename="model.pdmodel", params_filename="model.pdiparams")
    return out / "model"


def weights_alone(folder: Path, out: Path, **options: Any) -> tuple[Path, Path]:
    """`WeightQuantization` of a folder's ``inference.pdmodel``; the prefixes of its model and its test model."""
    with _quiet(), legacy_static() as paddle:
        from paddle.static.quantization import WeightQuantization

        with paddle.static.scope_guard(paddle.static.Scope()):
            WeightQuantization(model_dir=str(folder), **FILES).quantize_weight_to_int(
                save_model_dir=str(out),
                save_model_filename="model.pdmodel",
                save_params_filename="model.pdiparams",
                generate_test_model=True,
                **options,
            )
    return out / "quantized_model" / "model", out / "test_model" / "model"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and log lines of the framework from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
