"""A ranking as plain rows of text, for whoever draws tables in a terminal."""

from __future__ import annotations

from qpass.analysis.result import AnalysisResult
from qpass.report.wording import digits_of, one_line


def ranking_header(result: AnalysisResult) -> tuple[str, ...]:
    """Headings of the columns of `ranking_rows`."""
    return ("#", "layer", "family", "eval metric", "sensitivity")


def ranking_rows(result: AnalysisResult, limit: int | None = None) -> list[tuple[str, ...]]:
    """One row a layer, most sensitive first: rank, layer, family, metric, sensitivity; at most `limit` of them.

    The numbers of all layers have the same number of decimals, also of those beyond the limit.
    """
    digits = digits_of(result)
    shown = result.rows if limit is None else result.rows[:limit]
    return [
        (str(rank), one_line(row.layer), row.family, digits.text(row.metric), digits.text(row.sensitivity))
        for rank, row in enumerate(shown, 1)
    ]
