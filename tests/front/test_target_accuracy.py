"""`get_target_quant_model` on real models: what it saves reaches the target, and none of its float layers is idle."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpus import corpus, golden
from support.infer import infer
from support.planted import broken, shrunk

from qpass import AnalysisPTQ, AnalysisQAT, ScaleTable, TargetResult, demo
from qpass.errors import CheckpointError, EvalError, TargetError, UsageError
from qpass.formats.files import load, save
from qpass.ir.model import Model
from qpass.job import PTQJob
from qpass.options import QuantOptions
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.site import Role
from qpass.runtime.calibrate import calibrate
from qpass.runtime.data import Batches
from qpass.target_job import Reached, reach_target

IMAGES, LABELS = (array[:200] for array in demo.test_data())
CALIBRATION = demo.calibration_data()[:1]
BAD = "conv2d_5.w_0"
REPORTS = {"target.txt", "target.json", "target.csv", "target_checkpoint.jsonl"}
RANKING = {
    "analysis.txt",
    "analysis.json",
    "analysis.csv",
    "ranking.txt",
    "sensitivity.png",
    "analysis_checkpoint.jsonl",
}
SAVED = {"skip_tensor_list.txt", "target_quant_model/model.pdmodel", "target_quant_model/model.pdiparams"}


class Probability:
    """Mean probability of the true digit, counting its calls; stops at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls = 0
        self._stop = stop

    def __call__(self, predict: demo.Predict) -> float:
        self.calls += 1
        if self.calls == self._stop:
            raise KeyboardInterrupt
        return float(predict(IMAGES)[0][np.arange(len(LABELS)), LABELS].mean())


def loss(predict: demo.Predict) -> float:
    return 1 - Probability()(predict)


def judged(model: Model) -> float:
    """The metric as Paddle Inference alone gives it."""
    return Probability()(lambda images: infer(model, {model.feeds[0].name: np.asarray(images)}))


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def in_float(model: Model) -> list[str]:
    quantized = {use for site in find_sites(model) if site.role is Role.WEIGHT for use in site.uses}
    return [layer.name for layer in find_layers(model) if not any(op.weight in quantized for op in layer.ops)]


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, CALIBRATION)


def ptq_job(model: Model, table: ScaleTable, folder: Path, evaluate: object, **options: object) -> PTQJob:
    resume = bool(options.pop("resume", False))
    return PTQJob(
        model=model,
        source=None,
        table=table,
        evaluate=evaluate,  # type: ignore[arg-type]
        save_dir=folder,
        options=QuantOptions.checked(options),
        resume=resume,
    )


def reach(job: PTQJob, target: float) -> Reached:
    return reach_target(job, target, job.save_dir / "model")


@pytest.mark.parametrize("weight", [False, True], ids=["activation", "weight"])
def test_the_one_bad_layer_is_found(digits: Model, table: ScaleTable, tmp_path: Path, weight: bool) -> None:
    job = ptq_job(digits, shrunk(table, digits, BAD, weight=weight), tmp_path, Probability())
    result = reach(job, 0.85).result
    assert result.skip_tensor_list == (BAD,)
    assert result.certificate[BAD] < 0.85 <= result.metric
    saved = load(tmp_path / "model")
    assert in_float(saved) == [BAD]
    assert judged(saved) == pytest.approx(result.metric, abs=1e-4)  # other kernels, fused otherwise
    assert judged(job.rewrite(())) == pytest.approx(result.certificate[BAD], abs=1e-2)
    assert (tmp_path / "skip_tensor_list.txt").read_text() == f"{BAD}\n"


def test_a_loss_goes_down(digits: Model, table: ScaleTable, tmp_path: Path) -> None:
    wrong = shrunk(table, digits, BAD, weight=False)
    result = reach(ptq_job(digits, wrong, tmp_path, loss, higher_is_better=False), 0.15).result
    assert result.skip_tensor_list == (BAD,)
    assert result.certificate[BAD] > 0.15 >= result.metric


