"""What `assemble` makes of figures of samples, and that JSON keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.rankings import ranking, sampled

from qpass.analysis.confidence import SampleScores, assemble
from qpass.analysis.result import AnalysisResult, Mode, RaceResult, sign_of
from qpass.errors import EvalError, UsageError

NAMES = [f"conv2d_{i}.w_0" for i in range(4)]


def losses(*means: float) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 1e-3, 64)
    return {name: mean + noise for name, mean in zip(NAMES, means, strict=True)}


def order(result: AnalysisResult) -> list[int]:
    return [NAMES.index(row.layer) for row in result.rows]


@pytest.mark.parametrize("mode", ["ptq", "qat"])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_intervals_are_around_the_sensitivity(mode: Mode, higher_is_better: bool) -> None:
    rng = np.random.default_rng(1)
    baseline = rng.normal(0, 1, 300)
    sign = sign_of(mode, higher_is_better)
    figures = {name: baseline + sign * rng.normal(i, 1, 300) for i, name in enumerate(NAMES)}
    plain = ranking([0.0] * 4, NAMES, mode=mode, higher_is_better=higher_is_better)
    rows = [
        dataclasses.replace(
            row, metric=figures[row.layer].mean(), sensitivity=sign * (figures[row.layer] - baseline).mean()
        )
        for row in plain.rows
    ]
    result = assemble(
        dataclasses.replace(plain, rows=tuple(rows)), scores=SampleScores("m", "w", figures, baseline, higher_is_better)
    )
    assert order(result) == [3, 2, 1, 0]
    assert result.scores is not None
    for rank, row in enumerate(result.rows, 1):
        loss = result.scores.rows[row.layer]
        assert loss.rank == rank
        assert loss.loss == pytest.approx(row.sensitivity, rel=1e-12)
        assert loss.low < row.sensitivity < loss.high
        assert loss.high - loss.low == pytest.approx(2 * 1.96 / np.sqrt(300), rel=0.25)


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_fine_losses_point_the_same_way_in_both_modes(mode: Mode) -> None:
    result = sampled(mode)
    assert result.fine is not None
    assert next(row.layer for row in result.rows) == next(iter(result.fine.rows)) == "conv2d_0.w_0"
    assert result.fine.rows["conv2d_0.w_0"].loss == pytest.approx(0.1, abs=0.02)


def test_ties_go_by_the_finer_metric_then_as_in_the_program() -> None:
    plain = ranking([0.1, 0.2, 0.1, 0.1], NAMES)
    assert order(assemble(plain)) == [1, 0, 2, 3]
    assert order(assemble(plain, fine=SampleScores("loss", "why", losses(1, 0, 3, 2)))) == [1, 2, 3, 0]
    assert order(assemble(plain, fine=SampleScores("loss", "why", losses(1, 0, 1, 1)))) == [1, 0, 2, 3]


def raced(metric: str, places: dict[str, int]) -> RaceResult:
    return RaceResult(metric, 0.95, 64, places, {name: 32 if name in places else 64 for name in NAMES}, 0.25)


def test_settled_layers_keep_their_places() -> None:
    plain = ranking([0.4, 0.3, 0.2, 0.1], NAMES)
    result = assemble(plain, race=raced("accuracy", {NAMES[3]: 0, NAMES[0]: 2}))
    assert order(result) == [3, 1, 0, 2]


def test_a_race_on_the_finer_metric_ranks_by_it() -> None:
    plain = ranking([0.4, 0.3, 0.2, 0.1], NAMES)
    fine = SampleScores("loss", "why", losses(1, 2, 3, 4))
    fine.layers[NAMES[3]][:] -= 1.5
    result = assemble(plain, fine=fine, race=raced("loss", {NAMES[3]: 0}))
    assert order(result) == [3, 2, 1, 0]
    assert result.fine is not None
    assert [row.rank for row in (result.fine.rows[r.layer] for r in result.rows)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dataclasses.replace(s, layers={k: v for k, v in s.layers.items() if k != NAMES[1]}), NAMES[1]),
        (lambda s: dataclasses.replace(s, layers={**s.layers, "other": np.zeros(3)}), "other"),
        (lambda s: dataclasses.replace(s, baseline=np.zeros(10)), "64 samples, the baseline has 10"),
        (lambda s: dataclasses.replace(s, baseline=np.full(64, np.nan)), "NaN"),
        (lambda s: dataclasses.replace(s, layers={**s.layers, NAMES[2]: np.zeros((4, 4))}), r"\[4, 4\]"),
    ],
)
def test_figures_that_do_not_fit_are_refused(change: Callable[[SampleScores], SampleScores], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        assemble(ranking([0.1] * 4, NAMES), fine=change(SampleScores("loss", "why", losses(1, 2, 3, 4))))


def whole() -> AnalysisResult:
    return dataclasses.replace(
        sampled(),
        race=RaceResult("accuracy", 0.95, 200, {"conv2d_0.w_0": 0}, {f"conv2d_{i}.w_0": 200 for i in range(6)}, 0.5),
        noise_floor=0.01,
        remarks=("One.", "Two."),
    )


def test_json_keeps_everything() -> None:
    result = whole()
    again = AnalysisResult.from_json(result.to_json())
    assert again == result
    assert again.to_json() == result.to_json()
    assert list(again.fine.rows) == list(result.fine.rows)  # type: ignore[union-attr]  # not None, as they are equal


def test_files_of_version_1_are_read() -> None:
    body = json.loads(ranking([0.1, 0.2]).to_json())
    old = {k: v for k, v in body.items() if k not in {"fine", "scores", "race", "noise_floor", "remarks"}}
    assert AnalysisResult.from_json(json.dumps({**old, "qpass_analysis": 1})) == ranking([0.1, 0.2])


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    body = json.loads(whole().to_json())
    change(body)
    return json.dumps(body)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(qpass_analysis=3),
        lambda b: b.update(fine=7),
        lambda b: b.update(fine={}),
        lambda b: b["fine"]["rows"].pop("conv2d_0.w_0"),
        lambda b: b["fine"]["rows"].update(more=b["fine"]["rows"]["conv2d_0.w_0"]),
        lambda b: b["fine"]["rows"]["conv2d_0.w_0"].pop("low"),
        lambda b: b["fine"]["rows"]["conv2d_0.w_0"].update(low="x"),
        lambda b: b["fine"]["neighbours"][0].pop("noise"),
        lambda b: b["fine"]["neighbours"][0].update(lower="nobody"),
        lambda b: b["fine"]["neighbours"][0].update(samples_needed="x"),
        lambda b: b["scores"].update(confidence=None),
        lambda b: b["race"].pop("saved"),
        lambda b: b["race"]["samples"].pop("conv2d_0.w_0"),
        lambda b: b.update(noise_floor="x"),
        lambda b: b.update(remarks=7),
        lambda b: b.update(remarks=[7]),
    ],
)
def test_broken_files_are_told_of(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(UsageError):
        AnalysisResult.from_json(broken(change))
