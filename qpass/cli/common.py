"""What several subcommands share: arguments, loading, printing."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.observers import ACTIVATION_ALGOS, COMPAT
from qpass.quant.weight_observers import WEIGHT_ALGOS

MODEL_HELP = "a .pdmodel file, its prefix, or a folder that holds it"

OBSERVING = ("hist_percent", "compat", "batches")
"""Arguments of `add_quantizers` that say how activations are observed, beside the algorithms."""


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


def add_quantizers(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how layers are quantized and run; each None where it is not given."""
    parser.add_argument("--algo", choices=sorted(ACTIVATION_ALGOS), help="observer of activations (default avg)")
    parser.add_argument("--weight-algo", choices=WEIGHT_ALGOS, help="scales of weights (default channel_wise_abs_max)")
    parser.add_argument(
        "--hist-percent", type=finite, metavar="P", help="share of the numbers that --algo hist keeps (default 0.99999)"
    )
    parser.add_argument("--compat", choices=sorted(COMPAT), help="the framework's own version of --algo")
    parser.add_argument("--batches", type=positive, metavar="N", help="calibrate on the first N batches only")
    parser.add_argument("--op-types", action="append", metavar="TYPES", help="op types, by commas")
    parser.add_argument(
        "--engine",
        choices=("inference", "executor", "int8", "gpu"),
        default="inference",
        help="what runs the models (default inference); int8: quantized ones in int8, the others by inference",
    )


def add_simulate(parser: argparse._ActionsContainer) -> None:
    """The --simulate option."""
    parser.add_argument(
        "--simulate",
        metavar="TARGET",
        help="measure quantized models as the int8 engine of TARGET computes them (onednn), simulated",
    )


def add_hardware(parser: argparse._ActionsContainer) -> None:
    """The options that say who runs variants, in how much memory."""
    parser.add_argument(
        "--workers",
        type=natural,
        default=1,
        metavar="N",
        help="processes that run variants, each with the memory of a paddle of its own; same results (default 1)",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run variants on a Dask cluster (tcp://host:8786)")
    parser.add_argument(
        "--memory",
        default="1G",
        metavar="SIZE",
        help="what this process and each worker may take beyond the model's own run, as 512M (default 1G)",
    )


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number, zero among them, for argparse."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least}")
    return value


def finite(text: str) -> float:
    """A finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def read_text(path: str | Path, what: str, hint: str | None = None) -> str:
    """The content of a text file that an argument names.

    Raises
    ------
    UsageError
        If it cannot be read, or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise UsageError(f"cannot read {what} ({e.strerror or e})", where=str(path), hint=hint) from e
    except ValueError as e:
        raise UsageError(f"cannot read {what} (no UTF-8 text)", where=str(path), hint=hint) from e


def split_names(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Names from repeated or comma-separated arguments, each once; ``@FILE`` reads one name a line, without # lines.

    Raises
    ------
    UsageError
        If a file cannot be read.
    """
    names: list[str] = []
    for text in texts or ():
        parts = _lines(text[1:]) if text.startswith("@") else text.split(",")
        names.extend(part.strip() for part in parts)
    return tuple(dict.fromkeys(name for name in names if name))


def _lines(path: str) -> list[str]:
    lines = read_text(path, "the names").splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def print_json(body: Mapping[str, object] | Sequence[object]) -> None:
    """Print JSON in a stable form."""
    print(json.dumps(body, indent=1, ensure_ascii=False))


def written(model: Model, program: Path, params: Path) -> str:
    """Words about files that were written, with the sizes of the files that `model` came from."""

    def change(path: Path, before: str | None) -> str:
        now = size(path.stat().st_size)
        return (
            f"{path} ({size(Path(before).stat().st_size)} -> {now})"
            if before and Path(before).is_file()
            else f"{path} ({now})"
        )

    return f"wrote {change(program, model.source.program)} and {change(params, model.source.params)}"


def size(n: int) -> str:
    """Bytes for people."""
    value = float(n)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
