"""Where the loss comes from, as a text: by part of the layer, by kind of noise, at the layer and at the outputs."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.analysis.result import AnalysisResult, LayerResult
from qpass.report.aligned import aligned
from qpass.report.wording import WHAT_WAS_DONE, digits_of, metric_word, one_line, percent

_MEASURED = "weight_sensitivity"
_LOCAL = "local_sqnr_db"


def has_breakdown(result: AnalysisResult) -> bool:
    """Whether layers were taken apart."""
    return any(_MEASURED in row.details for row in result.rows)


def breakdown_txt(result: AnalysisResult) -> str:
    """What each layer loses by its weight and by its activation, and what its noise is made of."""
    lines = [
        f"Where the loss comes from. {WHAT_WAS_DONE[result.mode]}.",
        f"Sensitivity in {one_line(metric_word(result))}: of the whole layer, of its weight alone and of its input "
        "activation alone. The two need not add up: noise of both can cancel, and the metric is not linear.",
    ]
    rows = [[str(rank), one_line(row.layer), *_parts(result, row)] for rank, row in enumerate(result.rows, 1)]
    lines += ["", *aligned(["#", "layer", "both", "weight", "activation", "mostly"], rows)]
    if any(_LOCAL in row.details for row in result.rows):
        lines += ["", *_noise(result)]
    return "\n".join(lines) + "\n"


def mostly(row: LayerResult) -> str:
    """Which part of a layer costs more by itself: ``weight``, ``activation`` or ``equal``; empty where none is known.

    By the metric; where that ties, by the finer one.
    """
    found = ""
    for name in ("sensitivity", "fine_loss"):
        weight, activation = (row.details.get(f"{role}_{name}") for role in ("weight", "activation"))
        if weight is not None and activation is not None:
            if weight != activation:
                return "weight" if weight > activation else "activation"
            found = "equal"
    return found


def _parts(result: AnalysisResult, row: LayerResult) -> list[str]:
    digits = digits_of(result)
    figures = (row.sensitivity, row.details.get(_MEASURED), row.details.get("activation_sensitivity"))
    return [*("" if figure is None else digits.text(figure) for figure in figures), mostly(row)]


def _noise(result: AnalysisResult) -> list[str]:
    outputs = (
        "with the layer quantized, against the float model's"
        if result.mode == "ptq"
        else "with the layer un-quantized, against the float model's"
    )
    header = ["#", "layer", "op SQNR dB", "model SQNR dB", "activation SQNR dB", "clipped", "weight SQNR dB", "clipped"]
    table = []
    for rank, row in enumerate(result.rows, 1):
        figures = row.details
        cells = [_decibels(figures, _LOCAL), _decibels(figures, "output_sqnr_db")]
        for role in ("activation", "weight"):
            share = figures.get(f"{role}_clipping_share")
            cells += [_decibels(figures, f"{role}_sqnr_db"), "" if share is None else percent(share)]
        table.append([str(rank), one_line(row.layer), *cells])
    return [
        "op: the output of the layer's own ops, quantized alone on float inputs, against theirs in float.",
        f"model: the model's outputs {outputs}.",
        "activation, weight: the quantized operand itself; of the energy of its noise, the share that comes from "
        "clipping, the rest from rounding.",
        "",
        *aligned(header, table),
    ]


def _decibels(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.2f}" if name in figures else ""