def test_every_claim_is_true_when_measured_anew(digits: Model, table: ScaleTable, tmp_path: Path) -> None:
    """At 4 bits layers interact; every model is measured anew, without the search."""
    job = ptq_job(digits, table, tmp_path, Probability(), weight_bits=4, activation_bits=5)
    result = reach(job, 0.9).result
    assert 0 < len(result.skip_tensor_list) < len(result.layers) == 8

    def measured(skip: tuple[str, ...]) -> float:
        from qpass.runtime.engines import get_engine

        session = get_engine("inference").session(job.rewrite(skip))
        return Probability()(lambda images: session.run({session.feed_names[0]: np.asarray(images)}))

    assert measured(result.skip_tensor_list) == result.metric >= 0.9
    for name in result.skip_tensor_list:
        fewer = tuple(other for other in result.skip_tensor_list if other != name)
        assert measured(fewer) == result.certificate[name] < 0.9
    for trial in result.trials:
        assert measured(trial.skip) == trial.metric
        assert trial.reaches == (trial.metric >= 0.9)
    rows = list(csv.DictReader((tmp_path / "target.csv").open()))
    assert [(json.loads(row["skip_tensor_list"]), float(row["metric"])) for row in rows] == [
        (list(trial.skip), trial.metric) for trial in result.trials
    ]
    assert json.loads((tmp_path / "target.json").read_text()) == json.loads(result.to_json())


def analysis(folder: Path, evaluate: object, **more: object) -> AnalysisPTQ:
    return AnalysisPTQ(
        demo.float_prefix(),
        eval_function=evaluate,  # type: ignore[arg-type]
        data_loader=CALIBRATION,
        save_dir=folder,
        **more,  # type: ignore[arg-type]
    )


def test_nothing_is_ranked_where_nothing_need_be_skipped(tmp_path: Path) -> None:
    evaluate = Probability()
    result = analysis(tmp_path, evaluate).get_target_quant_model(0.9)
    assert evaluate.calls == 1
    assert (result.outcome, result.skip_tensor_list) == ("reached", ())
    assert names(tmp_path) == REPORTS | SAVED
    saved = load(tmp_path / "target_quant_model", model_filename="model.pdmodel", params_filename="model.pdiparams")
    assert in_float(saved) == []


def paddle_form(executor: Any, program: object, feed_names: Sequence[str], fetch_list: Sequence[object]) -> float:
    return Probability()(lambda images: executor.run(program, feed={feed_names[0]: images}, fetch_list=fetch_list))


def test_paddle_s_form_and_none(tmp_path: Path) -> None:
    config = {"weight_bits": 3}
    one = analysis(tmp_path / "one", paddle_form, ptq_config=config).get_target_quant_model(0.9)
    two = analysis(tmp_path / "two", Probability(), ptq_config=config).get_target_quant_model(0.9)
    assert [trial.metric for trial in one.trials] == [trial.metric for trial in two.trials]
    assert one.skip_tensor_list == two.skip_tensor_list != ()
    three = analysis(tmp_path / "three", None, ptq_config=config).get_target_quant_model(0.99)
    assert three.metric_name == "cosine"
    assert three.trials[1].metric == pytest.approx(1)
    assert names(tmp_path / "three") == REPORTS | SAVED | RANKING


def test_a_ranking_that_is_there_is_used(tmp_path: Path) -> None:
    evaluate = Probability()
    job = analysis(tmp_path, evaluate, ptq_config={"weight_bits": 3})
    order = [row.layer for row in job.result.rows]
    before = evaluate.calls
    result = job.get_target_quant_model(0.9)
    assert evaluate.calls - before == len(result.trials)
    assert list(result.layers) == order


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (0.99, "even the float model misses the target"),
        (0.9775, "only the float model reaches the target: each layer alone, quantized, misses it"),
    ],
)
def test_out_of_reach(tmp_path: Path, target: float, words: str) -> None:
    job = analysis(tmp_path, demo.true_class_probability, ptq_config={"weight_bits": 2})
    with pytest.raises(TargetError, match=words) as error:
        job.get_target_quant_model(target)
    assert error.value.hint
    assert words in (tmp_path / "target.txt").read_text()
    assert names(tmp_path) == (REPORTS if target == 0.99 else REPORTS | RANKING)


def test_pools_and_sums_that_cost_too_much(tmp_path: Path) -> None:
    """Skipping layers leaves the rest quantized; that is not what the report may call the float model."""
    evaluate = Probability()
    few_bits = {"is_full_quantize": True, "activation_bits": 3}
    with pytest.raises(TargetError, match=r"every layer in float misses .*; the float model has 0\.9") as error:
        analysis(tmp_path, evaluate, ptq_config=few_bits).get_target_quant_model(0.9)
    assert "quantize fewer kinds of ops" in str(error.value)
    assert evaluate.calls == 3
    body = json.loads((tmp_path / "target.json").read_text())
    assert body["outcome"] == "layers in float miss"
    assert body["metric"] < 0.9 <= body["float_metric"] == judged_float(evaluate)


