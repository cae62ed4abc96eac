"""`qpass compare`: engine, simulation and float model value by value."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.build import Builder
from support.commands import qpass as command
from support.onednn import batch, calibrated, conv, image, run, sqnr

import qpass
from qpass.analysis.engine_gap import ValueGap, engine_gap
from qpass.errors import EngineError, UsageError
from qpass.ir.model import Model
from qpass.passes import StripQuant
from qpass.runtime.onednn_plan import onednn_plan


def chain() -> Model:
    return calibrated(conv(conv(image().relu()).relu(), seed=1).relu().depthwise_conv2d().model())


def by_name(rows: tuple[ValueGap, ...]) -> dict[str, ValueGap]:
    return {row.value: row for row in rows}


def test_figures_are_those_of_the_three_ways() -> None:
    model = chain()
    x, plain, simulated = batch(model), StripQuant()(model), qpass.simulate(model)
    gap = engine_gap(model, [x])
    assert (gap.engine, gap.int8_ops, gap.ops, gap.notes) == ("int8", 3, 4, ())
    assert [row.value for row in gap.values] == ["relu_1.tmp_0", "relu_2.tmp_0", "depthwise_conv2d_0.tmp_0"]
    assert [row.unsigned for row in gap.values] == [True, True, None]
    assert [row.layer for row in gap.values] == ["conv2d_0.w_0", "conv2d_1.w_0", "depthwise_conv2d_0.w_0"]
    for row in gap.values:
        assert row.int8
        assert row.op == "fused_conv2d"
        assert row.saturating == 0
        engine = run(model, x, "int8", row.value)
        assert row.engine_simulated is not None
        assert row.engine_simulated > 90
        assert row.engine_float == pytest.approx(sqnr(engine, run(plain, x, "executor", row.value)), abs=0.01)
        assert row.simulated_float == pytest.approx(
            sqnr(run(simulated, x, "executor", row.value), run(plain, x, "executor", row.value)), abs=0.01
        )
    (output,) = gap.outputs
    assert output.engine_float == pytest.approx(sqnr(run(model, x, "int8"), run(plain, x)), abs=0.01)


def test_a_lie_about_the_simulation_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation that rounds one weight coarsely is off from there on, and not before."""
    from qpass.analysis import engine_gap as module

    def wrong(model: Model, plan: object, *, vnni: bool) -> Model:
        made = qpass.simulate(model)
        with qpass.edit(made) as e:
            e.set_param("conv2d_1.w_0", np.round(np.asarray(made.params["conv2d_1.w_0"]) * 4) / 4)
        return e.model

    monkeypatch.setattr(module, "apply_plan", wrong)
    model = chain()
    before, at, behind = (row.engine_simulated or 0 for row in engine_gap(model, [batch(model)]).values)
    assert before > 90 > 40 > max(at, behind)


def shortcut() -> Model:
    """A sum of two convolutions: one of them takes it in, and reads what the other makes."""
    b = conv(image().relu()).relu()
    h = b.current
    side = conv(b, seed=1).current
    conv(conv(b.at(h), seed=2).relu(), seed=3).add(side).relu()
    return calibrated(conv(b, seed=4).model())


def test_values_whose_fetch_would_change_the_engine_s_work_are_left_alone() -> None:
    model = shortcut()
    gap = engine_gap(model, [batch(model)], every=True)
    rows = by_name(gap.values)
    (lost,) = (name for name, row in rows.items() if row.engine_simulated is None)
    assert gap.notes == (f"to fetch {lost} would change what the engine quantizes: not fetched",)
    assert rows[lost].simulated_float is not None
    assert all(row.engine_simulated > 90 for name, row in rows.items() if name != lost and row.engine_simulated)
    # The sum has an operand of which no scale is known, so the convolution that takes it in stays float.
    assert [row.op for row in gap.values if not row.int8] == ["relu", "fused_conv2d"]
    plan, disturbed = (onednn_plan(model, refs) for refs in (None, [model.graph.last(lost)]))
    assert not plan.same_as(disturbed)


def test_float_engines_compare_the_file_itself() -> None:
    model = chain()
    gap = engine_gap(model, [batch(model)], engine="inference")
    assert [row.value for row in gap.values] == ["conv2d_0.tmp_0", "conv2d_1.tmp_0", "depthwise_conv2d_0.tmp_0"]
    assert all(row.engine_simulated is not None and row.engine_simulated > 60 for row in gap.values)
    assert all(row.engine_float is not None and row.engine_float < 60 for row in gap.values)
    assert engine_gap(model, [batch(model)], engine="executor").outputs[0].engine_simulated == 300.0


def test_a_float_model_of_other_names_is_compared_at_its_outputs() -> None:
    model = chain()
    with qpass.edit(StripQuant()(model)) as e:
        e.rename("conv2d_1.w_0", "second.weight")
    gap = engine_gap(model, [batch(model)], float_model=e.model)
    assert gap.notes == ("the layers of the float model have other names: inner values are not compared with it",)
    assert all(row.engine_float is row.simulated_float is None for row in gap.values)
    assert gap.outputs[0].engine_float == engine_gap(model, [batch(model)]).outputs[0].engine_float


def test_refusals() -> None:
    model = chain()
    with pytest.raises(UsageError, match="not quantized"):
        engine_gap(StripQuant()(model), [batch(model)])
    lone = calibrated(Builder().feed("x", [-1, 8]).matmul(4).model())
    with pytest.raises(EngineError, match="runs no op of this model in int8"):
        engine_gap(lone, [batch(lone)])


def test_the_command(tmp_path: Path) -> None:
    model = calibrated(image().relu().conv2d(8, 1).relu().conv2d(8, 1).model())
    qpass.save(model, tmp_path / "int8")
    np.savez(tmp_path / "x.npz", **batch(model))
    arguments = ("compare", str(tmp_path / "int8"), "--data", str(tmp_path / "x.npz"))
    body = json.loads(command(*arguments, "--json").out)
    assert body == json.loads(json.dumps(dataclasses.asdict(engine_gap(model, [batch(model)]))))
    lines = command(*arguments, "--sort", "worst").out.splitlines()
    assert lines[0] == "engine int8: 2 of 3 ops compute in int8; SQNR in dB"
    assert lines[1].split("  ")[0] == "value"
    worst = {row["value"]: min(row["engine_simulated"], row["engine_float"]) for row in body["values"]}
    assert [line.split()[0] for line in lines[2:5]] == [*sorted(worst, key=worst.__getitem__), "conv2d_1.tmp_0"]
    if not body["vnni"]:
        assert lines[5].startswith("this processor has no VNNI: in 2 layers")
    failed = command("compare", str(tmp_path / "int8"), "--data", "absent.npz")
    assert failed.code != 0
    assert "absent.npz" in failed.err
