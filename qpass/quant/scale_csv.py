"""Scale tables as CSV, for spreadsheets and for editing by hand.

First what holds for the whole table, ``# name,value`` a line; then a line an activation and a line a channel of a
weight (or one for a whole weight). What is not known is left empty.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TypedDict

from qpass.errors import QuantError

NUMBERS = ("minimum", "maximum", "count", "mean", "std")
COLUMNS = ("kind", "name", "axis", "channel", "scale", "algo", *NUMBERS)

_AS_JSON = ("qpass_scales", "samples", "options")
"""What of the header is no text."""


class Activation(TypedDict, total=False):
    """One activation of a table; the numbers are those of `qpass.quant.record.Statistics`."""

    scale: float
    algo: str
    minimum: float
    maximum: float
    count: int
    mean: float
    std: float


class Weight(TypedDict):
    """One weight of a table: one scale, or a scale a channel."""

    axis: int | None
    algo: str
    scale: float | list[float]


class Body(TypedDict):
    """A table as JSON holds it."""

    header: dict[str, object]
    activations: dict[str, Activation]
    weights: dict[str, Weight]


def write(body: Body) -> str:
    """The text of a table."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    for name, value in body["header"].items():
        out.writerow([f"# {name}", json.dumps(value) if name in _AS_JSON else value])
    out.writerow(COLUMNS)
    for name, found in body["activations"].items():
        numbers = [found.get(column, "") for column in NUMBERS]
        out.writerow(["activation", name, "", "", found["scale"], found["algo"], *numbers])
    for name, weight in body["weights"].items():
        scales, axis = weight["scale"], "" if weight["axis"] is None else weight["axis"]
        channels: Sequence[tuple[object, float]] = (
            list(enumerate(scales)) if isinstance(scales, list) else [("", scales)]
        )
        for channel, scale in channels:
            out.writerow(["weight", name, axis, channel, scale, weight["algo"], *[""] * len(NUMBERS)])
    return text.getvalue()


def read(text: str, where: str) -> Body:
    """What `write` wrote. Columns may stand in any order, and those that may be empty may be missing.

    Raises
    ------
    QuantError
        If it is something else; names the line.
    """
    body: Body = {"header": {}, "activations": {}, "weights": {}}
    columns: list[str] = []
    lines = csv.reader(io.StringIO(text))
    try:
        for line in lines:
            if not any(line):
                continue
            if line[0].startswith("#"):
                name, cell = line[0].lstrip("# "), line[1] if len(line) > 1 else ""
                body["header"][name] = json.loads(cell) if name in _AS_JSON else cell
            elif not columns:
                columns = _columns(line)
            else:
                if len(line) != len(columns):
                    raise ValueError(f"it has {len(line)} of {len(columns)} columns")
                _add(body, {name: cell.strip() for name, cell in zip(columns, line, strict=True)})
    except (ValueError, csv.Error) as e:
        raise QuantError(
            f"line {lines.line_num} does not belong into a scale table ({e})",
            where=where,
            hint=f"the columns are {','.join(COLUMNS)}",
        ) from e
    if not columns:
        raise QuantError("it has no header line", where=where, hint=f"the columns are {','.join(COLUMNS)}")
    return body


def _columns(line: list[str]) -> list[str]:
    names = [cell.strip() for cell in line]
    if missing := [name for name in ("kind", "name", "scale") if name not in names]:
        raise ValueError(f"there is no column {missing[0]!r}")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ValueError(f"unknown column {unknown[0]!r}")
    return names


def _add(body: Body, cells: Mapping[str, str]) -> None:
    name, scale = cells["name"], _number(cells["scale"])
    if cells["kind"] == "activation":
        if name in body["activations"]:
            raise ValueError(f"activation {name!r} is there twice")
        body["activations"][name] = _activation(scale, cells)
    elif cells["kind"] == "weight":
        axis, channel = (int(cells[column]) if cells.get(column) else None for column in ("axis", "channel"))
        whole: float | list[float] = scale if channel is None else []
        weight = body["weights"].setdefault(name, {"axis": axis, "algo": cells.get("algo", ""), "scale": whole})
        if channel is None:
            if weight["scale"] is not whole:
                raise ValueError(f"weight {name!r} is there twice")
        elif axis != weight["axis"]:
            raise ValueError(
                f"channel {channel} of weight {name!r} lies along axis {axis}, those before along {weight['axis']}"
            )
        elif not isinstance(weight["scale"], list) or channel != len(weight["scale"]):
            raise ValueError(f"channel {channel} of weight {name!r}, expected 0, 1, 2 ... in order")
        else:
            weight["scale"].append(scale)
    else:
        raise ValueError(f"kind is {cells['kind']!r}, expected activation or weight")


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"the scale {cell!r} is no number") from None


def _activation(scale: float, cells: Mapping[str, str]) -> Activation:
    found: Activation = {"scale": scale, "algo": cells.get("algo", "")}
    for column in ("minimum", "maximum", "mean", "std"):
        if cells.get(column):
            found[column] = float(cells[column])
    if cells.get("count"):
        found["count"] = int(cells["count"])
    return found
