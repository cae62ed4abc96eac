"""The classes Paddle users know: their arguments, their data loaders, their evaluation functions, their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpass import AnalysisPTQ, AnalysisQAT, AnalysisQuant, demo
from qpass.errors import CheckpointError, DataError, FormatError, QPassError, UsageError
from qpass.runtime.paddle_env import legacy_static

IMAGES, LABELS = (array[:100] for array in demo.test_data())
TEXTS = {"analysis.txt", "analysis.json", "analysis.csv", "ranking.txt", "sensitivity.png", "analysis_checkpoint.jsonl"}
HISTOGRAMS = {f"{kind}_{role}_hist_result.pdf" for kind in ("best", "worst") for role in ("weight", "act")}
STATISTICS = {"statistic.csv", "weight_box.pdf", "act_box.pdf"}


def eval_function(executor: Any, program: Any, feed_names: Sequence[str], fetch_list: Sequence[Any]) -> float:
    """Mean probability of the true digit, written the way Paddle's examples are."""
    total = 0.0
    for start in range(0, len(IMAGES), 50):
        image, label = IMAGES[start : start + 50], LABELS[start : start + 50]
        outputs = executor.run(program, feed={feed_names[0]: np.array(image)}, fetch_list=fetch_list)
        total += float(outputs[0][np.arange(len(label)), label].sum())
    return total / len(IMAGES)


class Counted:
    """`eval_function` that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, executor: Any, program: Any, feed_names: Sequence[str], fetch_list: Sequence[Any]) -> float:
        self.calls += 1
        return eval_function(executor, program, feed_names, fetch_list)


def batches() -> list[np.ndarray]:
    return [IMAGES[:32], IMAGES[32:64]]


def loader(**options: Any) -> Any:
    import paddle

    class Digits(paddle.io.Dataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return IMAGES[index], LABELS[index]

        def __len__(self) -> int:
            return 64

    return paddle.io.DataLoader(Digits(), batch_size=32, places=paddle.CPUPlace(), **options)


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def layers(folder: Path) -> list[str]:
    return [row["layer"] for row in json.loads((folder / "analysis.json").read_text())["rows"]]


@pytest.fixture(scope="module")
def ptq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `metric_error_analyse` writes with a DataLoader and Paddle's form of the evaluation."""
    folder = tmp_path_factory.mktemp("ptq")
    analyzer = AnalysisPTQ(
        model_dir=str(demo.float_prefix()),
        eval_function=eval_function,
        data_loader=loader(),
        save_dir=str(folder),
        num_histogram_plots=1,
    )
    analyzer.metric_error_analyse()
    return folder


