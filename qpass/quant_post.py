"""`quant_post_static` and `quant_post_dynamic`: PaddleSlim's functions, on this library.

Names, order and defaults of the arguments are PaddleSlim 2.6's; what it does not have comes after them, by name only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qpass.errors import UsageError
from qpass.formats.files import check_target, load, save
from qpass.ir.model import Model
from qpass.options import names
from qpass.paddle_config import KEYS, options_of
from qpass.passes import QuantizeWeights
from qpass.post_training import Quantized, post_training_quantize
from qpass.quant.encodings import check_float
from qpass.quant.scales import ScaleTable
from qpass.runtime.data import Batches, Data
from qpass.runtime.samples import Samples, batched

STATIC_OP_TYPES = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul", "matmul", "matmul_v2")
"""Default of `quant_post_static`: all layers."""

_WEIGHT_TYPES = {"channel_wise_abs_max": True, "abs_max": False}


def quant_post_static(
    executor: object,
    model_dir: str | Path,
    quantize_model_path: str | Path,
    batch_generator: Data | None = None,
    sample_generator: Samples | None = None,
    data_loader: Data | None = None,
    model_filename: str | None = None,
    params_filename: str | None = None,
    save_model_filename: str | None = "model.pdmodel",
    save_params_filename: str | None = "model.pdiparams",
    batch_size: int = 1,
    batch_nums: int | None = None,
    scope: object = None,
    algo: str = "hist",
    round_type: str = "round",
    hist_percent: float = 0.9999,
    bias_correction: bool | str = False,
    quantizable_op_type: Sequence[str] = STATIC_OP_TYPES,
    is_full_quantize: bool = False,
    weight_bits: int = 8,
    activation_bits: int = 8,
    activation_quantize_type: str = "range_abs_max",
    weight_quantize_type: str = "channel_wise_abs_max",
    optimize_model: bool = False,
    onnx_format: bool = True,
    skip_tensor_list: Sequence[str] | None = None,
    deploy_backend: str | None = None,
    is_use_cache_file: bool = False,
    cache_dir: str = "./temp_post_training",
    *,
    target: str | None = None,
    compat: str | None = None,
    overrides: Sequence[str] = (),
    equalize: bool = False,
    outputs: bool | None = None,
    scales: ScaleTable | str | Path | None = None,
    engine: str = "inference",
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Calibrate a float model on data, quantize it, and save it.

    Parameters
    ----------
    executor, scope, is_use_cache_file, cache_dir
        Taken because PaddleSlim takes them, and not used: no program is run in the caller's process state.
    model_dir : str or Path
        Folder, prefix or `.pdmodel` file of the float model.
    quantize_model_path : str or Path
        Folder to write to; made. Files in it are replaced, but not the float model itself.
    batch_generator, sample_generator, data_loader
        Exactly one of them, unless `scales` are given: batches, single samples (without batch axis, put together by
        `batch_size`), or a `paddle.io.DataLoader`; each may also be a function that gives them. Forms of a batch are
        those of `qpass.runtime.data.Data`.
    model_filename, params_filename : str, optional
        Files in `model_dir`, with or without suffix.
    save_model_filename, save_params_filename : str, optional
        The program, default ``model``. As in Paddle 2 and 3, parameters stand beside it under the same name.
    batch_size : int
        For `sample_generator`, and where whole arrays are given.
    batch_nums : int, optional
        Calibrate on that many batches; None is all.
    algo : str
        ``abs_max``, ``min_max``, ``avg``, ``hist``, ``KL``, ``mse``, ``emd`` or ``ptf``; see `qpass.quant.observers`.
    round_type : {"round", "adaround"}
    hist_percent : float
        Share of the numbers that ``algo="hist"`` keeps.
    bias_correction : bool or str
        True takes mean errors out of biases; ``"paddle"`` does to weights what the framework does under this name with
        ``onnx_format=False`` (with True, the framework does nothing).
    quantizable_op_type : sequence of str
        Op types with weights (`mul`, `matmul` and `matmul_v2` are one family), and ones without whose inputs are
        quantized too.
    is_full_quantize : bool
        All op types that can be quantized; those of the target where there is one.
    weight_bits, activation_bits : int
        2 to 16; they may differ. More than 8 bits of weights stay float behind a pair under ``onnx_format=True``.
    activation_quantize_type : {"range_abs_max", "moving_average_abs_max"}
        Both mean: the scale is stored.
    weight_quantize_type : {"channel_wise_abs_max", "abs_max", "channel_wise_mse", "mse"}
    optimize_model : bool
        Fold batch norms into convolutions first.
    onnx_format : bool
        Encoding B with int8 weights, or the framework's older A.
    skip_tensor_list : sequence of str, optional
        Names of weights, activations or outputs, or regular expressions: those ops stay in float, observers included.
    deploy_backend : {None, "tensorrt", "mkldnn", "onednn", "arm"}
        PaddleSlim's word for `target`.
    target : {None, "onednn", "tensorrt", "lite", "generic"}
        An engine to write for: its op types, its encoding, its marks.
    compat : {None, "paddle"}
        ``"paddle"``: scales as the framework computes them, bit for bit.
    overrides : sequence of str
        Other bits for some ops, as ``NAME:w4a16``.
    equalize : bool
        Equalize ranges across layers first; folds batch norms.
    outputs : bool, optional
        Keep the scales of outputs of quantized ops, as pairs that only observe (B) or as attributes (A). The default is
        to do so under ``compat="paddle"``, as the framework does.
    scales : ScaleTable or path, optional
        Scales found before, in place of data.
    engine : str
        What runs the model for calibration.
    progress : callable, optional
        Called after each batch with the number of batches done.

    Returns
    -------
    Quantized
        The model, its scales, and op by op what was skipped.

    Raises
    ------
    QPassError
        If the model, the options or the data are not usable; nothing is written then.
    """
    config: dict[str, object] = {name: value for name, value in locals().items() if name in KEYS}
    if names(quantizable_op_type, "quantizable_op_type") == STATIC_OP_TYPES:
        del config["quantizable_op_type"]
    if outputs is None:
        config["outputs"] = compat == "paddle"
    options = options_of(config, "quant_post_static")
    samples = None if sample_generator is None else batched(sample_generator, batch_size)
    given = {"batch_generator": batch_generator, "sample_generator": samples, "data_loader": data_loader}
    data = _only(given, optional=scales is not None)
    model = load(model_dir, model_filename=model_filename, params_filename=params_filename)
    check_float(model)
    program = _program(quantize_model_path, save_model_filename)
    _check_writable(model, program)
    table = ScaleTable.load(scales) if isinstance(scales, (str, Path)) else scales
    source = None if data is None else Batches(model.feeds, data, batch_size=batch_size)
    made = post_training_quantize(model, source, options, scales=table, progress=progress)
    save(made.model, program, overwrite=True)
    return made