def judged_float(evaluate: Probability) -> float:
    from qpass.runtime.engines import get_engine

    session = get_engine("inference").session(load(demo.float_prefix()))
    return evaluate(lambda images: session.run({session.feed_names[0]: np.asarray(images)}))


@pytest.mark.parametrize("target", [float("nan"), float("inf"), "0.9", None, True])
def test_a_target_that_is_no_number(tmp_path: Path, target: object) -> None:
    evaluate = Probability()
    with pytest.raises(UsageError, match="expected a finite number"):
        analysis(tmp_path / "new", evaluate).get_target_quant_model(target)  # type: ignore[arg-type]
    assert evaluate.calls == 0
    assert not (tmp_path / "new").exists()


def test_a_broken_evaluation_names_the_model(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="the model with 0 of 8 layers in float"):
        analysis(tmp_path, lambda predict: None).get_target_quant_model(0.9)


def test_an_interrupted_search_goes_on(digits: Model, table: ScaleTable, tmp_path: Path) -> None:
    def job(folder: str, evaluate: Probability, **options: object) -> PTQJob:
        return ptq_job(digits, table, tmp_path / folder, evaluate, weight_bits=4, engine="executor", **options)

    counted = Probability()
    whole = reach(job("whole", counted), 0.9).result
    for stop in (2, 7, counted.calls):  # between the ends, in the ranking, after it
        folder = f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            reach(job(folder, Probability(stop)), 0.9)
        rest = Probability()
        assert reach(job(folder, rest, resume=True), 0.9).result == whole
        assert rest.calls == counted.calls - (stop - 1) + (stop > 2)  # the ranking asks again for what is fed
    other = Probability()
    lower = reach(job("whole", other, resume=True), whole.certificate[whole.skip_tensor_list[0]]).result
    assert other.calls == 1 + sum(trial not in whole.trials for trial in relative(lower, whole))
    with pytest.raises(CheckpointError, match="options"):
        reach(job("whole", other, resume=True, higher_is_better=False), 0.9)


def relative(result: TargetResult, to: TargetResult) -> list[object]:
    """The trials of a result, those that another search measured too in its words."""
    known = {frozenset(trial.skip): trial for trial in to.trials}
    return [known.get(frozenset(trial.skip), trial) for trial in result.trials]


@pytest.mark.parametrize("restore", ["float", "self"])
def test_qat(tmp_path: Path, restore: str) -> None:
    save(broken(load(demo.qat_prefix()), BAD), tmp_path / "broken")
    analyzer = AnalysisQAT(
        tmp_path / "broken",
        demo.float_prefix(),
        eval_function=Probability(),
        save_dir=tmp_path / "out",
        restore=restore,
    )
    result = analyzer.get_target_quant_model(0.9)
    assert (result.mode, result.skip_tensor_list) == ("qat", (BAD,))
    assert result.certificate[BAD] < 0.9 <= result.metric
    saved = load(tmp_path / "out" / "target_quant_model" / "model")
    assert in_float(saved) == [BAD]
    assert judged(saved) == pytest.approx(result.metric, abs=1e-4)
    with pytest.raises(TargetError, match="even the float model misses the target"):
        analyzer.get_target_quant_model(0.9999)


def test_two_bad_layers_of_a_residual_net(tmp_path: Path) -> None:
    model = load(corpus("models/resnet8_cifar10"))
    images = [np.load(golden("resnet8_calibration.npz"))["x"][:16].astype(np.float32)]
    bad = {"conv2d_5.w_0", "conv2d_2.w_0"}
    wrong = calibrate(model, images)
    for name in sorted(bad):
        wrong = shrunk(wrong, model, name, weight=True)
    job = dataclasses.replace(ptq_job(model, wrong, tmp_path, None), source=Batches.of(model, images))
    result = reach(job, 0.99).result
    assert set(result.skip_tensor_list) == bad
    assert in_float(load(tmp_path / "model")) == sorted(bad, key=[layer.name for layer in find_layers(model)].index)
    assert all(metric < 0.99 <= result.metric for metric in result.certificate.values())
    subsets = itertools.chain.from_iterable(itertools.combinations(sorted(bad), k) for k in (0, 1))
    assert {frozenset(s) for s in subsets} <= {frozenset(trial.skip) for trial in result.trials}
