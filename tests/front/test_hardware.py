"""Workers, scheduler and memory as users write them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import qpass
from qpass import demo
from qpass.errors import UsageError
from qpass.hardware import Hardware
from qpass.runtime.jobs import InProcess


@pytest.mark.parametrize(
    ("memory", "count"),
    [
        (1 << 30, 1 << 30),
        ("1", 1),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        ("2g", 2 << 30),
        ("1.5K", 1536),
        (" 3 kB ", 3072),
    ],
)
def test_sizes(memory: int | str, count: int) -> None:
    assert Hardware(memory=memory).memory_bytes == count


@pytest.mark.parametrize("memory", ["", "M", "0", "-1", -1, 0, "1T", "1,5G", "nan", "1e9", True, None, "0.1"])
def test_what_is_no_size(memory: object) -> None:
    with pytest.raises(UsageError, match=r"^memory is .*, expected a size such as 512M"):
        Hardware(memory=memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [-1, True, 1.5, "2", None])
def test_what_is_no_number_of_workers(workers: object) -> None:
    with pytest.raises(UsageError, match=r"^workers is .*, expected a number >= 0"):
        Hardware(workers=workers)  # type: ignore[arg-type]


def test_one_kind_of_workers() -> None:
    with pytest.raises(UsageError, match="both given"):
        Hardware(workers=2, scheduler="tcp://host:8786")
    with pytest.raises(UsageError, match="expected an address"):
        Hardware(scheduler=8786)  # type: ignore[arg-type]
    with Hardware().open() as workers:
        assert isinstance(workers, InProcess)


@pytest.mark.parametrize("given", [{"memory": "x"}, {"workers": -1}, {"workers": 2, "scheduler": "tcp://host:8786"}])
def test_classes_refuse_them_before_any_work(given: dict[str, object], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UsageError):
        qpass.AnalysisPTQ(nowhere, data_loader=[], save_dir=tmp_path / "out", **given)
    with pytest.raises(UsageError):
        qpass.AnalysisQAT(nowhere, nowhere, save_dir=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_classes_hand_them_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate(demo.calibration_data())
    opened = []
    monkeypatch.setattr("qpass.hardware.processes", lambda count: opened.append(count) or nullcontext(InProcess()))
    folder = demo.float_prefix().parent
    analysis = qpass.AnalysisPTQ(folder, "digits", "digits", None, [images], tmp_path, workers=3, memory=100)
    with pytest.raises(UsageError, match="too little for one batch"):
        analysis.metric_error_analyse()
    assert opened == [3]