def quant_post_dynamic(
    model_dir: str | Path,
    save_model_dir: str | Path,
    model_filename: str | None = None,
    params_filename: str | None = None,
    save_model_filename: str | None = None,
    save_params_filename: str | None = None,
    quantizable_op_type: Sequence[str] = ("conv2d", "mul"),
    weight_bits: int = 8,
    generate_test_model: bool = False,
    *,
    weight_quantize_type: str = "channel_wise_abs_max",
) -> list[Path]:
    """Store the weights of a float model as integers, for Paddle Lite; needs no data.

    Integers, test model and attributes are those of the framework's `WeightQuantization`, but that on Paddle 3 the
    framework loses the scales: it stores whole zeros (seen on 3.3.1), and Lite can make nothing of such a file.

    Parameters
    ----------
    model_dir : str or Path
        Folder, prefix or `.pdmodel` file of the float model.
    save_model_dir : str or Path
        Gets the folder ``quantized_model``, and ``test_model`` if asked for. Files in them are replaced.
    model_filename, params_filename : str, optional
        Files in `model_dir`, with or without suffix.
    save_model_filename, save_params_filename : str, optional
        The program, default ``model``; parameters stand beside it under the same name.
    quantizable_op_type : sequence of str
        Exactly these op types: conv2d, depthwise_conv2d, mul, matmul, matmul_v2, lookup_table, lookup_table_v2.
    weight_bits : {8, 16}
    generate_test_model : bool
        Save also what Lite computes with, floats on the grid, as a model that Paddle runs.
    weight_quantize_type : {"channel_wise_abs_max", "abs_max"}

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    QPassError
        If the model or an option is not usable; nothing is written then.
    """
    if weight_quantize_type not in _WEIGHT_TYPES:
        raise UsageError(
            f"weight_quantize_type is {weight_quantize_type!r}, expected one of {', '.join(_WEIGHT_TYPES)}",
            where="quant_post_dynamic",
        )
    store = QuantizeWeights(
        bits=weight_bits,
        op_types=names(quantizable_op_type, "quantizable_op_type"),
        per_channel=_WEIGHT_TYPES[weight_quantize_type],
    )
    model = load(model_dir, model_filename=model_filename, params_filename=params_filename)
    check_float(model)
    folder, stored = Path(save_model_dir), store(model)
    if stored is model:
        raise UsageError(
            f"the model has no float weights of op types {', '.join(store.op_types)}",
            where="quant_post_dynamic",
            hint="qpass inspect lists its layers",
        )
    made = {_program(folder / "quantized_model", save_model_filename): stored}
    if generate_test_model:
        test = QuantizeWeights(store.bits, store.op_types, store.per_channel, simulate=True)
        made[_program(folder / "test_model", save_model_filename)] = test(model)
    for program in made:
        _check_writable(model, program)
    return [file for program, each in made.items() for file in save(each, program, overwrite=True)]


def _only(given: Mapping[str, Data | None], *, optional: bool) -> Data | None:
    """The one that was given."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(found) > 1 or not (found or optional):
        raise UsageError(
            f"{' and '.join(found) or 'no data are'} given, expected one of {', '.join(given)}",
            where="quant_post_static",
        )
    return next(iter(found.values()), None)


def _program(folder: str | Path, filename: str | None) -> Path:
    return Path(folder) / f"{(filename or 'model').removesuffix('.pdmodel')}.pdmodel"


def _check_writable(model: Model, program: Path) -> None:
    """Refuse to write over the float model, and whatever `save` refuses; before any work."""
    check_target(model, program, overwrite=True)
    source = model.source.program
    if source is not None and program.exists() and Path(source).exists() and program.samefile(source):
        raise UsageError("the quantized model would replace the float model", where=str(program), hint="save elsewhere")
