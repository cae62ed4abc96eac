from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.rankings import SAMPLES, ranking, sampled

from qpass.analysis.confidence import SampleScores, assemble
from qpass.analysis.fine_metric import NOISE_SHARE
from qpass.analysis.result import AnalysisResult, Neighbours, RaceResult, Ranking
from qpass.cli.analyze import print_result
from qpass.report.certainty import certainty, noise_below, ranking_txt, verdict
from qpass.report.ranking_chart import ranking_png
from qpass.report.style import FAINT, FAMILY_COLOURS, INK
from qpass.report.table import ranking_header, ranking_rows
from qpass.report.text import analysis_csv, analysis_txt
from qpass.report.write import write_analysis

NAMES = [f"conv2d_{i}.w_0" for i in range(6)]


def scores_of(result: AnalysisResult) -> Ranking:
    assert result.scores is not None
    return result.scores


def fine_of(result: AnalysisResult) -> Ranking:
    assert result.fine is not None
    return result.fine


def raced() -> AnalysisResult:
    samples = {name: 100 if i < 2 else SAMPLES for i, name in enumerate(NAMES)}
    race = RaceResult("accuracy", 0.99, SAMPLES, {NAMES[0]: 0, NAMES[1]: 1}, samples, 1 / 6)
    return dataclasses.replace(sampled(), race=race, noise_floor=0.005, remarks=("Replayed one\nlayer.",))


def test_the_words_of_the_whole_file() -> None:
    """Every line of the text, without the columns that other tests read."""
    first, *lines = ranking_txt(raced()).split("\n")
    assert first == "Sensitivity of 6 layers. PTQ mode: each layer quantized alone."
    assert lines[:12] == [
        "Ranked by accuracy.",
        "Measured: accuracy (higher is better).",
        "Reached: float model 1.0000.",
        "2 of 6 layers tie with another in accuracy; ties are ordered by the lost probability of the float model's "
        "answer, then as in the program.",
        "The finer metric is the lost probability of the float model's answer: it moves with every sample.",
        "By accuracy, 3 of 5 pairs of neighbours in rank are noise (95 % intervals, each on its own: paired bootstrap, "
        "2,000 resamples of 200 samples).",
        "By lost probability of the float model's answer, 1 of 5 pairs of neighbours in rank are noise (95 % "
        "intervals, each on its own: paired bootstrap, 2,000 resamples of 200 samples).",
        "Noise floor 0.0050: so far the metric moves when only the last bits of the arithmetic change, which quantized "
        "layers amplify. 3 of 6 sensitivities lie within it and mean nothing.",
        "Race by accuracy: 2 of 6 layers have a settled place (99 % for all of them together) and were not run on all "
        "200 samples; 16.7 % of the evaluations were saved.",
        r"Replayed one\nlayer.",
        "",
        "The ranking by accuracy",
    ]


def columns(lines: list[str]) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in lines]


def test_the_tables_of_the_text_hold_the_figures() -> None:
    result = raced()
    text = ranking_txt(result)
    upper, lower = (columns(part.splitlines()) for part in text.split("\n\n")[1:])
    assert upper[1] == [
        "#",
        "layer",
        "sensitivity",
        "# by the finer metric",
        "samples",
        "95 % interval",
        "and the next",
    ]
    assert [line[1] for line in upper[2:]] == [row.layer for row in result.rows]
    assert [line[4] for line in upper[2:4]] == ["100, settled", "100, settled"]
    for line in upper[2:]:
        loss = scores_of(result).rows[line[1]]
        assert line[5] == f"{loss.low:.4f} to {loss.high:.4f}"
        assert line[3] == str(fine_of(result).rows[line[1]].rank)
    pairs = scores_of(result).neighbours
    assert [line[6].startswith("noise") for line in upper[2:-1]] == [pair.noise for pair in pairs]
    assert upper[4][6] == f"noise, about {pairs[2].samples_needed - SAMPLES} more samples would tell"  # type: ignore[operator]
    assert upper[5][6] == "noise, no difference so far"
    assert lower[1] == ["#", "layer", "loss", "95 % interval", "and the next"]
    assert [line[1] for line in lower[2:]] == list(fine_of(result).rows)


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (None, "noise, no difference so far"),
        (201, "noise, about 1 more sample would tell"),
        (4200, "noise, about 4,000 more samples would tell"),
        (2_000_000, "noise, a million samples would not tell"),
    ],
)
def test_how_many_more_samples(needed: int | None, words: str) -> None:
    pair = Neighbours("conv2d_4.w_0", "conv2d_3.w_0", 0.1, -0.1, 0.3, True, needed)
    assert verdict(scores_of(sampled()), pair) == words


def test_what_is_not_known_is_not_told() -> None:
    lines = certainty(sampled(scores=False))
    assert "No intervals for accuracy: there is no score for each sample, only the whole." in lines
    assert not any("Noise floor" in line or "Race" in line for line in lines)
    only_scores = certainty(sampled(fine=False))
    assert only_scores[0].endswith("ties are ordered as in the program.")
    assert not any("finer" in line for line in only_scores)


def test_decibels_of_noise() -> None:
    noise = {name: np.full(50, 10.0 ** -(i + 1)) for i, name in enumerate(NAMES)}
    result = assemble(ranking([0.0] * 6, NAMES), fine=SampleScores(NOISE_SHARE, "why", noise))
    lines = columns(ranking_txt(result).split("\n\n")[2].splitlines())
    assert lines[1][4] == "SQNR dB"
    expected = [10 * np.log10((1 - 10.0**-k) / 10.0**-k) for k in range(1, 7)]
    np.testing.assert_allclose([float(line[4]) for line in lines[2:]], expected, atol=0.006)


