"""The texts about where the loss comes from and about estimates, whole; and who gets them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qpass.analysis.rank_agreement import Agreement, Estimate
from qpass.analysis.result import AnalysisResult, LayerResult
from qpass.report.breakdown import breakdown_txt, mostly
from qpass.report.certainty import certainty
from qpass.report.estimate import estimate_txt
from qpass.report.table import ranking_header, ranking_rows
from qpass.report.write import write_analysis

APART = {
    "weight_sensitivity": 0.01,
    "weight_metric": 0.89,
    "activation_sensitivity": 0.05,
    "activation_metric": 0.85,
    "activation_sqnr_db": 20.0,
    "activation_clipping_share": 0.75,
    "activation_rounding_share": 0.25,
    "weight_sqnr_db": 40.0,
    "weight_clipping_share": 0.0,
    "weight_rounding_share": 1.0,
    "local_sqnr_db": 18.5,
    "output_sqnr_db": 25.25,
}
ROWS = (
    LayerResult("conv_b", "conv2d", 0.84, 0.06, APART),
    LayerResult("conv_a", "conv2d", 0.9, 0.0, {"weight_sensitivity": 0.0, "activation_sensitivity": 0.0}),
)
RESULT = AnalysisResult("ptq", "accuracy", True, 0.9, 0.8, ROWS)
ESTIMATE = Estimate(
    "noise",
    "By gradients.",
    64,
    {"conv_b": 2.0, "fc": 1.0, "conv_a": 0.5, "fc_2": 0.25},
    (Agreement("ranking by the metric", 2, 1.0, 0.5), Agreement("finer ranking", 2, None, None)),
)
NARROWED = dataclasses.replace(RESULT, estimate=ESTIMATE)


def test_breakdown() -> None:
    head, second, *rest = breakdown_txt(RESULT).splitlines()
    assert head == "Where the loss comes from. PTQ mode: each layer quantized alone."
    assert second.startswith("Sensitivity in accuracy: of the whole layer, of its weight alone and of its input")
    assert rest[:4] == [
        "",
        "#  layer   both    weight  activation  mostly",
        "1  conv_b  0.0600  0.0100  0.0500      activation",
        "2  conv_a  0.0000  0.0000  0.0000      equal",
    ]
    assert rest[-3:] == [
        "#  layer   op SQNR dB  model SQNR dB  activation SQNR dB  clipped  weight SQNR dB  clipped",
        "1  conv_b  18.50       25.25          20.00               75 %     40.00           0 %",
        "2  conv_a",
    ]


def test_the_finer_metric_says_what_costs_more_where_the_metric_ties() -> None:
    fine = {"weight_fine_loss": 0.3, "activation_fine_loss": 0.2}
    tied = {"weight_sensitivity": 0.0, "activation_sensitivity": 0.0}
    assert mostly(LayerResult("a", "conv2d", 0.0, 0.0, {**APART, **fine})) == "activation"
    assert mostly(LayerResult("a", "conv2d", 0.0, 0.0, {**tied, **fine})) == "weight"
    assert mostly(LayerResult("a", "conv2d", 0.0, 0.0, {})) == ""


def test_the_table_of_the_terminal() -> None:
    assert ranking_header(RESULT)[-1] == "mostly"
    assert [cells[-1] for cells in ranking_rows(RESULT)] == ["activation", "equal"]


def test_estimate() -> None:
    assert estimate_txt(NARROWED, ESTIMATE).splitlines() == [
        "Estimated for all 4 layers from 64 samples: the noise. By gradients.",
        "Evaluated: the 2 layers with the largest estimate. The others have the estimate only, and are ranked behind "
        "by it.",
        "Rank agreement with the ranking by the metric over these 2 layers: Spearman 1.00, Kendall 0.50.",
        "No rank agreement with the finer ranking: there is nothing to tell the 2 layers apart by.",
        "",
        "#  layer   estimate  # measured  sensitivity in accuracy",
        "1  conv_b  2         1           0.0600",
        "2  fc      1",
        "3  conv_a  0.5       2           0.0000",
        "4  fc_2    0.25",
    ]
    assert any("Spearman 1.00" in line for line in certainty(NARROWED))


def test_layers_that_were_not_evaluated() -> None:
    assert NARROWED.order == ("conv_b", "conv_a", "fc", "fc_2")
    assert NARROWED.skip_tensor_list(top=3) == ["conv_b", "conv_a", "fc"]
    assert NARROWED.skip_tensor_list(threshold=-1.0) == ["conv_b", "conv_a"]
    assert AnalysisResult.from_json(NARROWED.to_json()) == NARROWED


def test_files(tmp_path: Path) -> None:
    plain = dataclasses.replace(RESULT, rows=(LayerResult("conv_a", "conv2d", 0.9, 0.0),))
    for result, expected in (
        (plain, set()),
        (RESULT, {"breakdown.txt"}),
        (NARROWED, {"breakdown.txt", "estimate.txt"}),
    ):
        found = {path.name for path in write_analysis(result, tmp_path)}
        assert found & {"breakdown.txt", "estimate.txt"} == expected
