"""A ranking as plain rows of text, for whoever draws tables in a terminal."""

from __future__ import annotations

from qpass.analysis.result import AnalysisResult
from qpass.report.breakdown import has_breakdown, mostly
from qpass.report.certainty import noise_below
from qpass.report.wording import digits_of, one_line, percent

NOISE_MARK = "~"
"""Follows a rank where the samples do not tell the layer apart from the one ranked below it."""


def ranking_header(result: AnalysisResult) -> tuple[str, ...]:
    """Headings of the columns of `ranking_rows`."""
    header = ["#", "layer", "family", "eval metric", "sensitivity"]
    if result.scores is not None:
        header.append(f"{percent(result.scores.confidence)} interval")
    if result.fine is not None:
        header += ["fine loss", "fine #"]
    if has_breakdown(result):
        header.append("mostly")
    return tuple(header)


def ranking_rows(result: AnalysisResult, limit: int | None = None) -> list[tuple[str, ...]]:
    """One row a layer, most sensitive first: rank, layer, family, metric, sensitivity; at most `limit` of them.

    The interval of the sensitivity follows where there is one, then the loss by the finer metric and the rank by it,
    then, where layers were taken apart, the part that costs more by itself. Ranks that mean nothing bear `NOISE_MARK`.
    The numbers of all layers have the same number of decimals, also of those beyond the limit.
    """
    digits = digits_of(result)
    shown = result.rows if limit is None else result.rows[:limit]
    scores, fine = result.scores, result.fine
    marked = frozenset[str]() if scores is None else noise_below(scores)
    fine_marked = frozenset[str]() if fine is None else noise_below(fine)
    taken_apart = has_breakdown(result)
    rows = []
    for rank, row in enumerate(shown, 1):
        cells = [_marked(rank, row.layer in marked), one_line(row.layer), row.family]
        cells += [digits.text(row.metric), digits.text(row.sensitivity)]
        if scores is not None:
            loss = scores.rows[row.layer]
            cells.append(f"{digits.text(loss.low)} to {digits.text(loss.high)}")
        if fine is not None:
            loss = fine.rows[row.layer]
            cells += [f"{loss.loss:.4g}", _marked(loss.rank, row.layer in fine_marked)]
        if taken_apart:
            cells.append(mostly(row))
        rows.append(tuple(cells))
    return rows


def _marked(rank: int, noise: bool) -> str:
    return f"{rank}{NOISE_MARK}" if noise else str(rank)
