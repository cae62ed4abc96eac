"""What an engine cannot do ends in one EngineError that says what, where and what to do; and what `describe` tells."""

from __future__ import annotations

import types

import numpy as np
import pytest
from support.build import Builder

from qpass.errors import DataError, EngineError
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.ir.params import Params
from qpass.runtime import paddle_env
from qpass.runtime.engines import ENGINES, get_engine

CPU = ["inference", "executor"]
X = np.ones((2, 4), np.float32)


def with_op(kind: str, inputs: dict[str, str], attrs: dict[str, Attr] | None = None) -> Model:
    b = Builder().feed("x", [-1, 4])
    b.param("w", (5, 4))
    return b.declare("o", [-1, 4]).op(kind, inputs, {"Out": "o"}, attrs).model()


@pytest.mark.parametrize("engine", CPU)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (with_op("frobnicate", {"X": "x"}), "op frobnicate: .*not registered"),
        (with_op("elementwise_add", {"X": "x", "Y": "w"}), "op elementwise_add: .*Broadcast dimension mismatch"),
        (with_op("elementwise_add", {"X": "x"}), r"op elementwise_add: .*\(Y\)"),
        (with_op("transpose2", {"X": "x"}), r"Attribute \(axis\) is not set"),
        (with_op("softmax", {"X": "x"}, {"axis": Attr.float(1.5)}), r"attribute \(axis\) by type int"),
    ],
)
def test_programs_that_paddle_refuses(engine: str, model: Model, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        get_engine(engine).session(model).run({"x": X})
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value.__cause__, paddle_env.PADDLE_ERRORS)


@pytest.mark.parametrize("engine", CPU)
def test_the_cause_is_told_of_an_op_that_knows_its_source_lines(engine: str) -> None:
    source = Attr.strs([f'  File "net.py", line {i}, in forward' for i in range(40)])
    model = with_op("elementwise_add", {"X": "x", "Y": "w"}, {"op_callstack": source})
    with pytest.raises(EngineError, match=r"op elementwise_add: .*Broadcast dimension mismatch") as caught:
        get_engine(engine).session(model).run({"x": X})
    assert "In user code" in str(caught.value.__cause__)
    assert "net.py" not in str(caught.value)


@pytest.mark.parametrize("engine", CPU)
def test_models_without_parameters_or_outputs(engine: str) -> None:
    model = Builder().feed("x", [-1, 4]).mul(3).model()
    with pytest.raises(EngineError, match=r"1 parameters are missing, the first is 'linear_0\.w_0'"):
        get_engine(engine).session(model.replaced(params=Params()))
    with pytest.raises(EngineError, match="nothing to fetch"):
        get_engine(engine).session(model, [])


@pytest.mark.parametrize("engine", CPU)
def test_feeds_that_do_not_fit(engine: str) -> None:
    session = get_engine(engine).session(Builder().feed("x", [-1, 4]).relu().model())
    for feed, words in (
        ({"y": X}, r"missing \['x'\], unknown \['y'\]"),
        ({"x": X, "y": X}, r"unknown \['y'\]"),
        ({"x": X[:, :3]}, "has 3 at dimension 1"),
        ({"x": X.astype(np.int64)}, "dtype is int64"),
        ({"x": X[:0]}, "empty"),
    ):
        with pytest.raises(DataError, match=words):
            session.run(feed)
    np.testing.assert_array_equal(session.run({"x": X.astype(np.float64)})[0], X)
    # A session, unlike calibration, lets numbers pass that are not finite
    assert np.isinf(session.run({"x": np.full_like(X, np.inf)})[0]).all()


def test_names() -> None:
    with pytest.raises(
        EngineError, match=r"unknown engine 'infrence', expected one of .*'inference'.*\n.*mean 'inference'"
    ):
        get_engine("infrence")
    for name in CPU:
        assert get_engine(name).name == name
    engine = get_engine()
    assert engine.name == "inference"
    assert get_engine(engine) is engine


def test_gpu_on_a_cpu_build() -> None:
    assert "gpu" in ENGINES
    if paddle_env.compiled_with_cuda():
        pytest.skip("the installed paddle is a GPU build")
    with pytest.raises(EngineError, match=r"engine 'gpu': the installed paddle is a CPU build\n.*paddlepaddle-gpu"):
        get_engine("gpu")


def test_old_or_absent_paddle(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    paddle_env.import_paddle.cache_clear()
    try:
        with monkeypatch.context() as m:
            m.setitem(sys.modules, "paddle", types.SimpleNamespace(__version__="2.5.2"))
            with pytest.raises(EngineError, match=r"paddle 2\.5\.2 is too old, expected 2\.6 or newer\n.*install"):
                paddle_env.import_paddle()
            assert paddle_env.describe()["paddle"].startswith("missing: paddle 2.5.2 is too old")
            m.setitem(sys.modules, "paddle", None)
            with pytest.raises(EngineError, match=r"paddle cannot be imported .*\n.*pip install paddlepaddle"):
                get_engine("executor")
    finally:
        paddle_env.import_paddle.cache_clear()


def test_describe() -> None:
    import paddle

    facts = paddle_env.describe()
    assert facts["paddle"] == paddle.__version__
    assert facts["program messages"] == "ok"
    assert facts["gpu build"] == ("yes" if paddle.is_compiled_with_cuda() else "no")
    assert facts["legacy programs"] == ("native" if paddle.__version__.startswith("2.") else "by old-IR guard")
    assert all(isinstance(value, str) and "\n" not in value for value in facts.values())


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_threads(monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    found = paddle_env.default_threads()
    assert found == threads if threads else found >= 1
