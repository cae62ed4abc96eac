"""`qpass analyze --breakdown` and `--estimate`: the files, the words in the terminal, the skip list, and the doors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import qpass

import qpass as library
from qpass import demo
from qpass.analysis.result import AnalysisResult
from qpass.formats.files import load
from qpass.quant.layers import find_layers

IMAGES = demo.calibration_data()[0][:16]
COUNT = len(find_layers(load(demo.float_prefix())))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "calib.npy", IMAGES)
    return tmp_path / "calib.npy"


def result(folder: Path) -> AnalysisResult:
    return AnalysisResult.from_json((folder / "analysis.json").read_text())


def test_both_at_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = qpass(
        "analyze",
        demo.float_prefix(),
        "--data",
        data,
        "-o",
        out,
        "--plots",
        0,
        "--breakdown",
        "--estimate",
        3,
        "--top",
        5,
    )
    assert answer.code == 0, answer.err
    assert "mostly" in answer.out
    assert f"Estimated for all {COUNT} layers from 16 samples" in answer.out
    assert f"wrote {out / 'breakdown.txt'}\n" in answer.out
    assert f"wrote {out / 'estimate.txt'}\n" in answer.out
    found = result(out)
    assert len(found.rows) == 3
    assert len(found.order) == COUNT
    assert (out / "skip_tensor_list.txt").read_text().split() == list(found.order[:5])
    header = (out / "analysis.csv").read_text().splitlines()[0].split(",")
    assert {"local_sqnr_db", "output_sqnr_db", "weight_sensitivity", "activation_clipping_share"} <= set(header)


def test_neither(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = qpass("analyze", demo.float_prefix(), "--data", data, "-o", out, "--plots", 0)
    assert answer.code == 0, answer.err
    assert "mostly" not in answer.out
    assert not (out / "breakdown.txt").exists()
    assert not (out / "estimate.txt").exists()


def test_an_estimate_of_no_layers(data: Path) -> None:
    answer = qpass("analyze", demo.float_prefix(), "--data", data, "--estimate", 0)
    assert answer.code == 2
    assert "--estimate" in answer.err


def test_the_doors(tmp_path: Path) -> None:
    float_model, twin = demo.float_prefix(), demo.qat_prefix()
    doors = (
        library.AnalysisPTQ(float_model, data_loader=[IMAGES], save_dir=tmp_path / "ptq", breakdown=True, estimate=2),
        library.AnalysisQAT(
            twin, float_model, data_loader=[IMAGES], save_dir=tmp_path / "qat", breakdown=True, estimate=2
        ),
    )
    for door in doors:
        assert len(door.result.rows) == 2
        assert all("weight_sensitivity" in row.details for row in door.result.rows)
