"""The text files of an analysis: one line a layer for people, comma-separated values for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from qpass.analysis.result import AnalysisResult, Mode
from qpass.analysis.statistics import QUANTILES, TensorStatistics
from qpass.report.certainty import noise_below
from qpass.report.wording import digits_of, one_line

_LINE_START: dict[Mode, str] = {"ptq": "quant layer name", "qat": "without layer name"}
_RESULT_COLUMNS = ("rank", "layer", "family", "metric", "sensitivity")
_SCORE_COLUMNS = ("sensitivity_low", "sensitivity_high", "noise_below")
_FINE_COLUMNS = ("fine_loss", "fine_low", "fine_high", "fine_rank", "fine_noise_below")
_STATISTIC_COLUMNS = ("layer", "role", "name", "threshold", "minimum", "maximum", "mean", "std")
_QUANTILE_COLUMNS = tuple(f"q{100 * q:g}" for q in QUANTILES)


def analysis_txt(result: AnalysisResult) -> str:
    """One line a layer, most sensitive first, in the words of PaddleSlim's ``analysis.txt``.

    Four decimals, and more (up to eight, the same on all lines) only where four would make different layers look
    equal; a number that would still show as zero is written as ``%.4g``.
    """
    digits = digits_of(result)
    return "".join(
        f"{_LINE_START[result.mode]}: {one_line(row.layer)}, eval metric: {digits.text(row.metric)}, "
        f"sensitivity: {digits.text(row.sensitivity)}\n"
        for row in result.rows
    )


def analysis_csv(result: AnalysisResult) -> str:
    """Every figure of every layer, most sensitive first, to full precision.

    Columns: rank (from 1), layer, family, metric, sensitivity, then the details by name; empty where a layer lacks one.
    Where there are scores of samples: sensitivity_low, sensitivity_high (ends of the interval) and noise_below (1 where
    the layer is not told apart from the next one, else 0). With a finer metric: fine_loss, fine_low, fine_high,
    fine_rank and fine_noise_below. With either: samples, on how many the layer was run.
    """
    names = sorted({name for row in result.rows for name in row.details})
    header = [*_RESULT_COLUMNS, *names]
    table: list[list[object]] = [
        [rank, row.layer, row.family, repr(float(row.metric)), repr(float(row.sensitivity))]
        + [repr(float(row.details[name])) if name in row.details else "" for name in names]
        for rank, row in enumerate(result.rows, 1)
    ]
    for ranking, columns in ((result.scores, _SCORE_COLUMNS), (result.fine, _FINE_COLUMNS)):
        if ranking is not None:
            header += columns
            noise = noise_below(ranking)
            for cells, row in zip(table, result.rows, strict=True):
                loss = ranking.rows[row.layer]
                figures = (repr(loss.loss), repr(loss.low), repr(loss.high), loss.rank, int(row.layer in noise))
                cells += figures if ranking is result.fine else [*figures[1:3], figures[4]]
    either = result.scores or result.fine
    if either is not None:
        header.append("samples")
        for cells, row in zip(table, result.rows, strict=True):
            cells.append(either.rows[row.layer].samples)
    return csv_text(header, table)


def statistic_csv(stats: Sequence[TensorStatistics]) -> str:
    """One row a tensor, in the order given, to full precision; quantiles are ``q0`` to ``q100``, in percent."""
    rows = (
        [s.layer, s.role, s.name]
        + [repr(float(v)) for v in (s.threshold, s.minimum, s.maximum, s.mean, s.std)]
        + [repr(float(v)) for v in (*s.quantiles, s.error_rms, s.sqnr_db)]
        for s in stats
    )
    return csv_text([*_STATISTIC_COLUMNS, *_QUANTILE_COLUMNS, "error_rms", "sqnr_db"], rows)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values, one line a row, quoted where it is needed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
