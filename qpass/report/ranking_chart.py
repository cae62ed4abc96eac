"""The ranking as a picture: one bar a layer, most sensitive on top."""

from __future__ import annotations

from typing import TypedDict

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from qpass.analysis.result import AnalysisResult, LayerResult
from qpass.report.digits import Digits
from qpass.report.style import (
    FAMILY_COLOURS,
    GREY,
    INK,
    MONO,
    MONO_ADVANCE,
    OTHER_FAMILY,
    THRESHOLD_COLOUR,
    drawn_length,
    family_colour,
    house_style,
    plain,
    png_bytes,
)
from qpass.report.whiskers import draw_panel, draw_whiskers, whisker_note
from qpass.report.wording import (
    REFERENCE,
    WHAT_WAS_DONE,
    digits_of,
    direction,
    ends_of_the_scale,
    formula,
    metric_word,
    reference_sensitivity,
)


class _LineStyle(TypedDict):
    color: str
    linewidth: float
    linestyle: tuple[int, tuple[int, int]]


MOST_BARS = 40
_WIDTH, _BAR, _HEADER, _AXIS, _NOTE_LINE = 9.0, 0.23, 1.0, 0.62, 0.2
_NAME_SIZE, _VALUE_SIZE, _NAME_CHARACTERS = 8.0, 7.5, 48
_LEFT, _RIGHT, _GAP = 0.3, 0.35, 0.14
_VALUE_OFFSET = 4  # points
_REFERENCE_LINE: _LineStyle = {"color": THRESHOLD_COLOUR, "linewidth": 1.1, "linestyle": (0, (4, 3))}
_MARGIN = 0.01  # share of the axis beyond the line of the reference
_PANEL, _PANEL_GAP = 2.7, 0.3  # inches that the panel of the finer metric takes, of them to the left of it
_DPI = 150


def ranking_png(result: AnalysisResult) -> bytes:
    """The ranking as a bar chart: 1350 pixels wide, as high as it needs, at most 40 bars.

    Layers beyond the fortieth are summed up in a line below. The dashed line is what all layers together cost, where
    that was measured and lies within reach of the bars. Bars have whiskers where the evaluation gives scores of
    samples; a finer metric stands in a panel beside them.
    """
    with house_style():
        return png_bytes(_figure(result), _DPI)


def _figure(result: AnalysisResult) -> Figure:
    shown = result.rows[:MOST_BARS]
    digits = digits_of(result).coarse(max((abs(row.sensitivity) for row in shown), default=0.0))
    names = [plain(row.layer, _NAME_CHARACTERS) for row in shown]
    values = [_signed(digits, row.sensitivity) for row in shown]
    left = _LEFT + _mono_width(names, _NAME_SIZE)
    panel = _PANEL if result.fine is not None and shown else 0.0
    width = _WIDTH - left - _RIGHT - panel
    sizes, cost = [row.sensitivity for row in shown], reference_sensitivity(result)
    ends = [] if result.scores is None else [result.scores.rows[row.layer] for row in shown]
    reach = [*sizes, *(end for loss in ends for end in (loss.low, loss.high))]
    limits = _limits(reach, cost, _mono_width(values, _VALUE_SIZE) / width)
    line = cost if cost is not None and any(sizes) and limits[0] <= cost <= limits[1] else None
    notes = _notes(result, shown, line, digits)

    bars, foot = max(len(shown), 1) * _BAR, _AXIS + _NOTE_LINE * len(notes)
    height = _HEADER + bars + foot
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((left / _WIDTH, foot / height, width / _WIDTH, bars / height))
    _header(figure, result, shown, height, line, digits)
    if not shown:
        axes.set_axis_off()
        axes.text(0, 0.5, "no layers", color=GREY)
        return figure
    axes.set_xlim(*limits)
    _bars(axes, shown, values, [(min(loss.low, 0.0), max(loss.high, 0.0)) for loss in ends])
    if result.scores is not None:
        draw_whiskers(axes, shown, result.scores)
    if result.fine is not None:
        x = (_WIDTH - _RIGHT - panel + _PANEL_GAP) / _WIDTH
        draw_panel(
            figure.add_axes((x, foot / height, (panel - _PANEL_GAP) / _WIDTH, bars / height)), shown, result.fine
        )
    if line is not None:
        axes.axvline(line, **_REFERENCE_LINE)
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names, fontname=MONO, fontsize=_NAME_SIZE, color=INK)
    axes.set_xlabel(f"sensitivity = {formula(result)}", fontsize=8.5, labelpad=5)
    for i, note in enumerate(notes):
        y = (0.1 + _NOTE_LINE * (len(notes) - 1 - i)) / height
        figure.text(_LEFT / _WIDTH, y, note, fontsize=8, color=GREY, va="bottom")
    return figure


