"""`qpass quantize`: calibrate and write an int8 model."""

from __future__ import annotations

import argparse

from qpass.cli.common import (
    OBSERVING,
    add_data,
    add_json,
    add_model,
    add_output,
    add_quantizers,
    load_model,
    print_json,
    written,
)
from qpass.cli.recipe import add_recipe, recipe_fields
from qpass.cli.target import add_target, quantize_to_target, wants_target
from qpass.errors import UsageError
from qpass.quant.presets import TARGETS, find_target


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass quantize`."""
    parser.usage = "qpass quantize MODEL (--data DATA | --scales FILE) -o OUT [option ...]"
    parser.epilog = (
        "example:\n  qpass quantize inference.pdmodel --data calib.npz -o int8/inference\n"
        "  qpass quantize inference.pdmodel --data calib.npz --skip @skip_tensor_list.txt -o int8/inference\n"
        "  qpass quantize inference.pdmodel --scales scales.json -o int8/inference\n"
        "  qpass quantize inference.pdmodel --data calib.npz --target onednn -o int8/inference\n"
        "  qpass quantize inference.pdmodel --data calib.npz --eval mine:accuracy --target-metric 0.75 -o int8/model\n"
        "\nweights alone, for Paddle Lite, without data:\n"
        "  qpass run inference.pdmodel -p 'quantize-weights{bits=8}' -o int8/inference"
    )
    add_model(parser)
    add_data(parser, required=False)
    parser.add_argument("--scales", metavar="FILE", help="scales found before (.json or .csv), in place of --data")
    parser.add_argument("--scales-out", metavar="FILE", help="write the scales, as .json or .csv")
    add_quantizers(parser)
    parser.add_argument(
        "--skip",
        action="append",
        metavar="NAMES",
        help="what stays in float: weights, activations, outputs or regular expressions, by commas, or @FILE",
    )
    parser.add_argument("--target", metavar="TARGET", help=f"the engine to write for: {', '.join(TARGETS)}")
    add_recipe(parser)
    add_output(parser, "prefix of the files to write")
    add_target(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass quantize`."""
    from qpass.formats.files import check_target, save
    from qpass.options import QuantOptions
    from qpass.post_training import post_training_quantize
    from qpass.quant.encodings import check_float
    from qpass.quant.layers import find_weights
    from qpass.quant.scales import ScaleTable
    from qpass.runtime.data import Batches, load_data

    _check(args)
    if wants_target(args):
        return quantize_to_target(args)
    options = QuantOptions.checked(recipe_fields(args))
    model = load_model(args)
    check_float(model)
    check_target(model, args.output, overwrite=args.overwrite)
    source = None if args.data is None else Batches.of(model, load_data(args.data, batch_size=args.batch_size))
    table = None if args.scales is None else ScaleTable.load(args.scales)
    made = post_training_quantize(model, source, options, scales=table)
    if args.scales_out:
        made.scales.save(args.scales_out)
    program, params = save(made.model, args.output, overwrite=args.overwrite)
    layers = [layer.name for layer in find_weights(model, options.recipe.op_types)]
    if args.json:
        body = {
            "program": str(program),
            "params": str(params),
            "quantized": len(made.layers),
            "skipped": [name for name in layers if name not in made.layers],
            "skipped_ops": [row.to_json() for row in made.skipped],
        }
        print_json(body)
        return 0
    print(f"quantized {len(made.layers)} of {len(layers)} layers")
    for row in made.skipped:
        print(row)
    print(written(model, program, params))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check which arguments go together."""
    refines = args.round_type == "adaround" or args.bias_correction == "bias"
    if (args.data is None) == (args.scales is None) and not (args.data and refines and args.target_metric is None):
        raise UsageError(
            "give exactly one of --data and --scales",
            hint="both only where --round-type adaround or --bias-correction measures layers beside known scales",
        )
    for name in ("algo", "weight_algo", *OBSERVING):
        if args.scales is not None and getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --data: a scale table is calibrated already")
    if args.hist_percent is not None and args.algo != "hist":
        raise UsageError("--hist-percent goes with --algo hist")
    if args.target is not None:
        if args.full and not find_target(args.target).activation_op_types:
            raise UsageError(f"--full changes nothing for {args.target}: it reads no scales of ops without weights")
        if wants_target(args):
            raise UsageError(
                "--target does not go with --target-metric", hint="qpass lint --target T --fix mends the result"
            )
