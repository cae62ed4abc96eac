"""Run a model on Paddle Inference directly, without qpass's runtime: the judge of numerical equality."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qpass.formats.files import to_bytes
from qpass.ir.model import Model


def infer(model: Model, feed: Mapping[str, np.ndarray], *, optimise: bool = False) -> list[np.ndarray]:
    """Outputs of `model` as it stands: one thread, no oneDNN, none of Paddle's own graph passes.

    With `optimise` the graph passes and Paddle's default kernels are on.
    """
    from paddle import inference

    program, params = to_bytes(model)
    config = inference.Config()
    config.set_model_buffer(program, len(program), params, len(params))
    config.disable_glog_info()
    config.switch_ir_optim(optimise)
    config.set_cpu_math_library_num_threads(1)
    if hasattr(config, "disable_mkldnn") and not optimise:
        config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu(feed[name])
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