def _header(
    figure: Figure,
    result: AnalysisResult,
    shown: tuple[LayerResult, ...],
    height: float,
    line: float | None,
    digits: Digits,
) -> None:
    x = _LEFT / _WIDTH
    figure.text(x, 1 - 0.16 / height, "Sensitivity to quantization", fontsize=14, fontweight="bold", va="top")
    measured = f"{plain(metric_word(result), 40)} ({direction(result)}): {ends_of_the_scale(result, digits)}"
    figure.text(x, 1 - 0.47 / height, f"{WHAT_WAS_DONE[result.mode]} · {measured}", fontsize=8.5, color=GREY, va="top")
    present = {row.family for row in shown}
    handles: list[Artist] = [
        Patch(color=colour, label=name) for name, colour in FAMILY_COLOURS.items() if name in present
    ]
    others = sorted(present - set(FAMILY_COLOURS))
    if others:
        handles.append(Patch(color=OTHER_FAMILY, label=plain(", ".join(others), 40)))
    if line is not None:
        label = f"{REFERENCE[result.mode]} ({_signed(digits, line)})"
        handles.append(Line2D([], [], label=label, **_REFERENCE_LINE))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(x, 1 - 0.68 / height),
        ncol=max(len(handles), 1),
        frameon=False,
        fontsize=8.5,
        handlelength=1.1,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0,
        borderaxespad=0,
    )


def _bars(axes: Axes, shown: tuple[LayerResult, ...], values: list[str], whiskers: list[tuple[float, float]]) -> None:
    sizes = [row.sensitivity for row in shown]
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.barh(range(len(sizes)), sizes, height=0.72, color=[family_colour(row.family) for row in shown])
    axes.axvline(0, color=GREY, linewidth=0.8)
    for y, (size, value) in enumerate(zip(sizes, values, strict=True)):
        side = -1 if size < 0 else 1
        beside = size if not whiskers else min(size, whiskers[y][0]) if side < 0 else max(size, whiskers[y][1])
        axes.annotate(
            value,
            (beside, y),
            xytext=(_VALUE_OFFSET * side, -0.5),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontname=MONO,
            fontsize=_VALUE_SIZE,
            color=INK if float(value.replace("\N{MINUS SIGN}", "-")) else GREY,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
    axes.tick_params(axis="y", length=0, pad=5)
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)
    if not any(sizes):
        axes.set_xticks([0])


def _limits(sizes: list[float], cost: float | None, label: float) -> tuple[float, float]:
    """Ends of the axis.

    The values beside the longest bars get room (`label` is their share of the axis), and so does the line of the
    reference unless it would squeeze the bars into less than half of the axis.
    """
    low, high = min([*sizes, 0.0]), max([*sizes, 0.0])
    if low == high:
        return -0.01, 1.0
    left, right = (label if low < 0 else 0.0), label
    span = (high - low) / (1 - left - right)
    if cost is None:
        return low - left * span, high + right * span
    wide = max((cost - low) / (1 - left - _MARGIN), (high - cost) / (1 - right - _MARGIN))
    if not span < wide <= 2 * span:
        return low - left * span, high + right * span
    return min(low - left * wide, cost - _MARGIN * wide), max(high + right * wide, cost + _MARGIN * wide)


def _notes(result: AnalysisResult, shown: tuple[LayerResult, ...], line: float | None, digits: Digits) -> list[str]:
    """Lines below the chart about what it does not show."""
    notes = []
    cost = reference_sensitivity(result)
    if cost is not None and line is None and shown:
        notes.append(f"Beyond the axis: {REFERENCE[result.mode]}, at {_signed(digits, cost)}.")
    rest = [row.sensitivity for row in result.rows[len(shown) :]]
    if len(rest) == 1:
        notes.append(f"1 more layer is not shown: its sensitivity is {_signed(digits, rest[0])}.")
    elif rest:
        ends = f"{_signed(digits, max(rest))} to {_signed(digits, min(rest))}"
        notes.append(f"{len(rest)} less sensitive layers are not shown: {ends}.")
    sampled = result.scores or result.fine
    if shown and sampled is not None:
        notes.append(whisker_note(sampled))
    return notes


def _signed(digits: Digits, value: float) -> str:
    return digits.text(value).replace("-", "\N{MINUS SIGN}")


def _mono_width(texts: list[str], size: float) -> float:
    """Inches that the longest of these texts takes, with the gap to what it names."""
    return max((drawn_length(text) for text in texts), default=0) * MONO_ADVANCE * size / 72 + _GAP
