"""The report of a search for a target metric: what it says, and what reads back from it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from qpass.analysis.result import Mode
from qpass.analysis.target import Search, TargetResult
from qpass.report.target import advice, summary, target_csv, target_txt
from qpass.report.write import write_target

LAYERS = ("conv,1", 'conv "2"', "conv\n3", "卷积4")
COST = dict(zip(LAYERS, (0.3, 0.0004, 0.2, 0.1), strict=True))


def found(target: float, mode: Mode = "ptq", higher: bool = True, of_float: float | None = None) -> TargetResult:
    def metric(skip: tuple[str, ...]) -> float:
        lost = sum(cost for name, cost in COST.items() if name not in skip)
        return 0.9 - lost if higher else lost

    ranking = sorted(LAYERS, key=lambda name: -COST[name])
    measure = None if of_float is None else lambda: of_float
    return Search(LAYERS, lambda: ranking, metric, target, mode, "mine.accuracy", higher, measure).run()


def test_the_whole_text() -> None:
    assert target_txt(found(0.75)) == (
        "the target is reached with 2 of 4 layers in float (metric 0.7996, target >= 0.7500)\n"
        "metric: mine.accuracy, higher is better; 5 models tried\n"
        "\n"
        "layers in float, and the metric when that layer alone is quantized again: every one misses\n"
        "  conv,1: 0.4996\n"
        "  conv\\n3: 0.5996\n"
        "\n"
        "models tried\n"
        "  1. nothing skipped: 0 in float, metric 0.2996 misses the target\n"
        "  2. everything skipped: 4 in float, metric 0.9000 reaches the target\n"
        "  3. bisection: 2 in float, metric 0.7996 reaches the target: conv,1, conv\\n3\n"
        "  4. bisection: 1 in float, metric 0.5996 misses the target: conv,1\n"
        "  5. re-quantize: 1 in float, metric 0.4996 misses the target: conv\\n3\n"
        "\n"
        "The list was chosen among 5 models by this metric: where the margin is small, confirm it on data that the "
        "search has not seen.\n"
    )


@pytest.mark.parametrize(
    ("target", "mode", "higher", "of_float", "words"),
    [
        (0.2, "ptq", True, None, "the target is reached with 0 of 4 layers in float (metric 0.2996, target >= 0.2000)"),
        (
            0.25,
            "qat",
            False,
            None,
            "the target is reached with 2 of 4 layers in float (metric 0.1004, target <= 0.2500)",
        ),
        (
            *(0.89999, "ptq", True, None),
            "only the float model reaches the target: each layer alone, quantized, misses it "
            "(metric 0.90000, target >= 0.89999)",
        ),
        (
            *(0.0001, "qat", False, -0.5),
            "only the model with every layer in float reaches the target: each layer alone, quantized, misses it "
            "(metric 0.0000, target <= 0.0001; the float model has -0.5000)",
        ),
        (0.95, "ptq", True, None, "even the float model misses the target (metric 0.9000, target >= 0.9500)"),
        (0.95, "qat", True, 0.94, "even the float model misses the target (metric 0.9400, target >= 0.9500)"),
        (
            *(0.95, "ptq", True, 0.95),
            "even the model with every layer in float misses the target "
            "(metric 0.9000, target >= 0.9500; the float model has 0.9500)",
        ),
    ],
)
def test_every_outcome_has_its_words(
    target: float, mode: Mode, higher: bool, of_float: float | None, words: str
) -> None:
    result = found(target, mode, higher, of_float)
    assert summary(result) == words
    assert (advice(result) == "") == (result.outcome == "reached")


def test_a_metric_just_below_the_target_does_not_look_equal_to_it() -> None:
    assert "(metric 0.900000, target >= 0.900001)" in summary(found(0.900001))


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    result = found(0.75)
    files = write_target(result, tmp_path / "new")
    assert [file.name for file in files] == ["target.txt", "target.json", "target.csv"]
    body = json.loads(files[1].read_text(encoding="utf-8"))
    assert body["skip_tensor_list"] == ["conv,1", "conv\n3"]
    assert body["outcome"] == "reached"
    rows = list(csv.DictReader(io.StringIO(files[2].read_text(encoding="utf-8"))))
    assert [(r["trial"], r["step"], int(r["layers_in_float"]), float(r["metric"]), r["reaches"]) for r in rows] == [
        (str(i), t.step, len(t.skip), t.metric, "true" if t.reaches else "false")
        for i, t in enumerate(result.trials, 1)
    ]
    assert [tuple(json.loads(row["skip_tensor_list"])) for row in rows] == [trial.skip for trial in result.trials]
    assert target_csv(result) == files[2].read_text(encoding="utf-8")
