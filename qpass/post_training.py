"""Post-training quantization as `QuantOptions` says: a float model and its data in, the model to deploy out.

The command line, the functions that Paddle users know and the analyses all quantize here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qpass.deploy import prepared_for, spelled_for, with_stored_weights
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.options import QuantOptions
from qpass.passes import ConvertEncoding, InsertQuant
from qpass.quant.encodings import check_float, quantized_weights
from qpass.quant.marks import mark_threshold
from qpass.quant.points import Points, find_points
from qpass.quant.scales import ScaleTable
from qpass.quant.skip import SkippedOp, check_skipped
from qpass.quant.thresholds import Thresholds
from qpass.refine import prepare_float, refine
from qpass.rewrite.edit import edit
from qpass.runtime.calibrate import calibrate
from qpass.runtime.data import Data
from qpass.runtime.evaluating import float_engine


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized model, and how it came about.

    Parameters
    ----------
    model : Model
        What to save.
    scales : ScaleTable
        What it was made with; quantizing the same model again with them needs no data.
    layers : tuple of str
        The quantized layers, by weight name.
    skipped : tuple of SkippedOp
        What the skip list keeps in float, op by op; proved on the model.
    """

    model: Model
    scales: ScaleTable
    layers: tuple[str, ...]
    skipped: tuple[SkippedOp, ...]


def prepared(model: Model, options: QuantOptions) -> Model:
    """The float model that is calibrated and quantized: folded, equalized, as the target wants it.

    Raises
    ------
    UsageError
        If the model is quantized already.
    """
    check_float(model)
    if options.target is not None:
        model = prepared_for(model, options.target)
    if options.equalize or options.fold_batch_norm:
        model = prepare_float(model, equalize=options.equalize)
    return model


def find_scales(
    model: Model, data: Data, options: QuantOptions, progress: Callable[[int], None] | None = None
) -> ScaleTable:
    """Scales of everything that `options` quantize in a prepared model, and of what the skip list keeps in float.

    Raises
    ------
    UsageError, DataError, EngineError, QuantError
        As `calibrate`, and if an entry of the skip list matches nothing.
    """
    return calibrate(
        model,
        data,
        algo=options.algo,
        weight_algo=options.weight_algo,
        compat=options.compat,
        options=options.observer_options,
        engine=float_engine(options.engine),
        recipe=options.recipe,
        batches=options.batches,
        progress=progress,
    )


def quantize_prepared(
    model: Model, scales: ScaleTable, options: QuantOptions, data: Data | None = None, skip: Sequence[str] = ()
) -> Quantized:
    """Quantize a prepared model.

    Parameters
    ----------
    model : Model
        What `prepared` made.
    scales : ScaleTable
    options : QuantOptions
    data : Data, optional
        For refinements that measure layers.
    skip : sequence of str
        More to leave in float.

    Raises
    ------
    UsageError
        If a refinement needs data, and there are none.
    DataError, EngineError, QuantError
        As the passes, and `refine`.
    """
    recipe = dataclasses.replace(options.recipe, skip=(*options.recipe.skip, *skip))
    points = find_points(model, recipe)
    as_pairs = options.spelling in "BC"
    made = InsertQuant.of(scales, dataclasses.replace(recipe, outputs=recipe.outputs and as_pairs))(model)
    if recipe.outputs and not as_pairs:
        made = _with_thresholds(made, scales, points)
    made = _spelled(_refined(made, model, options, data), options)
    check_skipped(made, points.skipped)
    layers = tuple(layer.name for layer in quantized_weights(made))
    return Quantized(made, scales, layers, points.skipped)


def post_training_quantize(
    model: Model,
    data: Data | None,
    options: QuantOptions,
    *,
    scales: ScaleTable | None = None,
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Quantize a float model from its data, or from scales found before.

    Parameters
    ----------
    model : Model
    data : Data or None
        Calibration data; gone through once more where a refinement measures layers.
    options : QuantOptions
    scales : ScaleTable, optional
        In place of calibration.
    progress : callable, optional
        As in `calibrate`.

    Raises
    ------
    UsageError
        If there are neither data nor scales, or the model is quantized already.
    QuantError
        If the scales belong to another model, or a name to skip matches nothing.
    DataError, EngineError
        If the data do not fit the model, or it does not run.
    """
    ready = prepared(model, options)
    if scales is not None:
        scales.check_model(ready)
    elif data is not None:
        scales = find_scales(ready, data, options, progress)
    else:
        raise UsageError("there are neither data nor scales", hint="calibration needs batches of inputs")
    return quantize_prepared(ready, scales, options, data)


def _refined(made: Model, model: Model, options: QuantOptions, data: Data | None) -> Model:
    measured = options.round_type != "round" or options.bias_correction in (True, "bias")
    if data is None:
        if measured:
            raise UsageError(
                "round_type='adaround' and bias_correction measure layers on data, and there are only scales",
                hint="give the calibration data beside the scales",
            )
        data = ()
    return refine(
        made,
        model,
        data,
        round_type=options.round_type,
        bias_correction=options.bias_correction,
        engine=float_engine(options.engine),
        batches=options.batches,
    )


def _spelled(model: Model, options: QuantOptions) -> Model:
    if options.target is not None:
        return spelled_for(model, options.target)
    if options.encoding != "B":
        return ConvertEncoding(to=options.encoding)(model)
    return with_stored_weights(model)


def _with_thresholds(model: Model, scales: ScaleTable, points: Points) -> Model:
    """Thresholds of outputs as attributes of the ops that make them."""
    thresholds = Thresholds(model.graph, scales, points.ties)
    with edit(model) as e:
        for ref in points.outputs:
            mark_threshold(e, model.graph, ref, thresholds[ref])
    return e.model
