"""What the runs of a case come to: medians, the two tables, and whether both sides measured the same."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cases import Case
from markdown_table import table

Facts = dict[str, Any]
"""Of a side: ``runs`` (what `sides.run` gave), and ``error`` or ``timeout`` where there was no result."""

PEER, OWN = "paddleslim", "qpass"


class Row(NamedTuple):
    """A case as it was measured; `multiply_adds` are those that must be run again."""

    name: str
    case: Case
    sides: dict[str, Facts]
    multiply_adds: int


TIMES = (
    *("case", "peer seconds", "peer MB", "qpass seconds", "qpass MB", "times as fast", "goal"),
    *("limit seconds", "ratio to limit"),
)
CHECKS = (
    *("case", "layers", "import seconds, peer / qpass", "MB at the start, peer / qpass"),
    *("largest difference of a metric", "range of the metric", "ranking"),
)


def median(side: Facts | None, figure: str) -> float | None:
    """Median of a figure over the runs; None where there are none."""
    return statistics.median(run[figure] for run in side["runs"]) if side and side["runs"] else None


def times_row(row: Row, rate: float) -> list[str]:
    """Times and memory of a case, against each other, its goal and the limit at a rate of multiply-adds a second."""
    peer, own, limit = row.sides.get(PEER), row.sides.get(OWN), row.multiply_adds / rate
    seconds, megabytes = median(own, "seconds"), median(own, "megabytes")
    times, more = _times(peer, seconds), "> " if peer and "timeout" in peer else ""
    return [
        row.name,
        _outcome(peer),
        _number(median(peer, "megabytes"), 0),
        _outcome(own),
        _number(megabytes, 0),
        "-" if times is None else f"{more}{times:.1f}x",
        goal(row.case, peer, seconds, megabytes),
        _number(limit, 3),
        _number(seconds / limit if seconds is not None else None, 1),
    ]


def goal(case: Case, peer: Facts | None, seconds: float | None, megabytes: float | None) -> str:
    """The goals of a case in words, and whether each was reached."""
    words = []
    if case.faster is not None:
        words.append(f"{case.faster:g}x{_reached(case.faster, _times(peer, seconds), peer)}")
    for most, found, unit in ((case.seconds, seconds, "s"), (case.megabytes, megabytes, "MB")):
        if most is not None:
            words.append(f"under {most:g} {unit}" + ("" if found is None else ": yes" if found < most else ": no"))
    return ", ".join(words)


def check_row(name: str, sides: Mapping[str, Facts]) -> list[str]:
    """Whether both sides found the same metric for every layer; and what importing takes."""
    both = [sides.get(side) for side in (PEER, OWN)]
    pairs = [
        " / ".join(_number(median(side, figure), digits) for side in both)
        for figure, digits in (("import_seconds", 1), ("import_megabytes", 0))
    ]
    found = [side["runs"][0]["metrics"] if side and side["runs"] else {} for side in both]
    known = [metrics for metrics in found if metrics]
    if not known:
        return [name, "-", *pairs, "-", "-", "-"]
    spread = f"{min(known[-1].values()):.6f} to {max(known[-1].values()):.6f}"
    if len(known) < 2:
        return [name, str(len(known[0])), *pairs, "-", spread, "-"]
    theirs, ours = known
    layers = sorted(theirs.keys() & ours.keys())
    count = str(len(ours)) if theirs.keys() == ours.keys() else f"{len(theirs)} / {len(ours)}, {len(layers)} shared"
    differences = {layer: abs(theirs[layer] - ours[layer]) for layer in layers}
    worst = max(layers, key=differences.__getitem__) if layers else None
    words = "-" if worst is None else f"{differences[worst]:.1e} ({worst})"
    return [name, count, *pairs, words, spread, agreement(theirs, ours)]


def agreement(theirs: Mapping[str, float], ours: Mapping[str, float]) -> str:
    """Whether two sides order the layers alike: ``same``, or which pairs of layers are the other way round.

    A pair counts only where neither side has it tied. Pairs that are hardly apart are swapped by rounding alone.
    """
    pairs = list(itertools.combinations(sorted(theirs.keys() & ours.keys()), 2))
    apart = [(theirs[a] - theirs[b], ours[a] - ours[b]) for a, b in pairs]
    swapped = [max(abs(one), abs(other)) for one, other in apart if one * other < 0]
    if not swapped:
        return "same"
    return f"{len(swapped)} of {len(pairs)} pairs swapped, at most {max(swapped):.1e} apart"


def report(rows: Sequence[Row], rate: float) -> str:
    """Both tables, and what failed."""
    errors = [
        f"- {row.name}, {side}: {facts['error']}\n"
        for row in rows
        for side, facts in row.sides.items()
        if "error" in facts
    ]
    first = table(TIMES, [times_row(row, rate) for row in rows])
    second = table(CHECKS, [check_row(row.name, row.sides) for row in rows])
    return "\n".join((first, second, *(["Failed:\n\n" + "".join(errors)] if errors else [])))


def _times(peer: Facts | None, seconds: float | None) -> float | None:
    """How many times as fast; at least so many where the peer was stopped."""
    taken = None if peer is None else peer.get("timeout", median(peer, "seconds"))
    return None if taken is None or not seconds else taken / seconds


def _reached(wanted: float, times: float | None, peer: Facts | None) -> str:
    if times is None:
        return ""
    stopped = peer is not None and "timeout" in peer
    return ": yes" if times >= wanted else ": stopped too early to tell" if stopped else ": no"


def _outcome(side: Facts | None) -> str:
    if side is None:
        return "-"
    if "error" in side:
        return f"fails: {side['error'][:80]}"
    if "timeout" in side:
        return f"> {side['timeout']:g} s"
    return _number(median(side, "seconds"), 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
