"""Scale tables as files: what was written reads back, and what is no table is refused in one message."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.build import Builder

from qpass.errors import FormatError, QuantError
from qpass.ir.model import Model
from qpass.quant.observer_options import ObserverOptions
from qpass.quant.record import Statistics
from qpass.quant.scales import ScaleTable


def table() -> ScaleTable:
    return ScaleTable(
        activations={"x": 1.5, "y@1": 0.1, "dead, and quoted": 0.0},
        weights={"w": np.array([0.1, 2.0, 0], np.float32), "v": np.float32(3).reshape(())},
        weight_axes={"w": 1, "v": None},
        algo="mse",
        params_digest="123",
        samples=7,
        statistics={"x": Statistics(-1.5, 1.0, 40, 1 / 3, 0.1), "dead, and quoted": Statistics(0.0, 0.0, 9)},
        algos={"y@1": "manual", "v": "abs_max"},
        compat="paddle",
        options=ObserverOptions(quant_bits=4, hist_percent=0.999),
    )


def same(found: ScaleTable, expected: ScaleTable) -> None:
    assert found.to_json() == expected.to_json()
    for field in dataclasses.fields(ScaleTable):
        if field.name != "weights":
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    for name, scale in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], scale)
        assert found.weights[name].dtype == np.float32
        assert found.weights[name].shape == scale.shape


@pytest.mark.parametrize("name", ["scales.json", "scales.csv", "scales.CSV", "scales"])
def test_a_table_reads_back(tmp_path: Path, name: str) -> None:
    table().save(tmp_path / "new" / name)
    same(ScaleTable.load(tmp_path / "new" / name), table())


def test_a_table_of_version_1() -> None:
    body = {
        "qpass_scales": 1,
        "algo": "avg",
        "weight_algo": "abs_max",
        "program_digest": "a",
        "params_digest": "b",
        "data_digest": "c",
        "samples": 2,
        "activations": {"x": {"threshold": 1.5, "range": [-1, 1.5]}, "y": {"threshold": 2, "range": []}},
        "weights": {"w": {"axis": 0, "threshold": [1, 2]}, "v": {"axis": None, "threshold": 3}},
    }
    found = ScaleTable.from_json(json.dumps(body))
    assert dict(found.activations) == {"x": 1.5, "y": 2}
    assert dict(found.statistics) == {"x": Statistics(-1, 1.5)}
    assert (found.algo, found.weight_algo, found.params_digest, found.samples) == ("avg", "abs_max", "b", 2)
    np.testing.assert_array_equal(found.weights["w"], np.float32([1, 2]))
    same(ScaleTable.from_json(found.to_json()), found)


def test_a_table_by_hand() -> None:
    """Columns in any order, spreadsheets' byte-order mark and padding, no header but the columns."""
    text = "\ufeffname, scale,kind,channel,axis\nx,2.5,activation,,\nw,1,weight,0,0\nw,3,weight,1,0\nv,4,weight,,\n\n"
    found = ScaleTable.from_csv(text.lstrip("\ufeff"))
    assert dict(found.activations) == {"x": 2.5}
    np.testing.assert_array_equal(found.weights["w"], np.float32([1, 3]))
    assert (found.weights["v"].shape, found.weight_axes["v"], found.weight_axes["w"]) == ((), None, 0)
    assert found.algo == "avg"


def test_an_edited_line_counts(tmp_path: Path) -> None:
    table().save(tmp_path / "scales.csv")
    text = (tmp_path / "scales.csv").read_text(encoding="utf-8")
    (tmp_path / "scales.csv").write_text(text.replace("x,,,1.5,mse", "x,,,1.25,by hand"), encoding="utf-8-sig")
    found = ScaleTable.load(tmp_path / "scales.csv")
    assert (found.activations["x"], found.algo_of("x"), found.algo_of("y@1")) == (1.25, "by hand", "manual")
    same(found, table().updated({"x": 1.25}, "by hand"))


def test_updating_what_is_not_there() -> None:
    with pytest.raises(QuantError, match="no activation 'yy@1'; the nearest is 'y@1'"):
        table().updated({"yy@1": 1.0})
    with pytest.raises(QuantError, match=r"scale -1\.0 is not a finite number > 0"):
        table().updated({"x": -1})


