from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.analysis.result import AnalysisResult
from qpass.errors import CheckpointError, EvalError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.scales import ScaleTable
from qpass.report.certainty import ranking_txt
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine

CALIBRATION = demo.calibration_data()[0]
NOISE = np.random.default_rng(0).normal(0, 0.15 * CALIBRATION.std(), (6, *CALIBRATION.shape))
IMAGES = np.concatenate([CALIBRATION, *(CALIBRATION + NOISE).astype(np.float32)])
BATCHES = [IMAGES[i : i + 40] for i in range(0, len(IMAGES), 40)]
RANDOM = np.random.default_rng(1).permutation(len(IMAGES))


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, [CALIBRATION])


def answers(predict: demo.Predict) -> np.ndarray:
    return np.concatenate([predict(batch)[0] for batch in BATCHES])


@pytest.fixture(scope="module")
def labels(digits: Model) -> np.ndarray:
    session = get_engine("inference").session(digits)
    return answers(lambda batch: session.run({"image": batch})).argmax(axis=1)


@pytest.fixture(scope="module")
def right(labels: np.ndarray) -> Callable[[demo.Predict], np.ndarray]:
    def right(predict: demo.Predict) -> np.ndarray:
        return answers(predict).argmax(axis=1) == labels

    return right


def sweep(digits: Model, table: ScaleTable, **options: object) -> AnalysisResult:
    arguments: dict[str, object] = {"weight_bits": 4, "activation_bits": 4, "data": BATCHES, **options}
    if "evaluate" in arguments:
        del arguments["data"]
    return analyze_ptq(digits, table, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def full(digits: Model, table: ScaleTable) -> AnalysisResult:
    return sweep(digits, table)


@pytest.fixture(scope="module")
def settled(digits: Model, table: ScaleTable) -> AnalysisResult:
    return sweep(digits, table, settle=0.9)


def agree(full: AnalysisResult, settled: AnalysisResult) -> None:
    """Settled places are those of the full ranking, and what ran on everything has its figures."""
    assert full.fine is not None
    assert settled.fine is not None
    assert settled.race is not None
    assert list(full.fine.rows) == list(settled.fine.rows) == [row.layer for row in settled.rows]
    metrics = {row.layer: row.metric for row in full.rows}
    assert settled.race.places
    for row in settled.rows:
        found, expected = settled.fine.rows[row.layer], full.fine.rows[row.layer]
        assert found.samples == settled.race.samples[row.layer]
        if row.layer in settled.race.places:
            assert found.samples < len(IMAGES)
            assert settled.rows[settled.race.places[row.layer]] is row
        else:
            assert found.samples == len(IMAGES)
            assert row.metric == pytest.approx(metrics[row.layer], rel=1e-6)
            assert found.loss == pytest.approx(expected.loss, rel=1e-4)


def test_settled_places_are_those_of_the_full_sweep(full: AnalysisResult, settled: AnalysisResult) -> None:
    agree(full, settled)
    assert settled.race is not None
    ran = sum(settled.race.samples.values())
    assert settled.race.saved == pytest.approx(1 - ran / (len(IMAGES) * len(settled.rows)))
    assert 0.1 < settled.race.saved < 0.9
    text = ranking_txt(settled)
    assert f"{len(settled.race.places)} of 8 layers have a settled place" in text
    assert "Ranked by lost probability" in text
    assert "hard samples are run first" in text
    assert AnalysisResult.from_json(settled.to_json()) == settled


def test_estimates_of_stopped_layers_are_near_what_all_samples_give(
    full: AnalysisResult, settled: AnalysisResult
) -> None:
    assert full.fine is not None
    assert settled.fine is not None
    for row in settled.rows:
        expected = next(r for r in full.rows if r.layer == row.layer)
        assert row.sensitivity == pytest.approx(expected.sensitivity, rel=0.25, abs=1e-4)
        loss = full.fine.rows[row.layer]
        assert loss.low <= settled.fine.rows[row.layer].loss <= loss.high


@pytest.mark.parametrize("engine", ["inference", "executor"])
def test_functions_that_give_scores_of_samples(
    digits: Model, table: ScaleTable, right: Callable[[demo.Predict], np.ndarray], engine: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = sweep(digits, table, evaluate=right, engine=engine)
        raced = sweep(digits, table, evaluate=right, engine=engine, settle=0.9)
    agree(whole, raced)
    assert raced.scores is not None
    assert raced.race is not None
    assert {layer: row.samples for layer, row in raced.scores.rows.items()} == raced.race.samples
    for row in raced.rows:
        assert row.sensitivity == pytest.approx(raced.scores.rows[row.layer].loss, abs=1e-12)
        assert row.metric == pytest.approx(raced.baseline - row.sensitivity, abs=1e-12)
        expected = next(r for r in whole.rows if r.layer == row.layer)
        assert row.sensitivity == pytest.approx(expected.sensitivity, abs=0.05)


def test_qat_mode(digits: Model) -> None:
    quantized = load(demo.qat_prefix())
    batches = [(batch - 0.1 * batch.std()) * np.float32(0.8) for batch in BATCHES]
    whole = analyze_qat(quantized, digits, data=batches)
    raced = analyze_qat(quantized, digits, data=batches, settle=0.9)
    agree(whole, raced)
    assert raced.baseline == whole.baseline
    assert raced.noise_floor == whole.noise_floor
    assert any("noise floor of the lost probability" in remark for remark in whole.remarks)


def test_the_same_bytes_whatever_the_memory(digits: Model, table: ScaleTable, settled: AnalysisResult) -> None:
    """Little memory makes more programs, and spools on the disk."""
    little = sweep(digits, table, settle=0.9, memory_bytes=24 << 20)
    assert little.race == settled.race
    assert [row.layer for row in little.rows] == [row.layer for row in settled.rows]


def test_interrupted_races_take_over_what_is_settled(
    digits: Model, table: ScaleTable, right: Callable[[demo.Predict], np.ndarray], tmp_path: Path
) -> None:
    class Stops:
        """The same function, that stops at a call."""

        __qualname__ = __module__ = "stops"
        calls = 0

        def __init__(self, stop: int) -> None:
            self.stop = stop

        def __call__(self, predict: demo.Predict) -> np.ndarray:
            self.calls += 1
            if self.calls == self.stop:
                raise KeyboardInterrupt
            return right(predict)

    path = tmp_path / "check.jsonl"
    whole = sweep(digits, table, evaluate=Stops(0), settle=0.9)
    with pytest.raises(KeyboardInterrupt):
        sweep(digits, table, evaluate=Stops(7), settle=0.9, checkpoint=path)
    kept = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [record["key"].partition(":")[0] for record in kept] == ["baseline", "reference", "layer", "layer"]
    rest = Stops(0)
    resumed = sweep(digits, table, evaluate=rest, settle=0.9, checkpoint=path, resume=True)
    assert resumed.to_json() == whole.to_json()
    assert rest.calls == 1 + 1 + 8 - 2  # what it feeds, whether scores are in order, layers that were not done
    again = Stops(3)
    assert sweep(digits, table, evaluate=again, settle=0.9, checkpoint=path, resume=True).to_json() == whole.to_json()
    with pytest.raises(CheckpointError, match=r"settle: 0\.9 in the checkpoint, nothing now"):
        sweep(digits, table, evaluate=Stops(0), checkpoint=path, resume=True)


def test_a_checkpoint_that_does_not_reach_far_enough_is_refused(
    digits: Model, table: ScaleTable, tmp_path: Path
) -> None:
    path = tmp_path / "check.jsonl"
    sweep(digits, table, settle=0.9, checkpoint=path)
    lines = path.read_text().splitlines()
    last = json.loads(lines[-1])
    last["losses"] = last["losses"][:40]
    path.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    with pytest.raises(CheckpointError, match="another number of samples"):
        sweep(digits, table, settle=0.9, checkpoint=path, resume=True)


def test_functions_that_say_too_little_are_refused(
    digits: Model, table: ScaleTable, right: Callable[[demo.Predict], np.ndarray], labels: np.ndarray
) -> None:
    def mean(predict: demo.Predict) -> float:
        return float(right(predict).mean())

    def shuffled(predict: demo.Predict) -> np.ndarray:
        return right(predict)[RANDOM]

    def half(predict: demo.Predict) -> np.ndarray:
        return right(predict)[::2]

    calls = []

    def augmented(predict: demo.Predict) -> np.ndarray:
        calls.append(1)
        return np.concatenate([predict(batch + len(calls) / 100)[0] for batch in BATCHES]).argmax(axis=1) == labels

    for function, error, message in (
        (mean, UsageError, "one number for all"),
        (shuffled, UsageError, "not in the order of the samples"),
        (half, EvalError, "175 scores for 350 different samples"),
        (augmented, UsageError, "feed the same batches"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with pytest.raises(error, match=message) as caught:
                sweep(digits, table, evaluate=function, settle=0.9)
        assert "leave settle out" in str(caught.value)


def test_what_cannot_be_raced_is_refused(digits: Model, table: ScaleTable) -> None:
    class Own:
        """An engine of which nothing is known."""

        name = "own"
        session = get_engine("executor").session

    with pytest.raises(UsageError, match="only where layers are slices of one program"):
        sweep(digits, table, settle=0.9, engine=Own())
    for confidence in (0.0, 1.0, 95.0, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            sweep(digits, table, settle=confidence)


def test_where_samples_depend_on_their_batch_calls_are_raced(
    digits: Model, table: ScaleTable, full: AnalysisResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qpass.analysis.measuring.mixes_samples", lambda model: True)
    small = [IMAGES[:2], *(IMAGES[i : i + 1] for i in range(2, len(IMAGES)))]
    raced = sweep(digits, table, data=small, settle=0.9)
    assert full.fine is not None
    assert raced.fine is not None
    assert raced.race is not None
    assert raced.race.total == len(small)
    assert raced.race.places
    order = list(full.fine.rows)
    assert all(order[place] == layer for layer, place in raced.race.places.items())
    for layer, row in raced.fine.rows.items():
        if row.samples == len(small):
            assert row.loss == pytest.approx(full.fine.rows[layer].loss, rel=1e-4)
    assert any("the race was on the 349 batches" in remark for remark in raced.remarks)
