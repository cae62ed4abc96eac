"""Histograms of tensors before and after quantization: one page a tensor, the threshold marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from qpass.analysis.statistics import TensorStatistics
from qpass.report.style import (
    FLOAT_COLOUR,
    GREY,
    MONO,
    PALE,
    QUANT_COLOUR,
    THRESHOLD_COLOUR,
    house_style,
    pdf_bytes,
    plain,
)

_SIZE = (8.0, 4.4)
_BOX = (0.07, 0.125, 0.9, 0.66)
_LOG_FROM = 50.0  # tallest bin over the median one
_OUT_OF_SIGHT = 4.0  # a threshold this many times beyond the data is told, not drawn


def histogram_pdf(pages: Sequence[tuple[TensorStatistics, str]], title: str) -> bytes:
    """One page a tensor: what is in float, what quantization makes of it, and the threshold.

    Parameters
    ----------
    pages : sequence of (TensorStatistics, str)
        The tensors, each with a line to stand below its layer's name.
    title : str
        Title of the document.
    """
    with house_style():
        return pdf_bytes((histogram_page(stats, line) for stats, line in pages), title)


def histogram_page(stats: TensorStatistics, line: str) -> Figure:
    """One page; to be drawn inside `house_style`."""
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes(_BOX)
    figure.text(_BOX[0], 0.955, plain(stats.layer, 62), fontname=MONO, fontsize=12, fontweight="bold", va="top")
    figure.text(_BOX[0], 0.885, plain(line, 110), fontsize=8.5, color=GREY, va="top")
    edges = np.asarray(stats.bin_edges, np.float64)
    axes.stairs(stats.float_counts, edges, fill=True, color=FLOAT_COLOUR, alpha=0.75, label="float", zorder=2)
    axes.stairs(stats.quant_counts, edges, color=QUANT_COLOUR, linewidth=0.9, label="quantized", zorder=3)
    _count_axis(axes, stats)
    axes.grid(axis="y")
    axes.tick_params(length=0, labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(9))
    said = _thresholds(axes, stats, edges)
    axes.set_xlabel(said, fontsize=8.5)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.005),
        ncol=3,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0,
    )
    return figure


def _count_axis(axes: Axes, stats: TensorStatistics) -> None:
    """Logarithmic where a few bins hold nearly everything, or the rest of the shape would be a line at zero."""
    counts = np.concatenate([stats.float_counts, stats.quant_counts])
    filled = counts[counts > 0]
    said = "values in each bin"
    if filled.size and filled.max() > _LOG_FROM * np.median(filled):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.7, filled.max() * 2)
        said += " (logarithmic scale)"
    else:
        axes.set_ylim(0, 1.06 * max(counts.max(initial=0), 1))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.text(0, 1.018, said, transform=axes.transAxes, fontsize=8, color=GREY)


def _thresholds(axes: Axes, stats: TensorStatistics, edges: np.ndarray) -> str:
    """Mark the threshold, and what it clips; give what the picture cannot show as the label of the axis."""
    threshold, low, high = stats.threshold, float(edges[0]), float(edges[-1])
    reach = max(abs(stats.minimum), abs(stats.maximum))
    if not np.isfinite(threshold) or (reach > 0 and threshold > _OUT_OF_SIGHT * reach):
        _limit(axes, low, high)
        return f"value (the threshold {threshold:.4g} lies beyond)"
    ends = [threshold] if stats.minimum >= 0 else [-threshold, threshold]
    low, high = min(low, ends[0]), max(high, ends[-1])
    _limit(axes, low, high)
    for end in ends:
        label = None if end < 0 else f"threshold {threshold:.4g}"
        axes.axvline(end, color=THRESHOLD_COLOUR, linewidth=1.1, linestyle=(0, (4, 3)), label=label, zorder=1.5)
    left, right = axes.get_xlim()
    axes.axvspan(threshold, right, color=PALE, alpha=0.6, linewidth=0, zorder=0)
    if len(ends) == 2:
        axes.axvspan(left, -threshold, color=PALE, alpha=0.6, linewidth=0, zorder=0)
    axes.set_xlim(left, right)
    return "value (grey: beyond the threshold)"


def _limit(axes: Axes, low: float, high: float) -> None:
    margin = 0.03 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
