"""`qpass dump`: the canonical text form of a model."""

from __future__ import annotations

import argparse

from qpass.cli.common import add_model, load_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass dump`."""
    parser.epilog = (
        "example:\n  qpass dump inference.pdmodel | less\n  qpass dump --full inference.pdmodel > before.txt"
    )
    add_model(parser)
    parser.add_argument(
        "--full", action="store_true", help="show every attribute, so that the text holds all structure"
    )
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass dump`."""
    from qpass.ir.text import dump

    print(dump(load_model(args, structure_only=True), full=args.full), end="")
    return 0
