"""`qpass skiplist`: the layers to leave in float, from an analysis that was run before."""

from __future__ import annotations

import argparse
from pathlib import Path

from qpass.analysis.result import AnalysisResult
from qpass.cli.common import add_json, finite, natural, print_json, read_text


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass skiplist`."""
    parser.epilog = (
        "example:\n  qpass skiplist analysis_results --top 3\n"
        "  qpass skiplist analysis_results/analysis.json --threshold 0.002 > skip.txt\n"
        "  qpass quantize inference.pdmodel --data calib.npz --skip @skip.txt -o int8/inference"
    )
    parser.add_argument("results", metavar="RESULTS", help="the folder or the analysis.json that qpass analyze wrote")
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument("--top", type=natural, metavar="K", help="the K most sensitive layers")
    rule.add_argument("--threshold", type=finite, metavar="X", help="every layer whose sensitivity is above X")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass skiplist`."""
    names = read_result(args.results).skip_tensor_list(top=args.top, threshold=args.threshold)
    if args.json:
        print_json({"skip_tensor_list": names})
    else:
        print("\n".join(names), end="\n" if names else "")
    return 0


def read_result(path: str) -> AnalysisResult:
    """Read `analysis.json`, given itself or its folder.

    Raises
    ------
    UsageError
        If it is missing or not an analysis result.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "analysis.json"
    return AnalysisResult.from_json(read_text(file, "the analysis", "run qpass analyze first"), str(file))
