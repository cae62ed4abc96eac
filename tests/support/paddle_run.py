"""Run a model with `paddle.inference`, from memory, without anything of `qpass.runtime`."""

from __future__ import annotations

import numpy as np

from qpass.formats import pdiparams, pdmodel
from qpass.ir.model import Model


def run_in_paddle(model: Model, x: np.ndarray, *, optimise: bool = False) -> np.ndarray:
    """First output for one batch of the first input; `optimise` turns Paddle's own graph passes on."""
    from paddle import inference

    program = pdmodel.encode(model.blocks, model.extra)
    params = b"".join(bytes(chunk) for chunk in pdiparams.encode(model.params))
    config = inference.Config()
    config.set_model_buffer(program, len(program), params, len(params))
    config.disable_glog_info()
    config.switch_ir_optim(optimise)
    predictor = inference.create_predictor(config)
    handle = predictor.get_input_handle(model.feeds[0].name)
    handle.reshape(x.shape)
    handle.copy_from_cpu(x)
    predictor.run()
    out: np.ndarray = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    return out