DAMAGE: dict[str, Callable[[dict], object]] = {
    "a version of tomorrow": lambda body: body.update(qpass_scales=3),
    "a part is missing": lambda body: body.pop("weights"),
    "a list for a mapping": lambda body: body.update(activations=[]),
    "half a range": lambda body: body["activations"]["x"].pop("maximum"),
    "a number beyond floats": lambda body: body["activations"]["x"].update(scale=10**400),
    "a negative scale": lambda body: body["activations"]["x"].update(scale=-1),
    "zero for what is not zero": lambda body: body["activations"]["x"].update(scale=0),
    "zero for what is not known": lambda body: body["activations"]["y@1"].update(scale=0),
    "no number": lambda body: body["weights"]["w"].update(scale=["a", 1]),
    "NaN": lambda body: body["weights"]["w"].update(scale=[float("nan"), 1]),
    "a negative scale of a weight": lambda body: body["weights"]["w"].update(scale=[-1, 1]),
    "a word for an axis": lambda body: body["weights"]["w"].update(axis="rows"),
    "a number for an algorithm": lambda body: body.update(algo=3),
    "a number for an activation": lambda body: body["activations"].update(x=3),
    "a scale beyond float32": lambda body: body["activations"]["x"].update(scale=1e300),
    "a scale that float32 takes for zero": lambda body: body["activations"]["y@1"].update(scale=1e-60),
    "a weight's scale beyond float32": lambda body: body["weights"]["w"].update(scale=[1e300, 1, 1]),
    "options that are none": lambda body: body.update(options=[1]),
    "an option of tomorrow": lambda body: body["options"].update(magic=1),
    "bits out of range": lambda body: body["options"].update(quant_bits=17),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tables(damage: str, tmp_path: Path) -> None:
    body = json.loads(table().to_json())
    DAMAGE[damage](body)
    (tmp_path / "scales.json").write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(QuantError, match=r"scales\.json|activation 'x'|activation 'y@1'|weight 'w'") as caught:
        ScaleTable.load(tmp_path / "scales.json")
    assert not re.search(r"Error:|object has no attribute|indices must be|subscriptable", str(caught.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header line"),
        ("kind,name\n", "line 1 .* no column 'scale'"),
        ("kind,name,scale,colour\n", "line 1 .*unknown column 'colour'"),
        ("kind,name,scale\nactivation,x,much\n", "line 2 .*the scale 'much' is no number"),
        ("kind,name,scale\nactivation,x\n", "line 2 .*2 of 3 columns"),
        ("kind,name,scale,algo\nactivation,x,1,avg\nactivation,y,0.2", "line 3 .*3 of 4 columns"),
        ("kind,name,axis,channel,scale\nweight,w,0,0,1\nweight,w,1,1,1\n", "line 3 .*along axis 1"),
        ("kind,name,scale\nbias,x,1\n", "line 2 .*kind is 'bias'"),
        ("kind,name,scale\nactivation,x,1\nactivation,x,1\n", "line 3 .*twice"),
        ("kind,name,scale\nweight,w,1\nweight,w,1\n", "line 3 .*twice"),
        ("kind,name,scale,channel,axis\nweight,w,1,1,0\n", "line 2 .*channel 1"),
        ("kind,name,scale\nactivation,x,0\n", "activation 'x': scale 0"),
        ("kind,name,scale\nactivation,x,nan\n", "activation 'x': scale nan"),
        ("# qpass_scales,9\nkind,name,scale\nactivation,x,1\n", "version 9"),
        ("# samples,many\nkind,name,scale\nactivation,x,1\n", "line 1 "),
    ],
)
def test_damaged_csv(text: str, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        ScaleTable.from_csv(text, "scales.csv")


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, '"x"', "{}", "null", "\udcff"])
def test_what_is_no_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "scales.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(QuantError, match=r"scales\.json: not a scale table"):
        ScaleTable.load(tmp_path / "scales.json")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(QuantError, match=r"none\.json: cannot read it"):
        ScaleTable.load(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot write the scale table"):
        table().save(tmp_path)


def test_a_weight_without_an_axis() -> None:
    with pytest.raises(QuantError, match="weight 'w': no channel axis"):
        ScaleTable({}, {"w": np.ones(2, np.float32)}, {})


def small() -> tuple[Model, ScaleTable]:
    model = Builder().feed("x", [-1, 4]).matmul(2).model()
    weights = {"linear_0.w_0": np.float32([1, 2])}
    return model, ScaleTable({"x": 1.0}, weights, {"linear_0.w_0": 1}, params_digest=model.params_digest())


def test_a_table_fits_its_model() -> None:
    model, scales = small()
    scales.check_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": {"y": 1.0}}, r"activation 'y', the model has not(.|\n)*another model"),
        ({"weights": {"x": np.float32([1, 2])}, "weight_axes": {"x": 1}}, "weight 'x', the model has not"),
        ({"weights": {"linear_0.w_0": np.float32([1, 2, 3])}}, r"3 scales on axis 1, .* shape \[4, 2\]"),
        ({"weight_axes": {"linear_0.w_0": 0}}, "2 scales on axis 0"),
        ({"weight_axes": {"linear_0.w_0": 5}}, "2 scales on axis 5"),
        ({"weights": {"linear_0.w_0": np.float32([1, 0])}}, "a scale is 0 where the weight is not"),
        ({"params_digest": "0"}, r"made for other weights(.|\n)*emptying the table's params_digest"),
    ],
)
def test_a_table_of_another_model(change: dict[str, object], message: str) -> None:
    model, scales = small()
    with pytest.raises(QuantError, match=message):
        dataclasses.replace(scales, **change).check_model(model)  # type: ignore[arg-type]


def test_a_dead_channel_may_have_scale_0() -> None:
    model, scales = small()
    dead = model.params["linear_0.w_0"].copy()
    dead[:, 1] = 0
    model = model.replaced(params=model.params.replaced({"linear_0.w_0": dead}))
    weights = {"linear_0.w_0": np.float32([1, 0])}
    dataclasses.replace(scales, weights=weights, params_digest="").check_model(model)
