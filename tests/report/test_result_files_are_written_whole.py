from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.rankings import network, ranking, statistics

from qpass.analysis.result import AnalysisResult
from qpass.analysis.statistics import TensorStatistics
from qpass.errors import FormatError, UsageError
from qpass.report import write
from qpass.report.text import analysis_txt
from qpass.report.write import write_analysis, write_histograms, write_statistics, write_text

HISTOGRAMS = [f"{kind}_{role}_hist_result.pdf" for role in ("weight", "act") for kind in ("best", "worst")]

WRITE_ALL = """
import sys
from pathlib import Path
from support.rankings import network, ranking
from qpass.report.write import write_analysis, write_histograms, write_statistics
result, stats = ranking([0.01, 0.03, 0.02], ["a$x$", "conv2d_1.w_0", "conv2d_0.w_0"]), network(2)
write_analysis(result, sys.argv[1])
write_histograms(result, stats, sys.argv[1])
write_statistics(stats, sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""


def pages(path: Path) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", path.read_bytes()))


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_ranking_makes_four_files(tmp_path: Path) -> None:
    result = ranking([0.01, 0.03, 0.02])
    paths = write_analysis(result, tmp_path / "new" / "folder")
    assert names(paths) == ["analysis.txt", "analysis.json", "analysis.csv", "sensitivity.png"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(names(paths))
    assert paths[0].read_text(encoding="utf-8") == analysis_txt(result)
    assert AnalysisResult.from_json(paths[1].read_text(encoding="utf-8")) == result
    assert paths[3].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(("plots", "expected"), [(1, 1), (10, 3)])
def test_histograms_have_a_page_for_each_chosen_layer(tmp_path: Path, plots: int, expected: int) -> None:
    paths = write_histograms(ranking([0.01, 0.03, 0.02]), network(3), tmp_path, plots)
    assert names(paths) == HISTOGRAMS
    assert [pages(path) for path in paths] == [expected] * 4


def test_best_is_least_sensitive_first_and_worst_most_sensitive_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, list[tuple[str, str]]]] = []

    def record(pages: list[tuple[TensorStatistics, str]], title: str) -> bytes:
        drawn.append((title, [(one.layer, line.split("sensitivity ")[1]) for one, line in pages]))
        return b""

    monkeypatch.setattr(write, "histogram_pdf", record)
    stats = [statistics(n, "weight", np.arange(-9.0, 9.0)) for n in ("middling", "calm", "unranked", "touchy")]
    paths = write_histograms(ranking([0.01, 0.02, 0.03], ["calm", "middling", "touchy"]), stats, tmp_path, 2)
    assert names(paths) == ["best_weight_hist_result.pdf", "worst_weight_hist_result.pdf"]
    calm, middling = ("calm", "0.0100 (rank 3 of 3)"), ("middling", "0.0200 (rank 2 of 3)")
    touchy = ("touchy", "0.0300 (rank 1 of 3)")
    assert drawn[0] == ("best layers, weight histograms", [calm, middling])
    assert drawn[1] == ("worst layers, weight histograms", [touchy, middling])


def test_no_plots_and_no_statistics_write_nothing(tmp_path: Path) -> None:
    assert write_histograms(ranking([0.01]), network(1), tmp_path / "none", 0) == []
    assert write_histograms(ranking([0.01]), [], tmp_path / "none", 5) == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="num_histogram_plots is -1"):
        write_histograms(ranking([0.01]), network(1), tmp_path, -1)


def test_statistics_make_a_table_and_a_picture_for_each_role(tmp_path: Path) -> None:
    assert names(write_statistics(network(2), tmp_path)) == ["statistic.csv", "weight_box.pdf", "act_box.pdf"]
    weights = [one for one in network(2) if one.role == "weight"]
    assert names(write_statistics(weights, tmp_path)) == ["statistic.csv", "weight_box.pdf"]
    assert len((tmp_path / "statistic.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_same_bytes_in_another_process_without_display_or_pyplot(tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
        support = str(Path(__file__).parents[1])
        environment |= {"PYTHONHASHSEED": seed, "MPLBACKEND": "TkAgg", "PYTHONPATH": support}
        subprocess.run([sys.executable, "-c", WRITE_ALL, str(folder)], env=environment, check=True)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())})
    assert len(digests[0]) == 4 + 4 + 3
    assert digests[0] == digests[1]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FormatError, match="cannot write the results") as caught:
            write_analysis(ranking([0.01]), place)
        assert str(place) in str(caught.value)
        assert "save_dir" in str(caught.value)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("good_calls", [0, 1, 3])
def test_a_full_disk_leaves_the_old_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, good_calls: int
) -> None:
    before = {path.name: path.read_bytes() for path in write_analysis(ranking([0.01]), tmp_path)}
    calls = itertools.count()
    original = getattr(os, step)

    def full_once(*arguments: object) -> object:
        if next(calls) == good_calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(os, step, full_once)
    with pytest.raises(FormatError, match="No space left on device"):
        write_analysis(ranking([0.02]), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "skip_tensor_list.txt", "conv2d_0.w_0\n")
    assert write_text(path, "卷积\n") == path
    assert path.read_bytes() == "卷积\n".encode()
    assert os.listdir(path.parent) == ["skip_tensor_list.txt"]
