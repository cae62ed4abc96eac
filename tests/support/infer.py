"""Run a model on Paddle Inference directly, without qpass's runtime: the judge of numerical equality."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qpass.formats import pdiparams, pdmodel
from qpass.ir.model import Model


def infer(model: Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `model` as it stands: one thread, no oneDNN, none of Paddle's own graph passes."""
    from paddle import inference

    program = pdmodel.encode(model.blocks, model.extra)
    params = b"".join(bytes(part) for part in pdiparams.encode(model.params))
    config = inference.Config()
    config.set_model_buffer(program, len(program), params, len(params))
    config.disable_glog_info()
    config.switch_ir_optim(False)
    config.set_cpu_math_library_num_threads(1)
    if hasattr(config, "disable_mkldnn"):
        config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu(feed[name])
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
