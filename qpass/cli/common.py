"""What several subcommands share: arguments, loading, printing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.ir.model import Model

MODEL_HELP = "a .pdmodel file, its prefix, or a folder that holds it"


def add_model(parser: argparse.ArgumentParser, name: str = "model", text: str = MODEL_HELP) -> None:
    """Arguments that name a model."""
    parser.add_argument(name, metavar=name.upper(), help=text)
    parser.add_argument("--model-filename", help="program file inside the folder, with or without suffix")
    parser.add_argument("--params-filename", help="parameter file inside the folder, with or without suffix")


def load_model(args: argparse.Namespace, *, structure_only: bool = False) -> Model:
    """Load the model that `add_model` arguments name."""
    return load(
        args.model,
        model_filename=args.model_filename,
        params_filename=args.params_filename,
        structure_only=structure_only,
    )


def add_output(parser: argparse.ArgumentParser, text: str) -> None:
    """Arguments for a model that is written."""
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The --json switch."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Arguments that name data."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="DATA",
        help="a .npz or .npy file, a folder of them, or module:function that returns batches",
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="samples a batch (default 32)")


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def split_names(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Names from repeated or comma-separated arguments; ``@FILE`` reads one name a line.

    Raises
    ------
    UsageError
        If a file cannot be read.
    """
    names: list[str] = []
    for text in texts or ():
        if text.startswith("@"):
            try:
                lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
            except OSError as e:
                raise UsageError(f"cannot read the names ({e.strerror})", where=text[1:]) from e
            names.extend(line.strip() for line in lines if line.strip())
        else:
            names.extend(part for part in text.split(",") if part)
    return tuple(names)


def print_json(body: Mapping[str, object] | Sequence[object]) -> None:
    """Print JSON in a stable form."""
    print(json.dumps(body, indent=1, ensure_ascii=False))


def size(n: int) -> str:
    """Bytes for people."""
    value = float(n)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
