from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import Answer, qpass

from qpass import demo


def analyze(folder: Path, *more: object) -> Answer:
    np.save(folder / "data.npy", demo.calibration_data()[0])
    given = ("--data", folder / "data.npy", "--eval", "qpass.demo:true_class_probability", "--plots", 0)
    return qpass("analyze", demo.float_prefix(), *given, "-o", folder / "out", *more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "lots"), "memory is 'lots', expected a size such as 512M"),
        (("--memory", "100"), "too little for one batch of 1 samples: it needs about"),
        (("--workers", "-1"), "is not a whole number"),
        (("--workers", "two"), "is not a whole number"),
        (("--workers", "2", "--scheduler", "tcp://host:8786"), "both given"),
        (("--scheduler", "host"), "no address of a Dask scheduler"),
    ],
)
def test_wrong_ones_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    answer = analyze(tmp_path, *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_memory_and_workers_change_nothing_in_the_result(tmp_path: Path) -> None:
    found = []
    for more in ((), ("--memory", "2M"), ("--workers", 2)):
        answer = analyze(tmp_path, *more)
        assert answer.code == 0, answer.err
        found.append((tmp_path / "out" / "analysis.json").read_bytes())
    assert found[0] == found[1] == found[2]
