"""The benchmark against PaddleSlim, without PaddleSlim: what it counts, what it says, and that our side runs."""

from __future__ import annotations

import importlib
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.build import Builder

from qpass import demo
from qpass.quant.layers import find_layers

TOOLS = Path(__file__).resolve().parents[2] / "tools"
BENCH = TOOLS / "bench" / "vs_paddleslim"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL", reason="the corpus's images need Pillow")
    for folder in (TOOLS, TOOLS / "bench", BENCH):
        monkeypatch.syspath_prepend(str(folder))


def tool(name: str) -> ModuleType:
    return importlib.import_module(name)


def branching():
    """conv 3 -> 4, then a convolution and a depthwise one side by side, their sum, and a product 4 -> 5."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    trunk = b.current
    left = b.conv2d(4, 1).current
    return b.at(trunk).depthwise_conv2d().add(left).pool2d("avg", whole=True).flatten().mul(5).model()


def test_what_lies_downstream_is_counted_for_each_layer():
    model = branching()
    names = [layer.name for layer in find_layers(model)]
    stem, left, right, head = 64 * 4 * 27, 64 * 4 * 4, 64 * 4 * 9, 4 * 5
    again = tool("limit").multiply_adds_again
    sample = np.zeros((1, 3, 8, 8), np.float32)
    alone = {"stem": [names[0]], "left": [names[1]], "right": [names[2]], "head": [names[3]]}
    assert {part: again(model, chosen, sample) for part, chosen in alone.items()} == {
        "stem": stem + left + right + head,
        "left": left + head,
        "right": right + head,
        "head": head,
    }
    assert again(model, names, sample) == stem + 2 * left + 2 * right + 4 * head


def side(*seconds: float, **metrics: float):
    run = {"megabytes": 500.0, "import_seconds": 1.0, "import_megabytes": 400.0, "metrics": metrics}
    return {"runs": [{**run, "seconds": value} for value in seconds]}


def test_a_line_has_medians_and_says_whether_the_goals_are_reached():
    compare, case = tool("compare"), tool("cases").Case("ppocr_cls", faster=25, megabytes=450)
    sides = {"paddleslim": side(60.0, 10.0, 50.0), "qpass": side(1.0, 3.0, 2.0)}
    assert compare.times_row(compare.Row("n", case, sides, 50), 100.0) == [
        *("n", "50.00", "500", "2.00", "500", "25.0x", "25x: yes, under 450 MB: no", "0.500", "4.0")
    ]
    assert "25x: no" in compare.times_row(compare.Row("n", case, {**sides, "qpass": side(2.1)}, 50), 100.0)[6]


def test_a_peer_that_was_stopped_or_crashed_has_its_line():
    compare, case = tool("compare"), tool("cases").Case("ppocr_cls", faster=25)
    stopped, crashed = {"runs": [], "timeout": 100.0}, {"runs": [], "error": "RuntimeError: it broke"}
    row = compare.times_row(compare.Row("n", case, {"paddleslim": stopped, "qpass": side(2.0)}, 1), 1.0)
    assert (row[1], row[5], row[6]) == ("> 100 s", "> 50.0x", "25x: yes")
    row = compare.times_row(compare.Row("n", case, {"paddleslim": stopped, "qpass": side(5.0)}, 1), 1.0)
    assert row[6] == "25x: stopped too early to tell"
    text = compare.report([compare.Row("n", case, {"paddleslim": crashed, "qpass": side(2.0, a=1.0)}, 1)], 1.0)
    assert "fails: RuntimeError: it broke" in text.splitlines()[2]
    assert "- n, paddleslim: RuntimeError: it broke" in text


def test_rankings_are_alike_unless_a_pair_is_swapped():
    agreement = tool("compare").agreement
    assert agreement({"a": 1.0, "b": 2.0, "c": 3.0}, {"c": 9.0, "a": 1.0, "b": 1.0}) == "same"
    assert agreement({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 2.0}) == (
        "1 of 3 pairs swapped, at most 1.0e+00 apart"
    )


def test_the_largest_difference_is_named():
    sides = {"paddleslim": side(9.0, a=0.5, b=0.25, gone=0.0), "qpass": side(1.0, a=0.5, b=0.5)}
    row = tool("compare").check_row("n", sides)
    assert (row[1], row[4], row[6]) == ("3 / 2, 2 shared", "2.5e-01 (b)", "same")


def test_every_case_has_its_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    cases = tool("cases")
    assert {case.work for case in cases.CASES.values()} == cases.WORKS.keys()
    monkeypatch.setattr(sys, "argv", ["vs_paddleslim", "--cases"])
    runpy.run_path(str(BENCH), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == list(cases.CASES)


def test_it_says_how_to_install_paddleslim(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "paddleslim", None)
    monkeypatch.setattr(sys, "argv", ["vs_paddleslim", "--only", "chain_qat"])
    with pytest.raises(SystemExit, match=r"(?s)missing: paddleslim.*pip install --no-deps paddleslim==2\.6\.0"):
        runpy.run_path(str(BENCH), run_name="__main__")


def test_our_side_measures_every_layer(tmp_path: Path):
    images, labels = (array[:20] for array in demo.test_data())
    (tmp_path / "float").mkdir()
    for suffix in (".pdmodel", ".pdiparams"):
        shutil.copyfile(f"{demo.float_prefix()}{suffix}", tmp_path / "float" / f"model{suffix}")
    np.savez(tmp_path / "data.npz", calibration=images, images=images, labels=labels)
    cases = tool("cases")
    arguments = cases.analysis_arguments(cases.Case("digits"), batches=2)
    job = {"folder": str(tmp_path), "mode": "ptq", "metric": "probability", "batch": 10, "arguments": arguments}
    result = tool("sides").run("qpass", job)
    model = tool("qpass").load(demo.float_prefix())
    assert result["metrics"].keys() == {layer.name for layer in find_layers(model)}
    assert result["megabytes"] >= result["import_megabytes"] > 1
    outputs = tool("corpus_data").paddle_predict(demo.float_prefix())(images)[0]
    # The batches are of other sizes here, so sums may be rounded otherwise.
    assert result["baseline"] == pytest.approx(outputs[np.arange(20), labels].mean(), abs=1e-5)
    assert all(0.5 < metric < 1 for metric in result["metrics"].values())


def test_a_made_net_answers_differently_for_different_images(tmp_path: Path):
    nets = tool("nets")
    nets.plain_chain(tmp_path / "float" / "model", side=8)
    images = nets.smooth_images(40, 8, seed=5)
    found = tool("cases").answers(tmp_path / "float" / "model", images, 20)
    assert found.shape == (40,)
    assert len(np.unique(found)) > 4
