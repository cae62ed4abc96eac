from __future__ import annotations

import csv
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rankings import network, ranking, statistics

from qpass.analysis.result import AnalysisResult, LayerResult, Mode
from qpass.report.digits import Digits
from qpass.report.table import ranking_header, ranking_rows
from qpass.report.text import analysis_csv, analysis_txt, statistic_csv
from qpass.report.wording import metric_word

LINE = re.compile(r"(quant|without) layer name: (.*), eval metric: (\S+), sensitivity: (\S+)")


def parsed(text: str) -> list[tuple[str, str, float, float]]:
    lines = text.splitlines()
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), lines
    return [(m[1], m[2], float(m[3]), float(m[4])) for m in matches if m]


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("ptq", "quant layer name: conv2d_1.w_0, eval metric: 0.7123, sensitivity: 0.0312\n"),
        ("qat", "without layer name: conv2d_1.w_0, eval metric: 0.7747, sensitivity: 0.0312\n"),
    ],
)
def test_a_line_reads_as_the_documents_say(mode: Mode, line: str) -> None:
    assert analysis_txt(ranking([0.0312], ["conv2d_1.w_0"], mode, baseline=0.7435)) == line


@pytest.mark.parametrize("mode", ["ptq", "qat"])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_lines_give_the_rows_back_most_sensitive_first(mode: Mode, higher_is_better: bool) -> None:
    result = ranking([0.001, 0.03, -0.002, 0.0], mode=mode, higher_is_better=higher_is_better)
    lines = parsed(analysis_txt(result))
    assert [line[1] for line in lines] == ["conv2d_1.w_0", "conv2d_0.w_0", "conv2d_3.w_0", "conv2d_2.w_0"]
    assert {line[0] for line in lines} == {"quant" if mode == "ptq" else "without"}
    sign = (-1 if mode == "ptq" else 1) * (1 if higher_is_better else -1)
    for _, _, metric, sensitivity in lines:
        assert metric == pytest.approx(0.75 + sign * sensitivity, abs=1e-4)  # each rounded to 4 decimals


def test_close_layers_stay_apart_and_nothing_becomes_zero() -> None:
    lines = parsed(analysis_txt(ranking([0.03, 0.000012, 0.000011, 3e-10, 0.0])))
    assert [line[3] for line in lines] == [0.03, 0.000012, 0.000011, 3e-10, 0.0]
    assert analysis_txt(ranking([0.1 + 0.2 - 0.3, 0.02])).endswith("sensitivity: 0.0000\n")  # 5.6e-17 is no number


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([], 4), ([0.5, 0.25], 4), ([0.1, 0.1], 4), ([0.1, 0.10001], 5), ([0.1, 0.1000001], 7), ([0.1, 0.1 + 1e-10], 4)],
)
def test_no_more_digits_than_needed(values: list[float], decimals: int) -> None:
    assert Digits.of(values).decimals == decimals


@pytest.mark.parametrize(
    ("largest", "decimals", "texts"),
    [(0.5, 4, ["0.5000", "0.0000"]), (0.0123456, 4, ["0.0123", "0.0000"]), (0.00123456, 5, ["0.00123", "0.00000"])],
)
def test_pictures_round_to_three_digits_of_the_largest(largest: float, decimals: int, texts: list[str]) -> None:
    coarse = Digits.of([largest, 0.0000012, 0.0000013]).coarse(largest)
    assert coarse.decimals == decimals
    assert [coarse.text(v) for v in (largest, 0.0000012)] == texts


@pytest.mark.parametrize(
    ("name", "word"),
    [("qpass.demo.accuracy", "accuracy"), ("my.module:f", "f"), ("cosine", "cosine"), ("mAP@0.5", "mAP@0.5"), ("", "")],
)
def test_a_metric_goes_without_its_modules(name: str, word: str) -> None:
    assert metric_word(dataclasses.replace(ranking([0.1]), metric_name=name)) == word


