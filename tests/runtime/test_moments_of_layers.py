"""Moments: equal to sums over all patches, whatever the batches; kept in a file; bad ones refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.quantized import quantized, residual_net

from qpass.errors import FormatError, QuantError
from qpass.quant.layers import find_layers
from qpass.quant.moments import LayerMoments, MomentTable
from qpass.runtime.moments import collect_moments

X = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
# Sums of a batch are taken in float32; measured 2e-7 relative to the largest entry.
TOLERANCE = 1e-5


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= TOLERANCE * np.abs(b).max())


def test_one_convolution_by_hand():
    model = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4, k=1).model()
    found = collect_moments(model, [X[:5], X[5:]], engine="executor")
    pixels = X.transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float64)
    one = found.layers["conv2d_0.w_0"]
    weight = model.params["conv2d_0.w_0"].reshape(4, 3).astype(np.float64)
    assert one.second is not None
    assert close(one.mean[0], pixels.mean(axis=0))
    assert close(one.second[0], pixels.T @ pixels / len(pixels))
    assert close(one.output, (pixels @ weight.T).mean(axis=0))
    assert found.samples == 12
    assert found.params_digest == model.params_digest()
    assert found.data_digest


@pytest.mark.parametrize("engine", ["inference", "executor"])
def test_the_split_into_batches_does_not_matter(engine):
    model = residual_net()
    one, many = (collect_moments(model, X, engine=engine, batch_size=size) for size in (12, 5))
    assert list(one.layers) == [layer.name for layer in find_layers(model)]
    for name in one.layers:
        a, b = one.layers[name], many.layers[name]
        assert a.second is not None
        assert b.second is not None
        assert close(a.mean, b.mean)
        assert close(a.second, b.second)
        assert close(a.output, b.output)


def test_a_shared_weight_sees_the_inputs_of_all_its_ops():
    b = Builder().feed("x", [-1, 3, 8, 8])
    w = b.param("w", (3, 3, 1, 1))
    model = b.conv2d(3, k=1, weight=w).relu().conv2d(3, k=1, weight=w).model()
    one = collect_moments(model, [X], engine="executor").layers["w"]
    first = X.transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float64)
    second = np.maximum(first @ model.params["w"].reshape(3, 3).T.astype(np.float64), 0)
    assert close(one.mean[0], np.concatenate([first, second]).mean(axis=0))


def test_a_quantized_model_gives_what_stands_before_its_quantizers():
    model = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).model()
    a, b = (collect_moments(m, [X], engine="executor").layers["conv2d_0.w_0"] for m in (model, quantized(model)))
    assert np.array_equal(a.mean, b.mean)


def test_choice_of_layers_batches_and_moments():
    model = residual_net()
    seen: list[int] = []
    found = collect_moments(
        model, X, layers=["linear_0.w_0"], second=False, batches=1, batch_size=5, progress=seen.append
    )
    assert list(found.layers) == ["linear_0.w_0"]
    assert found.layers["linear_0.w_0"].second is None
    assert found.samples == 5
    assert seen == [1]
    with pytest.raises(QuantError, match="there is no layer 'nobody'"):
        collect_moments(model, X, layers=["nobody"])


def test_a_table_comes_back_from_its_file(tmp_path):
    table = collect_moments(residual_net(), [X], engine="executor")
    bare = collect_moments(residual_net(), [X], engine="executor", second=False)
    for given in (table, bare):
        path = tmp_path / "new" / "odd name"
        given.save(path)
        back = MomentTable.load(path)
        assert (back.samples, back.params_digest, back.data_digest) == (
            given.samples,
            given.params_digest,
            given.data_digest,
        )
        assert list(back.layers) == list(given.layers)
        for name, one in given.layers.items():
            assert np.array_equal(back.layers[name].mean, one.mean)
            assert np.array_equal(back.layers[name].output, one.output)
            assert (one.second is None) == (back.layers[name].second is None)
            assert one.second is None or np.array_equal(back.layers[name].second, one.second)


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "moments.npz"
    collect_moments(residual_net(), [X], engine="executor", second=False).save(path)
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(QuantError, match="moments"):
            MomentTable.load(path)
    for made in ({"head": np.frombuffer(b"[1]", np.uint8)}, {"x": np.zeros(3)}, {"head": np.array([None])}):
        np.savez(path, **made)
        with pytest.raises(QuantError, match="not a table of moments"):
            MomentTable.load(path)
    np.savez(path, head=np.frombuffer(b'{"qpass_moments": 9}', np.uint8))
    with pytest.raises(QuantError, match="version 9, expected 1"):
        MomentTable.load(path)
    with pytest.raises(QuantError, match="cannot read it"):
        MomentTable.load(tmp_path / "absent.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="cannot write the moments"):
        MomentTable({}).save(tmp_path / "file" / "moments.npz")


def test_inputs_whose_squares_are_not_finite_are_told():
    with pytest.raises(QuantError, match=r"input of layer 'conv2d_0\.w_0': a moment is NaN or infinite"):
        collect_moments(Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).model(), [X * 1e30], engine="executor")


@pytest.mark.parametrize(
    ("mean", "output", "second"),
    [((3,), (4,), None), ((2, 3), (3,), None), ((1, 3), (4,), (1, 3, 4)), ((1, 3), (4, 1), None)],
)
def test_moments_that_do_not_fit_each_other_are_refused(mean, output, second):
    with pytest.raises(QuantError, match="do not fit each other"):
        LayerMoments(np.zeros(mean), np.zeros(output), None if second is None else np.zeros(second))
