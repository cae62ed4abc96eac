"""An estimate of sensitivities as a text: all layers by it, and how it agrees with what was measured."""

from __future__ import annotations

from qpass.analysis.rank_agreement import Agreement, Estimate
from qpass.analysis.result import AnalysisResult
from qpass.report.aligned import aligned
from qpass.report.wording import digits_of, metric_word, one_line


def estimate_txt(result: AnalysisResult, estimate: Estimate) -> str:
    """All layers in the order of the estimate, with the rank and the sensitivity of those that were evaluated."""
    digits = digits_of(result)
    measured = {row.layer: (str(rank), digits.text(row.sensitivity)) for rank, row in enumerate(result.rows, 1)}
    table = [
        [str(rank), one_line(layer), f"{score:.4g}", *measured.get(layer, ("", ""))]
        for rank, (layer, score) in enumerate(estimate.scores.items(), 1)
    ]
    header = ["#", "layer", "estimate", "# measured", f"sensitivity in {one_line(metric_word(result))}"]
    return "\n".join([*estimate_lines(result, estimate), "", *aligned(header, table)]) + "\n"


def estimate_lines(result: AnalysisResult, estimate: Estimate) -> list[str]:
    """Sentences about the estimate."""
    return [
        f"Estimated for all {len(estimate.scores)} layers from {estimate.samples:,} samples: the {estimate.name}. "
        f"{estimate.why}",
        f"Evaluated: the {len(result.rows)} layers with the largest estimate. The others have the estimate only, and "
        "are ranked behind by it.",
        *map(_agreement, estimate.agreement),
    ]


def _agreement(one: Agreement) -> str:
    if one.spearman is None or one.kendall is None:
        return f"No rank agreement with the {one.against}: there is nothing to tell the {one.layers} layers apart by."
    return (
        f"Rank agreement with the {one.against} over these {one.layers} layers: Spearman {one.spearman:.2f}, "
        f"Kendall {one.kendall:.2f}."
    )
