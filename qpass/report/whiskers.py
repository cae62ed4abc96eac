"""Intervals in the ranking chart: whiskers over its bars, and a panel of the finer metric beside them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qpass.analysis.result import LayerResult, Ranking
from qpass.report.certainty import noise_layers
from qpass.report.style import FAINT, GREY, INK, MONO, family_colour, plain
from qpass.report.wording import percent

_RANK_SIZE = 7.5
_RANK_ROOM = 0.12
"""Share of the panel that the ranks take."""


def draw_whiskers(axes: Axes, rows: Sequence[LayerResult], ranking: Ranking) -> None:
    """Draw the intervals of these rows, one below the other; faint where a layer is not told apart from a neighbour.

    An interval without length gets no whisker.
    """
    noise = noise_layers(ranking)
    for y, row in enumerate(rows):
        loss = ranking.rows[row.layer]
        if loss.low < loss.high:
            colour = FAINT if row.layer in noise else INK
            axes.plot([loss.low, loss.high], [y, y], marker="|", markersize=5, linewidth=1.3, color=colour)


def draw_panel(axes: Axes, rows: Sequence[LayerResult], ranking: Ranking) -> None:
    """Draw the losses of these rows with their intervals as a panel of its own, the rank at the right."""
    shown = [ranking.rows[row.layer] for row in rows]
    low, high = min([0.0, *(loss.low for loss in shown)]), max([0.0, *(loss.high for loss in shown)])
    span = high - low or 1.0
    axes.set_xlim(low - 0.03 * span, high + (0.03 + _RANK_ROOM) * span)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.axvline(0, color=GREY, linewidth=0.8)
    draw_whiskers(axes, rows, ranking)
    colours = [family_colour(row.family) for row in rows]
    axes.scatter([loss.loss for loss in shown], range(len(shown)), s=16, c=colours, zorder=3)
    noise = noise_layers(ranking)
    for y, (row, loss) in enumerate(zip(rows, shown, strict=True)):
        axes.annotate(
            f"#{loss.rank}",
            (1, y),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontname=MONO,
            fontsize=_RANK_SIZE,
            color=GREY if row.layer in noise else INK,
        )
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(plain(ranking.name, 48), fontsize=8.5, labelpad=5)


def whisker_note(ranking: Ranking) -> str:
    """A line below the chart that says what the whiskers are."""
    return (
        f"Whiskers: {percent(ranking.confidence)} intervals over {ranking.samples:,} samples; grey where they do not "
        "tell a layer apart from its neighbour in rank."
    )