def test_a_name_never_breaks_a_line() -> None:
    lines = parsed(analysis_txt(ranking([0.1, 0.2], ["a\nb, eval metric: 1", "ключ,卷积"])))
    assert [line[1] for line in lines] == ["ключ,卷积", "a\\nb, eval metric: 1"]


@given(st.lists(st.floats(-10, 10), max_size=30))
def test_digits_keep_apart_what_differs_in_the_eighth_decimal(values: list[float]) -> None:
    digits = Digits.of(values)
    for a in values:
        assert abs(float(digits.text(a)) - a) <= 0.5000001 * 10.0**-digits.decimals
        for b in values:
            if abs(a - b) >= 1.0000001e-8 * 2:
                assert digits.text(a) != digits.text(b)
    assert digits.decimals == 4 or len({f"{v:.4f}" for v in values}) < len(set(values))


def test_csv_gives_every_figure_back_exactly() -> None:
    rng = np.random.default_rng(3)
    names = ['comma, "quote"', "line\nbreak", "卷积.w_0", *(f"conv2d_{i}.w_0" for i in range(20))]
    result = ranking(list(rng.normal(0, 0.01, len(names))), names)
    read = list(csv.DictReader(io.StringIO(analysis_csv(result))))
    assert list(read[0]) == ["rank", "layer", "family", "metric", "sensitivity", "cosine", "seconds"]
    assert [int(row["rank"]) for row in read] == list(range(1, len(names) + 1))
    assert [
        LayerResult(
            row["layer"],
            row["family"],
            float(row["metric"]),
            float(row["sensitivity"]),
            {"cosine": float(row["cosine"]), "seconds": float(row["seconds"])},
        )
        for row in read
    ] == list(result.rows)


def test_csv_columns_do_not_depend_on_the_order_of_rows_and_gaps_stay_empty() -> None:
    rows = (
        LayerResult("a", "conv2d", 0.5, 0.2, {"z": 1.0}),
        LayerResult("b", "conv2d", 0.6, 0.1, {"y": 2.0, "z": 3.0}),
    )
    both = [AnalysisResult("ptq", "m", True, 0.7, None, order) for order in (rows, rows[::-1])]
    first, second = (analysis_csv(result).splitlines() for result in both)
    assert first[0] == second[0] == "rank,layer,family,metric,sensitivity,y,z"
    assert first[1] == "1,a,conv2d,0.5,0.2,,1.0"


def test_statistic_csv_gives_every_figure_back_exactly() -> None:
    stats = [*network(3), statistics("zero", "weight", np.zeros(4))]
    read = list(csv.reader(io.StringIO(statistic_csv(stats))))
    assert read[0][:8] == ["layer", "role", "name", "threshold", "minimum", "maximum", "mean", "std"]
    assert read[0][8:] == ["q0", "q1", "q25", "q50", "q75", "q99", "q100", "error_rms", "sqnr_db"]
    for one, row in zip(stats, read[1:], strict=True):
        assert row[:3] == [one.layer, one.role, one.name]
        figures = [
            one.threshold,
            one.minimum,
            one.maximum,
            one.mean,
            one.std,
            *one.quantiles,
            one.error_rms,
            one.sqnr_db,
        ]
        assert [float(cell) for cell in row[3:]] == figures
    assert math.isinf(float(read[-1][-1]))


def test_table_rows_agree_with_the_text() -> None:
    result = ranking([0.001, 0.03, -0.002, 0.0000123])
    rows = ranking_rows(result)
    assert ranking_header(result) == ("#", "layer", "family", "eval metric", "sensitivity")
    assert [(r[1], float(r[3]), float(r[4])) for r in rows] == [line[1:] for line in parsed(analysis_txt(result))]
    assert [r[0] for r in rows] == ["1", "2", "3", "4"]
    assert ranking_rows(result, 2) == rows[:2]
    assert ranking_rows(result, 0) == []
