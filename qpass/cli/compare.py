"""`qpass compare`: what an engine computes, beside the simulation and the float model, value by value."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qpass.cli.common import add_data, add_json, add_model, load_model, positive, print_json

if TYPE_CHECKING:
    from qpass.analysis.engine_gap import EngineGap, ValueGap

_HEADER = ("value", "op", "runs in", "held as", "engine/sim", "engine/float", "sim/float")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass compare`."""
    parser.description = (
        "Compare what an engine computes with what was simulated and with the float model, value by value: the signal "
        "to noise ratio (SQNR) in dB of one against the other; 20 dB is 10 percent of noise, 40 dB one percent. With "
        "--engine int8 the values are those that int8 ops make, and the simulation is made from what the engine itself "
        "says it does. Where engine/sim is low, the engine does what the simulation does not tell; where sim/float is "
        "low, quantization costs."
    )
    parser.epilog = (
        "example:\n"
        "  qpass compare int8/inference --engine int8 --data images.npz\n"
        "  qpass compare int8/inference --data images.npz --float float/inference --sort worst --json\n"
        "\n"
        "it fails when the engine runs nothing of the model in int8"
    )
    add_model(parser)
    add_data(parser, required=True)
    parser.add_argument("--batches", type=positive, metavar="N", help="compare on the first N batches only")
    parser.add_argument(
        "--engine",
        choices=("int8", "inference", "executor"),
        default="int8",
        help="what runs the file (default int8: Paddle Inference with oneDNN's int8 kernels); for the float engines "
        "the simulation is the file itself, run by Paddle's executor",
    )
    parser.add_argument("--float", metavar="MODEL", help="the float model (default: MODEL with quantization removed)")
    parser.add_argument("--all", action="store_true", help="also the values that the int8 engine's float ops make")
    parser.add_argument(
        "--sort", choices=("position", "worst"), default="position", help="order of the values (default position)"
    )
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass compare`."""
    from qpass.analysis.engine_gap import engine_gap
    from qpass.formats.files import load
    from qpass.runtime.data import Batches, load_data

    model = load_model(args)
    source = Batches.of(model, load_data(args.data, batch_size=args.batch_size), limit=args.batches)
    plain = None if args.float is None else load(args.float)
    gap = engine_gap(model, source, engine=args.engine, float_model=plain, every=args.all)
    if args.sort == "worst":
        gap = dataclasses.replace(gap, values=tuple(sorted(gap.values, key=_badness)))
    if args.json:
        print_json(dataclasses.asdict(gap))
    else:
        print("\n".join(render(gap)))
    return 0


def _badness(row: ValueGap) -> float:
    return min((x for x in (row.engine_simulated, row.engine_float) if x is not None), default=float("inf"))


def render(gap: EngineGap) -> list[str]:
    """Lines for people."""
    lines = [f"engine {gap.engine}; SQNR in dB"]
    if gap.engine == "int8":
        lines[0] = f"engine int8: {gap.int8_ops} of {gap.ops} ops compute in int8; SQNR in dB"
    lines += _table([_cells(row) for row in gap.values], [_cells(row) for row in gap.outputs])
    saturating = [row for row in gap.values if row.saturating > 0]
    if saturating:
        worst = max(saturating, key=lambda row: row.saturating)
        lines.append(
            f"this processor has no VNNI: in {len(saturating)} layers sums of two products may not fit 16 bits, which "
            f"no simulation tells; most in {worst.layer}, {worst.saturating:.1%} of its pairs of weights"
        )
    return [*lines, *gap.notes]


def _cells(row: ValueGap) -> tuple[str, ...]:
    held = "float"
    if row.threshold is not None:
        held = f"{'u8' if row.unsigned else 's8'} to {row.threshold:.4g}"
    runs = "" if row.op == "output" else "int8" if row.int8 else "float"
    figures = (row.engine_simulated, row.engine_float, row.simulated_float)
    return (row.value, row.op, runs, "" if row.op == "output" else held, *(_db(x) for x in figures))


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(values: Sequence[Sequence[str]], outputs: Sequence[Sequence[str]]) -> list[str]:
    rows = [_HEADER, *values, *outputs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    words = 4
    return [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
