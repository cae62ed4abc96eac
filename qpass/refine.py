"""What makes post-training quantization better: equalization, adaptive rounding, bias correction.

The order follows from what depends on what: batch norms are folded first, since they hide ranges of weights; then
ranges are equalized, since thresholds and moments follow from the weights; then both are measured; then sites are
inserted, weights rounded for the layer's output, and what mean error is left goes into the bias.
"""

from __future__ import annotations

from qpass import passes
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.encodings import check_float, quantized_weights
from qpass.quant.layers import EMBEDDING
from qpass.quant.moments import MomentTable
from qpass.rewrite.passes import Pass
from qpass.rewrite.pipeline import run
from qpass.runtime.data import Data
from qpass.runtime.engine import Engine
from qpass.runtime.moments import collect_moments

ROUND_TYPES = ("round", "adaround")
"""What ``round_type`` may be: each weight to the nearest level, or as `AdaRound` chooses."""

CORRECTIONS = ("none", "bias", "paddle")
"""What ``bias_correction`` may be: nothing (False), `BiasCorrection` (True), or what the framework does to weights
under this name (`WeightCorrection`)."""


def prepare_float(model: Model, *, equalize: bool = False) -> Model:
    """The float model with batch norms folded and, if asked for, ranges equalized across layers.

    Raises
    ------
    UsageError
        If the model is quantized already.
    """
    check_float(model)
    steps: list[Pass] = [passes.FoldBatchNorm()]
    return run(model, [*steps, passes.CrossLayerEqualization()] if equalize else steps)


def refine(
    quantized: Model,
    prepared: Model,
    data: Data,
    *,
    round_type: str = "round",
    bias_correction: bool | str = False,
    engine: str | Engine = "inference",
    batches: int | None = None,
    batch_size: int = 32,
) -> Model:
    """Refine a model whose sites are inserted and whose weights are still float: adaptive rounding, then correction.

    Parameters
    ----------
    quantized : Model
        What `InsertQuant` made of `prepared`.
    prepared : Model
        The float model; its layers' inputs are measured in one run over the data, if any pass asks for that.
    data : Data
        Calibration data.
    round_type : {"round", "adaround"}
    bias_correction : bool or str
        False or ``none``; True or ``bias`` takes mean errors out of biases; ``paddle`` does to weights
        what the framework does, and does not go with adaround.
    engine, batches, batch_size
        As in `collect_moments`.

    Returns
    -------
    Model
        `quantized` itself when nothing was asked for.

    Raises
    ------
    UsageError
        If an option is unknown, or two exclude each other.
    DataError, EngineError, QuantError
        As `collect_moments`.
    """
    correction = check_refinements(round_type, bias_correction)
    if correction == "paddle":
        return run(quantized, [passes.WeightCorrection()])
    adaround = round_type == "adaround"
    names = [layer.name for layer in quantized_weights(quantized) if layer.family != EMBEDDING]
    if not names or (not adaround and correction == "none"):
        return quantized
    table = collect_moments(
        prepared,
        data,
        engine=engine,
        layers=names,
        op_types=None,
        second=adaround,
        batches=batches,
        batch_size=batch_size,
    )
    return run(quantized, _passes(table, adaround=adaround, bias=correction == "bias"))


def check_refinements(round_type: str, bias_correction: bool | str) -> str:
    """The correction that `bias_correction` stands for, of `CORRECTIONS`.

    Raises
    ------
    UsageError
        If an option is unknown, or two exclude each other.
    """
    if round_type not in ROUND_TYPES:
        raise UsageError(f"unknown round_type {round_type!r}, expected one of {', '.join(ROUND_TYPES)}")
    if isinstance(bias_correction, bool):
        return "bias" if bias_correction else "none"
    if bias_correction not in CORRECTIONS:
        raise UsageError(f"unknown bias_correction {bias_correction!r}, expected a bool or one of {CORRECTIONS}")
    if bias_correction == "paddle" and round_type == "adaround":
        raise UsageError(
            "bias_correction='paddle' rounds weights anew and undoes adaround",
            hint="bias_correction=True goes with it",
        )
    return bias_correction


def _passes(table: MomentTable, *, adaround: bool, bias: bool) -> list[Pass]:
    steps: list[Pass] = [passes.AdaRound(table)] if adaround else []
    return [*steps, passes.BiasCorrection(table)] if bias else steps
