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
    split_names,
    written,
)
from qpass.cli.target import add_target, quantize_to_target, wants_target
from qpass.errors import UsageError
from qpass.quant.presets import TARGETS, find_target


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass quantize`."""
    parser.epilog = (
        "example:\n  qpass quantize inference.pdmodel --data calib.npz -o int8/inference\n"
        "  qpass quantize inference.pdmodel --data calib.npz --skip @skip_tensor_list.txt -o int8/inference\n"
        "  qpass quantize inference.pdmodel --scales scales.json -o int8/inference\n"
        "  qpass quantize inference.pdmodel --data calib.npz --target onednn -o int8/inference\n"
        "  qpass quantize inference.pdmodel --data calib.npz --eval mine:accuracy --target-metric 0.75 -o int8/model"
    )
    add_model(parser)
    add_data(parser, required=False)
    parser.add_argument("--scales", metavar="FILE", help="scales found before (.json or .csv), in place of --data")
    parser.add_argument("--scales-out", metavar="FILE", help="write the scales, as .json or .csv")
    add_quantizers(parser)
    parser.add_argument(
        "--skip", action="append", metavar="NAMES", help="layers to leave in float, by commas, or @FILE"
    )
    parser.add_argument("--target", metavar="TARGET", help=f"the engine to write for: {', '.join(TARGETS)}")
    add_output(parser, "prefix of the files to write")
    add_target(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass quantize`."""
    from qpass.api import check_float, quantize
    from qpass.deploy import prepared_for
    from qpass.formats.files import check_target, save
    from qpass.quant.layers import DEFAULT_OP_TYPES, find_layers, select
    from qpass.quant.observer_options import DEFAULT_OPTIONS, ObserverOptions
    from qpass.quant.scales import ScaleTable
    from qpass.runtime.calibrate import calibrate
    from qpass.runtime.data import load_data
    from qpass.runtime.evaluating import float_engine

    if (args.data is None) == (args.scales is None):
        raise UsageError("give exactly one of --data and --scales")
    for name in ("algo", "weight_algo", *OBSERVING):
        if args.scales is not None and getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --data: a scale table is calibrated already")
    if args.target is not None:
        find_target(args.target)
        if wants_target(args):
            raise UsageError(
                "--target does not go with --target-metric", hint="qpass lint --target T --fix mends the result"
            )
    if wants_target(args):
        return quantize_to_target(args)
    model = load_model(args)
    check_float(model)
    check_target(model, args.output, overwrite=args.overwrite)
    op_types = split_names(args.op_types) or DEFAULT_OP_TYPES
    if args.target is not None:
        model = prepared_for(model, args.target)
        op_types = split_names(args.op_types) or find_target(args.target).op_types
    skip = [layer.name for layer in select(find_layers(model), split_names(args.skip))]
    if args.scales is not None:
        scales = ScaleTable.load(args.scales)
        scales.check_model(model)
    else:
        scales = calibrate(
            model,
            load_data(args.data, batch_size=args.batch_size),
            algo=args.algo or "avg",
            weight_algo=args.weight_algo or "channel_wise_abs_max",
            compat=args.compat,
            options=DEFAULT_OPTIONS if args.hist_percent is None else ObserverOptions(hist_percent=args.hist_percent),
            engine=float_engine(args.engine),
            op_types=op_types,
            batches=args.batches,
        )
    made = quantize(model, scales, skip_tensor_list=skip, op_types=op_types, target=args.target)
    if args.scales_out:
        scales.save(args.scales_out)
    program, params = save(made, args.output, overwrite=args.overwrite)
    layers = [layer.name for layer in find_layers(model, op_types)]
    quantized = sum(name not in skip for name in layers)
    if args.json:
        print_json({"program": str(program), "params": str(params), "quantized": quantized, "skipped": skip})
        return 0
    print(f"quantized {quantized} of {len(layers)} layers")
    print(written(model, program, params))
    return 0