@pytest.fixture(scope="module")
def qat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `analysis` writes for the twin."""
    folder = tmp_path_factory.mktemp("qat")
    analyzer = AnalysisQAT(
        quant_model_dir=str(demo.qat_prefix()),
        float_model_dir=str(demo.float_prefix()),
        quantizable_op_type=["conv2d", "depthwise_conv2d", "mul"],
        eval_function=eval_function,
        data_loader=batches(),
        save_dir=str(folder),
        num_histogram_plots=1,
    )
    assert analyzer.analysis() is analyzer.result
    return folder


def test_metric_error_analyse_writes_ranking_and_histograms(ptq: Path) -> None:
    assert names(ptq) == TEXTS | HISTOGRAMS


def test_analysis_writes_everything(qat: Path) -> None:
    assert names(qat) == TEXTS | HISTOGRAMS | STATISTICS


@pytest.mark.parametrize(("mode", "words", "sign"), [("ptq", "quant", -1), ("qat", "without", 1)])
def test_most_sensitive_comes_first(mode: str, words: str, sign: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(mode)
    body = json.loads((folder / "analysis.json").read_text())
    costs = [sign * (row["metric"] - body["baseline"]) for row in body["rows"]]
    assert costs == sorted(costs, reverse=True)
    assert costs == [row["sensitivity"] for row in body["rows"]]
    assert body["rows"][0]["layer"] == "conv2d_2.w_0"  # its input reaches 650, most of it is below 5
    assert costs[0] > 0.005
    assert len(body["rows"]) == 8
    lines = (folder / "analysis.txt").read_text().splitlines()
    ranked = [line for line in lines if line.startswith(f"{words} layer name: ")]
    assert [line.split(": ")[1].split(",")[0] for line in ranked] == [row["layer"] for row in body["rows"]]


def two_layers(data: Any, folder: Path) -> bytes:
    """`analysis.json` of the two matrix products."""
    analyzer = AnalysisQuant(
        model_dir=demo.float_prefix(),
        eval_function=eval_function,
        data_loader=data,
        save_dir=folder,
        num_histogram_plots=0,
        ptq_config={"quantizable_op_type": ["mul"]},
    )
    analyzer.metric_error_analyse()
    assert names(folder) == TEXTS
    return (folder / "analysis.json").read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return two_layers(batches(), tmp_path_factory.mktemp("two_layers"))


@pytest.mark.parametrize(
    "data",
    [
        batches,
        lambda: iter(batches()),
        lambda: lambda: iter(batches()),
        lambda: [(IMAGES[:32], LABELS[:32]), (IMAGES[32:64], LABELS[32:64])],
        lambda: [{"image": batch} for batch in batches()],
        lambda: loader(return_list=True),
    ],
    ids=["again", "generator", "function", "pairs", "dicts", "DataLoader"],
)
def test_the_same_data_in_any_form_give_the_same_bytes(data: Any, expected: bytes, tmp_path: Path) -> None:
    assert two_layers(data(), tmp_path) == expected
    assert json.loads(expected)["rows"][0]["family"] == "matmul"


def test_a_static_data_loader_without_return_list(expected: bytes, tmp_path: Path) -> None:
    import paddle

    paddle.enable_static()
    try:
        with legacy_static(), paddle.static.program_guard(paddle.static.Program()):
            feeds = [paddle.static.data("image", [-1, 1, 8, 8]), paddle.static.data("label", [-1], "int64")]
            assert two_layers(loader(feed_list=feeds, return_list=False), tmp_path) == expected
    finally:
        paddle.disable_static()


@pytest.mark.parametrize(
    ("model", "params"), [("net.pdmodel", "weights.pdiparams"), ("net", "weights"), ("net", None), (None, None)]
)
def test_a_folder_with_file_names(model: str | None, params: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(f"{demo.float_prefix()}.pdmodel", folder / "net.pdmodel")
    shutil.copy(f"{demo.float_prefix()}.pdiparams", folder / ("weights.pdiparams" if params else "net.pdiparams"))
    save_dir = tmp_path / "results"
    analyzer = AnalysisPTQ(str(folder), model, params, data_loader=batches(), save_dir=str(save_dir))
    assert len(analyzer.statistical_analyse()) == 3
    assert names(save_dir) == STATISTICS
    assert len((save_dir / "statistic.csv").read_text().splitlines()) == 1 + 2 * 8


def test_resume_measures_nothing_twice(tmp_path: Path) -> None:
    def analyse(resume: bool) -> int:
        count = Counted()
        AnalysisPTQ(
            demo.float_prefix(),
            eval_function=count,
            data_loader=batches(),
            save_dir=tmp_path,
            checkpoint_name="mine.jsonl",
            num_histogram_plots=0,
            resume=resume,
            ptq_config={"quantizable_op_type": ["mul"]},
        ).metric_error_analyse()
        return count.calls

    assert analyse(resume=False) == 1 + 2 + 2  # the first call is for what it feeds
    lines = (tmp_path / "mine.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "mine.jsonl").write_bytes(b"".join(lines[:-2]))
    whole = (tmp_path / "analysis.json").read_bytes()
    assert analyse(resume=True) == 1 + 2
    assert (tmp_path / "analysis.json").read_bytes() == whole


def test_a_checkpoint_of_another_job_is_refused_with_what_differs(ptq: Path, tmp_path: Path) -> None:
    shutil.copy(ptq / "analysis_checkpoint.jsonl", tmp_path)
    before = (tmp_path / "analysis_checkpoint.jsonl").read_bytes()
    analyzer = AnalysisPTQ(
        demo.float_prefix(),
        eval_function=eval_function,
        data_loader=batches()[:1],
        save_dir=tmp_path,
        resume=True,
        ptq_config={"weight_bits": 4},
    )
    with pytest.raises(CheckpointError, match=r"(?s)something else.*scales: .*weight_bits: 8 in the checkpoint, 4 now"):
        analyzer.metric_error_analyse()
    assert names(tmp_path) == {"analysis_checkpoint.jsonl"}
    assert (tmp_path / "analysis_checkpoint.jsonl").read_bytes() == before


def test_ptq_config_reaches_the_work(tmp_path: Path) -> None:
    result = AnalysisPTQ(
        demo.float_prefix(),
        data_loader=batches(),
        save_dir=tmp_path,
        num_histogram_plots=0,
        ptq_config={
            "algo": "abs_max",
            "weight_quantize_type": "abs_max",
            "activation_quantize_type": "moving_average_abs_max",
            "quantizable_op_type": ["conv2d"],
            "weight_bits": 4,
            "activation_bits": 7,
            "batch_nums": 1,
            "is_full_quantize": False,
            "onnx_format": True,
            "engine": "executor",
        },
    ).result
    assert [row.family for row in result.rows] == ["conv2d"] * 5
    told = {
        "algo": "abs_max",
        "weight_algo": "abs_max",
        "weight_bits": "4",
        "activation_bits": "7",
        "op_types": "conv2d",
    }
    assert {name: result.settings[name] for name in told} == told
    assert result.settings["engine"] == "executor"
    row = next(row for row in result.rows if row.layer == "conv2d_0.w_0")
    assert row.details["activation_threshold"] == np.abs(IMAGES[:32]).max()
    assert names(tmp_path) == {"analysis_checkpoint.jsonl"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"weight_quantize_typ": "abs_max"}, "did you mean 'weight_quantize_type'"),
        ({"batch_size": 10}, "no key 'batch_size'"),
        ({7: 10}, "no key 7"),
        ({"algo": "best"}, "unknown algo 'best', expected one of"),
        ({"algo": "KL", "activation_bits": 16}, "KL needs at least 131068 bins"),
        ({"hist_percent": 99.9}, "a share, not a percentage"),
        ({"hist_percent": "0.9"}, "hist_percent is '0.9', expected a number"),
        ({"compat": "torch"}, "unknown compat 'torch'"),
        ({"algo": ["avg"]}, "expected a name"),
        ({"weight_quantize_type": "range_abs_max"}, "unknown weight_algo"),
        ({"activation_quantize_type": "channel_wise_abs_max"}, "expected 'moving_average_abs_max'"),
        ({"is_full_quantize": 1}, "is_full_quantize is 1, expected True or False"),
        ({"weight_bits": "8"}, "weight_bits is '8', expected a whole number"),
        ({"weight_bits": True}, "expected a whole number"),
        ({"weight_bits": 1}, "expected 2 to 16"),
        ({"activation_bits": 32}, "expected 2 to 16"),
        ({"batch_nums": 0}, "number of batches is 0"),
        ({"quantizable_op_type": "conv2d"}, "expected a sequence of names"),
        ({"quantizable_op_type": ["conv3d"]}, "'conv3d' has no quantizable weight"),
        ({"engine": "tensorrt"}, "unknown engine"),
        ({"higher_is_better": "no"}, "True or False"),
    ],
)
def test_wrong_ptq_config_is_refused_at_once(config: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        AnalysisPTQ(demo.float_prefix(), data_loader=batches(), save_dir=tmp_path / "out", ptq_config=config)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"data_loader": None}, UsageError, "calibration needs batches"),
        ({"model_dir": demo.qat_prefix()}, UsageError, "quantized already"),
        ({"model_dir": "no/such"}, FormatError, "no such file"),
        ({"num_histogram_plots": -1}, UsageError, "num_histogram_plots is -1"),
        ({"data_loader": "calib.npz"}, DataError, "data are str"),
        ({"ptq_config": {"higher_is_better": False}}, UsageError, "evaluation function"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    arguments: dict[str, Any], error: type[QPassError], words: str, tmp_path: Path
) -> None:
    given = {"model_dir": demo.float_prefix(), "data_loader": batches(), "save_dir": tmp_path / "out", **arguments}
    with pytest.raises(error, match=words):
        AnalysisPTQ(**given)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"float_model_dir": None}, "restore='float' needs the float model"),
        ({"quantizable_op_type": "conv2d"}, "expected a sequence of names"),
        ({"restore": "both"}, "both"),
        ({"mapping": {"conv1": "conv2d_0.w_0"}}, "no layer 'conv1'"),
        ({"quant_model_dir": demo.float_prefix()}, "quantiz"),
        ({"float_model_dir": demo.qat_prefix()}, "swapped"),
        ({"qat_metric": float("nan")}, "finite"),
        ({"data_loader": []}, "no batch"),
    ],
)
def test_wrong_arguments_of_the_qat_mode(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "quant_model_dir": demo.qat_prefix(),
        "float_model_dir": demo.float_prefix(),
        "data_loader": batches(),
        "save_dir": tmp_path / "out",
        **arguments,
    }
    with pytest.raises(QPassError, match=words):
        AnalysisQAT(**given).metric_error_analyse()
    assert names(tmp_path) == set()


def test_an_evaluation_that_raises_names_the_layer_and_keeps_what_was_done(tmp_path: Path) -> None:
    calls: list[int] = []

    def fails_late(executor: Any, program: Any, feed_names: Any, fetch_list: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("out of memory")
        return eval_function(executor, program, feed_names, fetch_list)

    analyzer = AnalysisPTQ(demo.float_prefix(), eval_function=fails_late, data_loader=batches(), save_dir=tmp_path)
    with pytest.raises(QPassError, match=r"layer 'conv2d_1.w_0' quantized alone: .*raised ValueError: out of memory"):
        analyzer.metric_error_analyse()
    assert names(tmp_path) == {"analysis_checkpoint.jsonl"}
    assert len((tmp_path / "analysis_checkpoint.jsonl").read_text().splitlines()) == 1 + 1


def test_without_data_there_is_a_ranking_and_no_histogram(tmp_path: Path, qat: Path) -> None:
    analyzer = AnalysisQAT(
        demo.qat_prefix(),
        demo.float_prefix(),
        quantizable_op_type=("mul",),
        eval_function=eval_function,
        save_dir=tmp_path,
    )
    with pytest.raises(UsageError, match="statistics need data"):
        analyzer.statistical_analyse()
    analyzer.analysis()
    assert names(tmp_path) == TEXTS
    of_matrices = [layer for layer in layers(qat) if layer.startswith("linear")]
    assert layers(tmp_path) == of_matrices
    assert len(of_matrices) == 2


def test_a_known_metric_is_taken(tmp_path: Path) -> None:
    count = Counted()
    analyzer = AnalysisQAT(
        demo.qat_prefix(),
        demo.float_prefix(),
        quantizable_op_type=("mul",),
        qat_metric=0.25,
        eval_function=count,
        save_dir=tmp_path,
    )
    result = analyzer.metric_error_analyse()
    assert count.calls == 1 + 2 + 2 + 1  # for what it feeds, the layers, both ends, the noise floor
    assert result.baseline == 0.25
    assert all(row.sensitivity == row.metric - 0.25 for row in result.rows)


def test_direction_of_a_loss(tmp_path: Path) -> None:
    def loss(executor: Any, program: Any, feed_names: Any, fetch_list: Any) -> float:
        return -eval_function(executor, program, feed_names, fetch_list)

    result = AnalysisQAT(
        demo.qat_prefix(), demo.float_prefix(), eval_function=loss, save_dir=tmp_path, higher_is_better=False
    ).result
    assert result.rows[0].layer == "conv2d_2.w_0"
    assert result.rows[0].sensitivity == result.baseline - result.rows[0].metric > 0
