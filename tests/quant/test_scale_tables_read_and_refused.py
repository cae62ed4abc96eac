"""Scale tables as files: what was written reads back, and what is no table is refused in one message."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from qpass.errors import FormatError, QuantError
from qpass.quant.scales import ScaleTable


def table() -> ScaleTable:
    return ScaleTable(
        activations={"x": 1.5, "y@1": 0.1},
        weights={"w": np.array([0.1, 2.0], np.float32), "v": np.float32(3)},
        weight_axes={"w": 1, "v": None},
        samples=7,
        ranges={"x": (-1.5, 1.0)},
    )


def test_a_table_reads_back(tmp_path):
    table().save(tmp_path / "new" / "scales.json")
    found = ScaleTable.load(tmp_path / "new" / "scales.json")
    assert found.to_json() == table().to_json()
    assert (found.activations, found.weight_axes, found.ranges, found.samples) == (
        table().activations,
        table().weight_axes,
        table().ranges,
        7,
    )
    for name, threshold in table().weights.items():
        np.testing.assert_array_equal(found.weights[name], threshold)
        assert found.weights[name].dtype == np.float32


DAMAGE: dict[str, Callable[[dict], object]] = {
    "a version of tomorrow": lambda body: body.update(qpass_scales=2),
    "a part is missing": lambda body: body.pop("weights"),
    "a list for a mapping": lambda body: body.update(activations=[]),
    "half a range": lambda body: body["activations"]["x"].update(range=[1]),
    "a number beyond floats": lambda body: body["activations"]["x"].update(threshold=10**400),
    "a negative threshold": lambda body: body["activations"]["x"].update(threshold=-1),
    "no number": lambda body: body["weights"]["w"].update(threshold=["a", 1]),
    "NaN": lambda body: body["weights"]["w"].update(threshold=[float("nan"), 1]),
    "a word for an axis": lambda body: body["weights"]["w"].update(axis="rows"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tables(damage, tmp_path):
    body = json.loads(table().to_json())
    DAMAGE[damage](body)
    (tmp_path / "scales.json").write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(QuantError, match=r"scales\.json|activation 'x'|weight 'w'"):
        ScaleTable.load(tmp_path / "scales.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\0", b"[" * 100_000])
def test_files_that_are_no_table(content, tmp_path):
    (tmp_path / "scales.json").write_bytes(content)
    with pytest.raises(QuantError, match=r"scales\.json: not a scale table"):
        ScaleTable.load(tmp_path / "scales.json")


def test_a_missing_file_and_a_folder_in_the_way(tmp_path):
    with pytest.raises(QuantError, match="cannot read it"):
        ScaleTable.load(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot write the scale table"):
        table().save(tmp_path)


def test_a_weight_without_an_axis():
    with pytest.raises(QuantError, match="weight 'w': no channel axis is given"):
        ScaleTable({}, {"w": np.ones(2, np.float32)}, {})
