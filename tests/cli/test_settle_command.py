"""`qpass analyze --settle`: a race from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import qpass

from qpass import demo
from qpass.analysis.result import AnalysisResult

DIGITS = demo.float_prefix()

EVALUATION = """
import numpy as np
from qpass import demo

IMAGES, LABELS = (array[:400] for array in demo.test_data())

def right(predict):
    return np.concatenate([predict(IMAGES[i : i + 50])[0] for i in range(0, 400, 50)]).argmax(axis=1) == LABELS

def accuracy(predict):
    return float(right(predict).mean())
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metric.py").write_text(EVALUATION)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_metric", raising=False)
    np.savez(tmp_path / "calib.npz", image=demo.calibration_data()[0])
    return tmp_path / "calib.npz"


def test_a_race_says_what_it_settled_and_saved(data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--eval", "own_metric:right", "--weight-bits", 4, "--plots", 0, "-o", tmp_path / "out")
    answer = qpass("analyze", DIGITS, *common, "--settle")
    assert answer.code == 0, answer.err
    result = AnalysisResult.from_json((tmp_path / "out" / "analysis.json").read_text())
    assert result.race is not None
    assert (result.race.confidence, result.race.total) == (0.95, 400)
    assert result.settings["settle"] == "0.95"
    ranking = (tmp_path / "out" / "ranking.txt").read_text()
    settled = len(result.race.places)
    assert f"{settled} of 8 layers have a settled place (95 % for all of them together)" in ranking
    assert ranking.count(", settled") == settled > 0
    again = qpass("analyze", DIGITS, *common, "--settle", "0.95", "--resume")
    assert again.code == 0, again.stderr
    assert AnalysisResult.from_json((tmp_path / "out" / "analysis.json").read_text()) == result


def test_a_function_that_gives_one_number_is_told_what_to_do(data: Path) -> None:
    answer = qpass("analyze", DIGITS, "--data", data, "--eval", "own_metric:accuracy", "--plots", 0, "--settle")
    assert answer.code == 2
    assert "one number for all" in answer.err
    assert "leave --settle out" in answer.err


def test_a_confidence_out_of_range_is_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    answer = qpass("analyze", DIGITS, "--data", data, "--settle", "95", "-o", tmp_path / "out")
    assert answer.code == 2
    assert "expected a number between 0 and 1" in answer.err
    assert not (tmp_path / "out").exists()
