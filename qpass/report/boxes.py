"""Box plots of tensors: how the values of the layers compare, one row a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator, StrMethodFormatter

from qpass.analysis.statistics import TensorStatistics
from qpass.report.style import (
    FLOAT_COLOUR,
    GREY,
    INK,
    MONO,
    MONO_ADVANCE,
    THRESHOLD_COLOUR,
    drawn_length,
    house_style,
    pdf_bytes,
    plain,
)

ROWS_A_PAGE = 40
_WIDTH, _ROW, _HEADER, _AXIS = 9.0, 0.21, 0.82, 0.55
_NAME_SIZE, _NAME_CHARACTERS = 7.5, 48
_LEFT, _RIGHT, _GAP = 0.3, 0.35, 0.12
_SYMLOG_FROM = 30.0  # widest tensor over the median one
_OUT_OF_SIGHT = 4.0  # a threshold this many times beyond all data does not stretch the axis


def box_pdf(stats: Sequence[TensorStatistics], title: str) -> bytes:
    """Box plots, at most 40 tensors a page, in the order given.

    The box spans the quantiles 0.25 to 0.75 with the median in it, the thick line 0.01 to 0.99, the thin one minimum to
    maximum; ticks mark the threshold. All pages share one axis.
    """
    with house_style():
        limits = _limits(stats)
        starts = range(0, len(stats), ROWS_A_PAGE)
        pages = (
            box_page(stats[i : i + ROWS_A_PAGE], _page_title(title, n, len(starts)), limits)
            for n, i in enumerate(starts)
        )
        return pdf_bytes(pages, title)


def box_page(stats: Sequence[TensorStatistics], title: str, limits: tuple[float, float, float | None]) -> Figure:
    """One page; to be drawn inside `house_style`. `limits` are the ends of the axis and where it turns logarithmic."""
    names = [plain(s.layer, _NAME_CHARACTERS) for s in stats]
    left = _LEFT + max(map(drawn_length, names)) * MONO_ADVANCE * _NAME_SIZE / 72 + _GAP
    rows = len(stats) * _ROW
    height = _HEADER + rows + _AXIS
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((left / _WIDTH, _AXIS / height, (_WIDTH - left - _RIGHT) / _WIDTH, rows / height))
    figure.text(_LEFT / _WIDTH, 1 - 0.16 / height, title, fontsize=13, fontweight="bold", va="top")
    _key(figure, height)
    low, high, linear_to = limits
    if linear_to is not None:
        axes.set_xscale("symlog", linthresh=linear_to)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlim(low, high)
    axes.set_ylim(len(stats) - 0.5, -0.5)
    axes.grid(axis="x")
    _boxes(axes, stats)
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names, fontname=MONO, fontsize=_NAME_SIZE, color=INK)
    axes.tick_params(axis="y", length=0, pad=5)
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("value" if linear_to is None else "value (symmetric logarithmic scale)", fontsize=8.5)
    return figure


def _boxes(axes: Axes, stats: Sequence[TensorStatistics]) -> None:
    rows = np.arange(len(stats))
    lowest, q1, q25, median, q75, q99, highest = np.array([s.quantiles for s in stats], np.float64).T
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.hlines(rows, lowest, highest, color=FLOAT_COLOUR, linewidth=0.8)
    axes.hlines(rows, q1, q99, color=FLOAT_COLOUR, linewidth=2.4)
    axes.barh(rows, q75 - q25, left=q25, height=0.62, color=FLOAT_COLOUR, edgecolor=INK, linewidth=0.6)
    axes.vlines(median, rows - 0.31, rows + 0.31, color=INK, linewidth=1.2)
    signed = np.array([s.minimum < 0 for s in stats])
    thresholds = np.array([s.threshold for s in stats], np.float64)
    for x, y in ((thresholds, rows), (-thresholds[signed], rows[signed])):
        axes.vlines(x, y - 0.38, y + 0.38, color=THRESHOLD_COLOUR, linewidth=1.4)


def _limits(stats: Sequence[TensorStatistics]) -> tuple[float, float, float | None]:
    """Ends of the axis; where it turns logarithmic, None if it need not: one wide tensor would flatten all others."""
    reach = np.array([max(abs(s.minimum), abs(s.maximum)) for s in stats])
    seen = [s.threshold for s in stats if s.threshold <= _OUT_OF_SIGHT * reach.max()]
    low = min([0.0, *(s.minimum for s in stats)])
    high = max([0.0, *(s.maximum for s in stats), *seen])
    middle = float(np.median(reach))
    if middle > 0 and reach.max() > _SYMLOG_FROM * middle:
        return low * 1.5, high * 1.5, middle / 10
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin, None


def _key(figure: Figure, height: float) -> None:
    handles = [
        Patch(facecolor=FLOAT_COLOUR, edgecolor=INK, linewidth=0.6, label="25 % to 75 %, median"),
        Line2D([], [], color=FLOAT_COLOUR, linewidth=2.4, label="1 % to 99 %"),
        Line2D([], [], color=FLOAT_COLOUR, linewidth=0.8, label="minimum to maximum"),
        Line2D([], [], color=THRESHOLD_COLOUR, linewidth=0, marker="|", markersize=9, label="threshold"),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(_LEFT / _WIDTH, 1 - 0.5 / height),
        ncol=len(handles),
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0,
        borderaxespad=0,
    )


def _page_title(title: str, page: int, pages: int) -> str:
    return title if pages == 1 else f"{title} ({page + 1} of {pages})"
