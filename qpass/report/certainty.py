"""How sure a ranking is, in words: the sentences of ``ranking.txt`` and of the terminal, and that file itself."""

from __future__ import annotations

from collections import Counter

from qpass.analysis.fine_metric import NOISE_SHARE, loss_as_sqnr
from qpass.analysis.result import AnalysisResult, Neighbours, Ranking
from qpass.report.aligned import aligned
from qpass.report.estimate import estimate_lines
from qpass.report.wording import (
    WHAT_WAS_DONE,
    digits_of,
    direction,
    ends_of_the_scale,
    metric_word,
    one_line,
    percent,
)

_MANY = 1_000_000


def has_certainty(result: AnalysisResult) -> bool:
    """Whether a result says more than its figures."""
    says = (result.fine, result.scores, result.race, result.estimate, result.remarks)
    return any(says) or result.noise_floor is not None


def certainty(result: AnalysisResult) -> list[str]:
    """Sentences about how sure the ranking is; none for a result that has figures alone."""
    if not has_certainty(result):
        return []
    lines = [_ties(result)]
    if result.fine is not None:
        lines.append(f"The finer metric is the {result.fine.name}: {result.fine.why}.")
    for ranking in (result.scores, result.fine):
        if ranking is not None:
            lines.append(_told_apart(ranking))
    if result.scores is None:
        lines.append(f"No intervals for {metric_word(result)}: there is no score for each sample, only the whole.")
    if result.noise_floor is not None:
        lines.append(_floor(result, result.noise_floor))
    lines += _race(result)
    if result.estimate is not None:
        lines += estimate_lines(result, result.estimate)
    return [one_line(line) for line in (*lines, *result.remarks) if line]


def ranking_txt(result: AnalysisResult) -> str:
    """The ranking for a reader: what ranks, ties, intervals, which neighbours are noise, how many samples would tell.

    First sentences, then a table by the metric of the evaluation, then one by the finer metric. The last column of a
    table is about the layer and the one below it.
    """
    lines = [
        f"Sensitivity of {_count(len(result.rows), 'layer')}. {WHAT_WAS_DONE[result.mode]}.",
        f"Ranked by {one_line(_ranks_by(result))}.",
        f"Measured: {one_line(metric_word(result))} ({direction(result)}).",
        f"Reached: {ends_of_the_scale(result, digits_of(result))}.",
        *certainty(result),
        "",
        *_by_metric(result),
    ]
    if result.fine is not None:
        lines += ["", *_by_fine(result, result.fine)]
    return "\n".join(lines) + "\n"


def noise_layers(ranking: Ranking) -> frozenset[str]:
    """Layers that are not told apart from the one above or below in this ranking."""
    return frozenset(layer for pair in ranking.neighbours if pair.noise for layer in (pair.upper, pair.lower))


def noise_below(ranking: Ranking) -> frozenset[str]:
    """Layers that are not told apart from the one below in this ranking."""
    return frozenset(pair.upper for pair in ranking.neighbours if pair.noise)


def verdict(ranking: Ranking, pair: Neighbours) -> str:
    """What the samples say about two neighbours: ``apart``, or noise and how many more would tell."""
    if not pair.noise:
        return "apart"
    if pair.samples_needed is None:
        return "noise, no difference so far"
    more = pair.samples_needed - min(ranking.rows[pair.upper].samples, ranking.rows[pair.lower].samples)
    return (
        f"noise, about {_count(more, 'more sample')} would tell"
        if more < _MANY
        else "noise, a million samples would not tell"
    )


def _ranks_by(result: AnalysisResult) -> str:
    """The metric that orders the rows: the evaluation's, unless the race was on the finer one."""
    if result.race is not None and result.fine is not None and result.race.metric == result.fine.name:
        return result.fine.name
    return metric_word(result)


def _ties(result: AnalysisResult) -> str:
    word = metric_word(result)
    if _ranks_by(result) != word:
        return ""
    times = Counter(row.sensitivity for row in result.rows)
    tied = sum(count for count in times.values() if count > 1)
    if not tied:
        return f"No two layers tie in {word}."
    then = "" if result.fine is None else f"by the {result.fine.name}, then "
    return f"{tied} of {len(result.rows)} layers tie with another in {word}; ties are ordered {then}as in the program."


def _told_apart(ranking: Ranking) -> str:
    noise = sum(pair.noise for pair in ranking.neighbours)
    return (
        f"By {ranking.name}, {noise} of {_count(len(ranking.neighbours), 'pair')} of neighbours in rank are noise "
        f"({percent(ranking.confidence)} intervals, each on its own: paired bootstrap, "
        f"{_count(ranking.resamples, 'resample')} of {_count(ranking.samples, 'sample')})."
    )


def _floor(result: AnalysisResult, floor: float) -> str:
    within = sum(abs(row.sensitivity) <= floor for row in result.rows)
    return (
        f"Noise floor {digits_of(result).text(floor)}: so far the metric moves when only the last bits of the "
        f"arithmetic change, which quantized layers amplify. {within} of {len(result.rows)} sensitivities lie within "
        "it and mean nothing."
    )


def _race(result: AnalysisResult) -> list[str]:
    race = result.race
    if race is None:
        return []
    return [
        f"Race by {race.metric}: {len(race.places)} of {len(race.samples)} layers have a settled place "
        f"({percent(race.confidence)} for all of them together) and were not run on all {race.total:,} samples; "
        f"{percent(race.saved)} of the evaluations were saved."
    ]


def _by_metric(result: AnalysisResult) -> list[str]:
    digits = digits_of(result)
    header = ["#", "layer", "sensitivity"]
    table = [[str(i), one_line(row.layer), digits.text(row.sensitivity)] for i, row in enumerate(result.rows, 1)]
    scores = result.scores
    if result.fine is not None:
        header.append("# by the finer metric")
        for cells, row in zip(table, result.rows, strict=True):
            cells.append(str(result.fine.rows[row.layer].rank))
    if result.race is not None:
        header.append("samples")
        for cells, row in zip(table, result.rows, strict=True):
            settled = ", settled" if row.layer in result.race.places else ""
            cells.append(f"{result.race.samples[row.layer]:,}{settled}")
    if scores is not None:
        header += [f"{percent(scores.confidence)} interval", "and the next"]
        below = {pair.upper: verdict(scores, pair) for pair in scores.neighbours}
        for cells, row in zip(table, result.rows, strict=True):
            loss = scores.rows[row.layer]
            cells += [f"{digits.text(loss.low)} to {digits.text(loss.high)}", below.get(row.layer, "")]
    return [f"The ranking by {one_line(_ranks_by(result))}", *aligned(header, table)]


def _by_fine(result: AnalysisResult, fine: Ranking) -> list[str]:
    decibels = fine.name == NOISE_SHARE and result.mode == "ptq"
    header = ["#", "layer", "loss", f"{percent(fine.confidence)} interval"]
    header += ["SQNR dB"] * decibels + ["and the next"]
    below = {pair.upper: verdict(fine, pair) for pair in fine.neighbours}
    table = [
        [str(row.rank), one_line(layer), f"{row.loss:.4g}", f"{row.low:.4g} to {row.high:.4g}"]
        + [f"{loss_as_sqnr(row.loss):.2f}"] * decibels
        + [below.get(layer, "")]
        for layer, row in fine.rows.items()
    ]
    return [f"By the finer metric, {one_line(fine.name)}", *aligned(header, table)]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
