"""Models that are no quantized model and its float twin are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpass import AnalysisQAT, demo
from qpass.errors import UsageError


@pytest.mark.parametrize("pair", ["swapped", "both quantized"])
def test_a_wrong_pair_is_refused_before_anything_is_written(tmp_path: Path, pair: str) -> None:
    quantized = demo.float_prefix() if pair == "swapped" else demo.qat_prefix()
    with pytest.raises(UsageError, match="are the two models swapped"):
        AnalysisQAT(
            quantized, demo.qat_prefix(), data_loader=demo.calibration_data(), save_dir=tmp_path / "results"
        ).analysis()
    assert not (tmp_path / "results").exists()