def test_the_csv_has_every_figure() -> None:
    result = raced()
    rows = list(csv.DictReader(io.StringIO(analysis_csv(result))))
    for read, row in zip(rows, result.rows, strict=True):
        score, fine = scores_of(result).rows[row.layer], fine_of(result).rows[row.layer]
        assert (float(read["sensitivity_low"]), float(read["sensitivity_high"])) == (score.low, score.high)
        assert (float(read["fine_loss"]), float(read["fine_low"]), float(read["fine_high"])) == (
            fine.loss,
            fine.low,
            fine.high,
        )
        assert int(read["fine_rank"]) == fine.rank
        assert int(read["noise_below"]) == (row.layer in noise_below(scores_of(result)))
        assert int(read["fine_noise_below"]) == (row.layer in noise_below(fine_of(result)))
        assert int(read["samples"]) == score.samples


def test_the_table_marks_ranks_that_are_noise() -> None:
    result = sampled()
    header, rows = ranking_header(result), ranking_rows(result)
    assert header == ("#", "layer", "family", "eval metric", "sensitivity", "95 % interval", "fine loss", "fine #")
    assert [row[0] for row in rows] == ["1", "2", "3~", "4~", "5~", "6"]
    assert [row[7] for row in rows] == ["1", "2", "3", "4", "5~", "6"]
    assert all(len(row) == len(header) for row in rows)


def test_a_result_without_statistics_reads_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ranking([0.01, 0.03, 0.02])
    assert certainty(plain) == []
    assert ranking_header(plain) == ("#", "layer", "family", "eval metric", "sensitivity")
    assert analysis_csv(plain).splitlines()[0] == "rank,layer,family,metric,sensitivity,cosine,seconds"
    assert "ranking.txt" not in [path.name for path in write_analysis(plain, tmp_path)]
    print_result(plain, [], [])
    assert [line for line in capsys.readouterr().out.splitlines() if line and line[0].isalpha()] == [
        "baseline 0.75, reference 0.7",
        "skip_tensor_list: nothing",
    ]


def test_lines_of_analysis_txt_stay() -> None:
    assert analysis_txt(raced()).splitlines()[0] == (
        "quant layer name: conv2d_0.w_0, eval metric: 0.7000, sensitivity: 0.3000"
    )


def test_the_terminal_tells_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(raced(), [], [])
    out = capsys.readouterr().out
    for line in certainty(raced()):
        assert line in out
    assert "~ after a rank" in out


def near(image: np.ndarray, colour: str) -> np.ndarray:
    want = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.asarray((np.abs(image - want) <= 6).all(axis=-1))


def test_whiskers_span_the_intervals() -> None:
    result = sampled(fine=False)
    image = np.asarray(Image.open(io.BytesIO(ranking_png(result))).convert("RGB"), np.int16)[145:]
    bar = near(image, FAMILY_COLOURS["conv2d"])
    rows = np.flatnonzero(bar.sum(axis=1) > 100)
    top, bottom = rows[0], rows[rows < rows[0] + 40][-1]
    pixels = np.flatnonzero(bar[top + 2])
    zero, scale = pixels[0], (pixels[-1] - pixels[0] + 1) / result.rows[0].sensitivity
    step = round(0.23 * 150)  # inches of a bar, dots per inch
    for i, row in enumerate(result.rows[:3]):
        loss = scores_of(result).rows[row.layer]
        middle = image[(top + bottom) // 2 - 1 + i * step : (top + bottom) // 2 + 2 + i * step]
        low, high = (round(zero + scale * end) for end in (loss.low, loss.high))
        colour = FAINT if i == 2 else INK
        drawn = np.flatnonzero(near(middle, colour).any(axis=0)[zero : high + 5]) + zero
        assert drawn[0] == pytest.approx(low, abs=3)
        assert drawn[-1] == pytest.approx(high, abs=3)


def test_the_finer_metric_has_a_panel_beside_the_bars() -> None:
    with_panel, without = sampled(scores=False), sampled(scores=False, fine=False)
    one, other = (
        np.asarray(Image.open(io.BytesIO(ranking_png(r))).convert("RGB"), np.int16) for r in (with_panel, without)
    )
    assert one.shape[1] == other.shape[1] == 1350
    dots = near(one[145:, 945:], FAMILY_COLOURS["conv2d"])
    columns_of_dots = np.flatnonzero(dots.any(axis=0))
    assert dots.any()
    assert columns_of_dots[-1] - columns_of_dots[0] > 150  # the first layer and the fifth lie far apart
    assert not near(other[145:, 1300:], FAMILY_COLOURS["conv2d"]).any()


WRITE = """
import sys
from support.rankings import sampled
from qpass.report.write import write_analysis
write_analysis(sampled(), sys.argv[1])
"""


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        support = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": support, "OMP_NUM_THREADS": seed}
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / seed)], env=environment, check=True)
        files = sorted((tmp_path / seed).iterdir())
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert sorted(digests[0]) == ["analysis.csv", "analysis.json", "analysis.txt", "ranking.txt", "sensitivity.png"]
    assert digests[0] == digests[1]
