from __future__ import annotations

import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image
from support.rankings import network, ranking, statistics

from qpass.report.boxes import box_pdf
from qpass.report.histograms import histogram_pdf
from qpass.report.ranking_chart import MOST_BARS, ranking_png
from qpass.report.style import FAMILY_COLOURS, drawn_length, plain
from qpass.report.wording import reference_sensitivity

AWKWARD_NAMES = [
    "$x$",
    r"$\frac{",
    r"$\frac{$",
    "a_b^c{d}",
    "\\$cost\\$",
    "conv_last_weights",
    "卷积_1.w_0",
    "line\nbreak",
    "x" * 300,
    "",
]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"), np.int16)


def bar_spans(png: bytes, colour: str) -> list[tuple[int, int]]:
    """First and last column of each unbroken bar of this colour below the key, from top to bottom."""
    want = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    hit = (np.abs(pixels(png)[145:] - want) <= 2).all(axis=2)
    rows = np.flatnonzero(hit.sum(axis=1) > 4)
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    middles = [hit[group[len(group) // 2]] for group in groups if group.size]
    spans = [(int(np.flatnonzero(m)[0]), int(np.flatnonzero(m)[-1])) for m in middles]
    assert [last - first + 1 for first, last in spans] == [m.sum() for m in middles], "something is drawn over a bar"
    return spans


def pages(pdf: bytes) -> int:
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_bars_are_as_long_as_the_sensitivities(mode: str) -> None:
    sizes = [0.04, 0.0, 0.0, 0.0, 0.02, 0.0, 0.0, 0.0, -0.01]  # every fourth is a conv2d
    spans = bar_spans(ranking_png(ranking(sizes, mode=mode)), FAMILY_COLOURS["conv2d"])
    zero = spans[0][0]
    assert len(spans) == 3
    assert abs(spans[1][0] - zero) <= 2
    assert (spans[1][1] - zero) * 2 == pytest.approx(spans[0][1] - zero, abs=4)
    assert zero - spans[2][0] == pytest.approx((spans[0][1] - zero) / 4, abs=4)
    assert spans[2][1] <= zero + 2


def test_the_chart_grows_with_the_layers_up_to_forty_bars() -> None:
    charts = {n: ranking_png(ranking([0.01] * n)) for n in (1, MOST_BARS, MOST_BARS + 14)}
    heights, widths, _ = zip(*(pixels(png).shape for png in charts.values()), strict=True)
    assert set(widths) == {1350}
    assert heights[0] < heights[1] < heights[2] <= heights[1] + 40  # one line more: the note
    bars = [sum(len(bar_spans(png, colour)) for colour in FAMILY_COLOURS.values()) for png in charts.values()]
    assert bars == [1, 40, 40]


def test_each_family_has_its_colour() -> None:
    png = ranking_png(ranking([0.04, 0.03, 0.02, 0.01]))
    assert [len(bar_spans(png, colour)) for colour in FAMILY_COLOURS.values()] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("mode", "higher", "reference", "cost"),
    [("ptq", True, 0.7, 0.05), ("qat", True, 0.8, 0.05), ("ptq", False, 0.8, 0.05), ("qat", False, 0.7, 0.05)],
)
def test_the_line_of_all_layers_stands_at_their_cost(mode: str, higher: bool, reference: float, cost: float) -> None:
    result = ranking([0.05, 0.01], mode=mode, reference=reference, higher_is_better=higher)
    assert reference_sensitivity(result) == pytest.approx(cost, abs=1e-12)
    png = ranking_png(ranking([0.025, 0.0], mode=mode, reference=reference, higher_is_better=higher))
    (start, end) = bar_spans(png, FAMILY_COLOURS["conv2d"])[0]
    line = bar_spans(png, "#a3123f")
    column = np.flatnonzero((np.abs(pixels(png)[145:] - np.array([163, 18, 63])) <= 40).all(axis=2).sum(axis=0) > 4)
    assert line == []  # thinner than a bar
    assert column.mean() - start == pytest.approx(2 * (end - start), abs=6)


@pytest.mark.parametrize(
    ("sizes", "reference"),
    [
        ([], None),
        ([], 0.7),
        ([0.0], 0.75),
        ([0.5], -100.0),
        ([-0.5, -0.25], 100.0),
        ([0.0] * 3, 0.0),
        ([0.01] * 3, None),
        ([1e-9, 1e-10], 0.75),
        ([1e6, 0.0], 0.75),
    ],
)
def test_extreme_rankings_are_drawn(sizes: list[float], reference: float | None) -> None:
    assert pixels(ranking_png(ranking(sizes, reference=reference))).std() > 0


@pytest.mark.filterwarnings("error")
def test_awkward_names_are_drawn_as_they_are() -> None:
    sizes = [0.01 * i for i in range(len(AWKWARD_NAMES))]
    ranking_png(ranking(sizes, AWKWARD_NAMES))
    stats = [statistics(name, "weight", np.arange(-3.0, 4.0)) for name in AWKWARD_NAMES]
    assert pages(histogram_pdf([(one, one.layer) for one in stats], "title $x$")) == len(stats)
    assert pages(box_pdf(stats, "Weights")) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$x$", r"\$x\$"),
        ("_conv_w_0", "_conv_w_0"),
        ("卷.w", r"\u5377.w"),
        ("a\tb", r"a\tb"),
        ("abcdefghijkl", "ab…ghijkl"),
        ("é", "é"),
    ],
)
def test_plain_names(name: str, shown: str) -> None:
    assert plain(name, 9) == shown
    assert drawn_length(shown) <= 9


@pytest.mark.filterwarnings("error")
def test_extreme_tensors_are_drawn() -> None:
    rng = np.random.default_rng(0)
    stats = [
        statistics("zeros", "weight", np.zeros(9)),
        statistics("one value", "weight", np.full(1, 0.3)),
        statistics("threshold far beyond", "weight", rng.normal(size=99), 500.0),
        statistics("threshold far too small", "weight", rng.normal(size=99), 0.01),
        statistics("wide", "weight", np.append(rng.normal(size=99), 1e6)),
        statistics("narrow", "weight", rng.normal(size=99) * 1e-30),
    ]
    assert pages(histogram_pdf([(one, "") for one in stats], "t")) == 6
    assert [pages(box_pdf(some, "t")) for some in (stats, stats[:1])] == [1, 1]


@pytest.mark.parametrize(("layers", "expected"), [(40, 1), (41, 2)])
def test_box_plots_take_a_page_for_forty_tensors(layers: int, expected: int) -> None:
    stats = [statistics(f"conv2d_{i}.w_0", "weight", np.arange(-3.0, 4.0)) for i in range(layers)]
    assert pages(box_pdf(stats, "Weights")) == expected


def test_the_users_own_style_changes_nothing_and_is_given_back() -> None:
    result, stats = ranking([0.02, 0.01]), network(1)
    before = ranking_png(result), histogram_pdf([(stats[0], "")], "t"), box_pdf(stats, "t")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "pdf.fonttype": 42}):
        after = ranking_png(result), histogram_pdf([(stats[0], "")], "t"), box_pdf(stats, "t")
        assert matplotlib.rcParams["font.size"] == 30
    assert before == after
