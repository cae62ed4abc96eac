"""The framework's own post-training quantization, which ships with Paddle; PaddleSlim's is a shell over it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qpass.runtime.paddle_env import legacy_static

OP_TYPES = ("conv2d", "depthwise_conv2d", "matmul_v2", "mul")


def framework_ptq(source: Path, target: Path, batches: Sequence[np.ndarray], algo: str, *, onnx_format: bool) -> Path:
    """Quantize the files of a prefix with `paddle.static.quantization.PostTrainingQuantization`; the prefix written.

    Weights per channel, everything else as the framework has it by default. With `onnx_format` the files are of
    encoding B, without of A.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quiet(), legacy_static() as paddle:
        from paddle.static.quantization import PostTrainingQuantization

        class Loader(paddle.io.DataLoader):  # type: ignore[misc, name-defined]
            """2.6 asserts the class; what it calls is this."""

            def __init__(self, feed: str) -> None:
                self.feed = feed

            def __call__(self) -> Iterator[dict[str, np.ndarray]]:
                return ({self.feed: batch} for batch in batches)

        executor = paddle.static.Executor(paddle.CPUPlace())
        scope = paddle.static.Scope()
        with paddle.static.scope_guard(scope):
            files = {"model_filename": f"{source.name}.pdmodel", "params_filename": f"{source.name}.pdiparams"}
            _, feeds, _ = paddle.static.load_inference_model(str(source.parent), executor, **files)
            ptq = PostTrainingQuantization(
                executor=executor,
                model_dir=str(source.parent),
                scope=scope,
                **files,
                data_loader=Loader(feeds[0]),
                batch_nums=len(batches),
                algo=algo,
                quantizable_op_type=list(OP_TYPES),
                weight_quantize_type="channel_wise_abs_max",
                onnx_format=onnx_format,
            )
            ptq.quantize()
            ptq.save_quantized_model(
                str(target.parent), model_filename=f"{target.name}.pdmodel", params_filename=f"{target.name}.pdiparams"
            )
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the framework's progress bars, log lines and advice from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of loading a model it warns that there is a newer way
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
