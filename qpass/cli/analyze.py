"""`qpass analyze`: rank the layers by what int8 costs them, and write everything that follows from it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qpass.cli.common import (
    OBSERVING,
    add_data,
    add_hardware,
    add_json,
    add_model,
    add_quantizers,
    add_simulate,
    finite,
    load_model,
    natural,
    positive,
    print_json,
    read_text,
    split_names,
)
from qpass.errors import QPassError, UsageError

if TYPE_CHECKING:
    from qpass.analysis.result import AnalysisResult
    from qpass.cli.progress import Bar
    from qpass.ir.model import Model
    from qpass.job import Job

PTQ_ONLY = ("algo", "weight_algo", "weight_bits", "activation_bits", *OBSERVING)
QAT_ONLY = ("float", "restore", "map", "qat_metric")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass analyze`."""
    parser.description = (
        "Rank the layers by what int8 costs them. A float model: each layer alone is quantized. A quantized model: "
        "each layer alone is un-quantized. Writes the ranking (analysis.txt, .json, .csv, sensitivity.png), "
        "histograms, skip_tensor_list.txt and the rewritten model (model/inference)."
    )
    parser.epilog = (
        "example:\n"
        "  qpass analyze inference.pdmodel --data calib.npz --eval mine:accuracy -o analysis_results\n"
        "  qpass analyze qat/inference --float float/inference --data calib.npz --eval mine:accuracy\n"
        "  without --eval, all outputs are compared with the float model's (cosine)"
    )
    add_model(parser)
    add_data(parser, required=True)
    parser.add_argument("--eval", metavar="M:F", help="module:function, see README; higher is better")
    parser.add_argument("--lower-is-better", action="store_true", help="the metric is a loss")
    parser.add_argument("--float", metavar="MODEL", help="float twin of a quantized model")
    parser.add_argument("--restore", choices=("float", "self"), help="weights of un-quantized layers (default float)")
    parser.add_argument("--map", metavar="FILE", help="JSON object: quantized layer name -> float layer name")
    parser.add_argument("--qat-metric", type=finite, metavar="X", help="metric of the quantized model, where known")
    add_quantizers(parser)
    add_simulate(parser)
    parser.add_argument(
        "--fast",
        action="store_true",
        help="quantize activations by oneDNN's own ops: quicker, above all of quantized models; last bits may differ",
    )
    parser.add_argument("--weight-bits", type=int, choices=range(2, 9), metavar="N", help="2 to 8 (default)")
    parser.add_argument("--activation-bits", type=int, choices=range(2, 17), metavar="N", help="2 to 16 (default 8)")
    parser.add_argument("-o", "--output", default="analysis_results", metavar="DIR", help="default: analysis_results")
    parser.add_argument(
        "--plots", type=natural, default=10, metavar="N", help="histogram pages of the N best and worst"
    )
    parser.add_argument("--statistics", action="store_true", help="also write statistic.csv and box plots")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument(
        "--settle",
        type=finite,
        nargs="?",
        const=0.95,
        metavar="CONFIDENCE",
        help="stop a layer when its place is settled, all together with this confidence (0.95); --eval gives scores",
    )
    parser.add_argument(
        "--breakdown",
        action="store_true",
        help="where each layer's loss comes from: weight, activation, clipping, rounding; takes up to three times as "
        "long, and one more pass over the data; writes breakdown.txt",
    )
    parser.add_argument(
        "--estimate",
        type=positive,
        metavar="K",
        help="estimate all layers from 64 samples, then evaluate the K with the largest estimate; writes estimate.txt",
    )
    add_hardware(parser)
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--top", type=natural, metavar="K", help="skip list: the K most sensitive layers")
    rule.add_argument("--threshold", type=finite, metavar="X", help="skip list: every layer above sensitivity X")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass analyze`."""
    try:
        return _analyze(args)
    except KeyboardInterrupt:
        raise SweepInterruptedError(args.output) from None


def _analyze(args: argparse.Namespace) -> int:
    from qpass.cli.progress import Bar
    from qpass.job import default_skip_list

    model = load_model(args)
    with Bar("layers") as bar:
        job = make_job(args, model, bar)
        result = job.result
    files = [*job.write_ranking(), *job.write_histograms()]
    if args.statistics:
        files += job.write_statistics()
    chosen = args.top is not None or args.threshold is not None
    skip = result.skip_tensor_list(top=args.top, threshold=args.threshold) if chosen else default_skip_list(result)
    files += [job.write_skip_list(skip), job.write_model(skip)]
    if args.json:
        print_json({**json.loads(result.to_json()), "skip_tensor_list": skip, "files": [str(f) for f in files]})
    else:
        print_result(result, skip, files)
    return 0


class SweepInterruptedError(QPassError):
    """Ctrl-C during a sweep."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            "interrupted; every finished layer is in the checkpoint",
            where=folder,
            hint="run the same command with --resume to go on",
        )


def make_job(args: argparse.Namespace, model: Model, bar: Bar) -> Job:
    """The job that the arguments describe.

    Raises
    ------
    UsageError
        If arguments of one mode are given in the other.
    """
    from qpass.formats.files import load
    from qpass.hardware import Hardware
    from qpass.job import PTQJob, QATJob
    from qpass.options import QuantOptions
    from qpass.quant.encodings import find_sites
    from qpass.runtime.data import Batches, load_data, load_function

    quantized = bool(find_sites(model))
    for name in PTQ_ONLY if quantized else QAT_ONLY:
        if getattr(args, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} goes with a {'float' if quantized else 'quantized'} model; this one has "
                + ("quantization sites" if quantized else "no quantization site"),
                where=args.model,
            )
    hardware = Hardware(args.workers, args.scheduler, args.memory)
    options = QuantOptions.checked(
        {
            "op_types": split_names(args.op_types) or None,
            "engine": args.engine,
            "simulate": args.simulate,
            "fast": args.fast,
            "higher_is_better": not args.lower_is_better,
            **{name: getattr(args, name) for name in PTQ_ONLY},
        }
    )
    source = Batches.of(model, load_data(args.data, batch_size=args.batch_size))
    evaluate = None if args.eval is None else load_function(args.eval)
    folder = Path(args.output)
    if not quantized:
        return PTQJob(
            model=model,
            source=source,
            evaluate=evaluate,
            save_dir=folder,
            options=options,
            resume=args.resume,
            settle=args.settle,
            breakdown=args.breakdown,
            estimate=args.estimate,
            num_histogram_plots=args.plots,
            progress=bar,
            hardware=hardware,
        )
    return QATJob(
        model=model,
        float_model=None if args.float is None else load(args.float),
        source=source,
        evaluate=evaluate,
        save_dir=folder,
        options=options,
        restore=args.restore or "float",
        mapping=None if args.map is None else read_mapping(args.map),
        qat_metric=args.qat_metric,
        resume=args.resume,
        settle=args.settle,
        breakdown=args.breakdown,
        estimate=args.estimate,
        num_histogram_plots=args.plots,
        progress=bar,
        hardware=hardware,
    )


def read_mapping(path: str) -> dict[str, str]:
    """Read a JSON object of names.

    Raises
    ------
    UsageError
        If the file is missing or something else.
    """
    try:
        body = json.loads(read_text(path, "the mapping"))
    except (ValueError, RecursionError) as e:
        raise UsageError(f"the mapping is no JSON ({e})", where=path) from e
    if not isinstance(body, dict) or not all(isinstance(v, str) for v in body.values()):
        raise UsageError("expected a JSON object of names", where=path, hint='{"conv1_weights": "conv2d_0.w_0"}')
    return body


def print_result(result: AnalysisResult, skip: list[str], files: list[Path]) -> None:
    """The ranking as a table, then what was written."""
    from rich.console import Console
    from rich.table import Table

    from qpass.report.breakdown import has_breakdown
    from qpass.report.certainty import certainty
    from qpass.report.table import NOISE_MARK, ranking_header, ranking_rows

    console = Console(markup=False, highlight=False)
    table = Table(title=f"{result.mode.upper()} sensitivity, most sensitive first ({result.metric_name})")
    for title in ranking_header(result):
        table.add_column(title, no_wrap=title == "layer")  # where there is little room, other columns give theirs
    for row in ranking_rows(result, limit=20):
        table.add_row(*row)
    console.print(table)
    if len(result.rows) > 20:
        console.print(f"... and {len(result.rows) - 20} more in analysis.txt")
    if result.scores is not None or result.fine is not None:
        console.print(f"{NOISE_MARK} after a rank: the samples do not tell the layer apart from the next in rank")
    if has_breakdown(result):
        console.print("mostly: the part of the layer that costs more by itself; more in breakdown.txt")
    console.print(
        f"baseline {result.baseline:.6g}" + ("" if result.reference is None else f", reference {result.reference:.6g}")
    )
    for line in certainty(result):
        console.print(line, soft_wrap=True)
    console.print(f"skip_tensor_list: {', '.join(skip) or 'nothing'}", soft_wrap=True)
    for file in files:
        console.print(f"wrote {file}", soft_wrap=True)
