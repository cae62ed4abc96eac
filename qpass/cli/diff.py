"""`qpass diff`: what differs between two models."""

from __future__ import annotations

import argparse

from qpass.cli.common import MODEL_HELP, add_json, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass diff`."""
    parser.epilog = (
        "example:\n  qpass diff before/inference after/inference\n  qpass diff --exit-code a.pdmodel b.pdmodel"
    )
    parser.add_argument("a", metavar="A", help=MODEL_HELP)
    parser.add_argument("b", metavar="B", help="the other model")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 when the models differ")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass diff`."""
    from qpass.formats.files import load
    from qpass.ir.diff import diff

    found = diff(load(args.a, structure_only=True), load(args.b, structure_only=True))
    if args.json:
        print_json(found.to_dict())
    else:
        print(found if found else "no difference")
    return 1 if args.exit_code and found else 0
