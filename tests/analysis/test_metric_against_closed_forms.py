from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from qpass.analysis.metric import SQNR_LIMIT, Comparison, Similarity
from qpass.errors import EvalError


def compare(*batches: tuple[list[np.ndarray], list[np.ndarray]]) -> Similarity:
    comparison = Comparison([f"out{i}" for i in range(len(batches[0][0]))])
    for reference, variant in batches:
        comparison.add(reference, variant)
    return comparison.result()


def test_batches_add_up_to_the_metric_of_everything_at_once() -> None:
    rng = np.random.default_rng(0)
    r = rng.normal(size=(12, 7)).astype(np.float32)
    v = (r + 0.1 * rng.normal(size=r.shape)).astype(np.float32)
    r64, v64 = r.astype(np.float64), v.astype(np.float64)
    cosine = (r64 * v64).sum() / np.linalg.norm(r64) / np.linalg.norm(v64)
    sqnr = 20 * np.log10(np.linalg.norm(r64) / np.linalg.norm(v64 - r64))
    found = compare(([r[:5]], [v[:5]]), ([r[5:]], [v[5:]]))
    assert found.cosine == pytest.approx(cosine, rel=1e-12)
    assert found.sqnr_db == pytest.approx(sqnr, rel=1e-12)


def test_a_large_offset_does_not_swamp_the_sums() -> None:
    r = np.full(100_000, 1000.0, np.float32)
    v = r.copy()
    v[::2] += np.float32(0.0625)
    assert compare(([r], [v])).sqnr_db == pytest.approx(10 * np.log10(2e6 / 0.0625**2), rel=1e-12)


def test_the_number_of_threads_changes_no_bit() -> None:
    code = (
        "import numpy as np\n"
        "from qpass.analysis.metric import Comparison\n"
        "rng, found = np.random.default_rng(0), Comparison(['out'])\n"
        "for _ in range(4):\n"
        "    r = rng.normal(size=300_001)\n"
        "    found.add([r], [r + 0.1 * rng.normal(size=r.size)])\n"
        "print(found.result())\n"
    )
    told = set()
    for threads in ("1", "2", "3"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        told.add(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)
    assert len(told) == 1


def test_equal_outputs() -> None:
    r = np.linspace(-3, 5, 11, dtype=np.float32)
    assert compare(([r], [r.copy()])) == Similarity(1.0, SQNR_LIMIT)


def test_every_output_counts_alike_whatever_its_size_and_magnitude() -> None:
    big = np.full((1000,), 1e3, np.float32)
    small = np.array([1, 0], np.float32)
    found = compare(([big, small], [big, np.array([0, 1], np.float32)]))
    assert found.cosine == pytest.approx(0.5)
    # noise-to-signal ratios 0 and 2: mean 1
    assert found.sqnr_db == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.bool_, np.uint8])
def test_discrete_outputs_are_compared_by_agreement(kind: type) -> None:
    r = np.array([1, 0, 1, 1]).astype(kind)
    v = np.array([1, 1, 1, 1]).astype(kind)
    found = compare(([r], [v]))
    assert found.cosine == 0.75
    assert found.sqnr_db == pytest.approx(-10 * np.log10(0.25))


def test_zero_outputs() -> None:
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert compare(([zero], [zero])) == Similarity(1.0, SQNR_LIMIT)
    assert compare(([zero], [one])) == Similarity(0.0, -SQNR_LIMIT)
    assert compare(([one], [zero])).cosine == 0.0
    assert compare(([one], [zero])).sqnr_db == pytest.approx(0.0, abs=1e-12)


def test_opposite_outputs_give_minus_one() -> None:
    r = np.array([0.1, 0.7, -3], np.float32)
    assert compare(([r], [-r])).cosine == -1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_and_named(bad: float) -> None:
    r, v = np.ones(3, np.float32), np.array([1, bad, 1], np.float32)
    with pytest.raises(EvalError, match=r"output 'out0': the variant"):
        compare(([r], [v]))
    with pytest.raises(EvalError, match=r"output 'out0': the reference"):
        compare(([v], [r]))


def test_shapes_and_numbers_of_outputs_must_agree() -> None:
    one = np.ones((2, 3), np.float32)
    with pytest.raises(EvalError, match=r"\[3, 2\], the reference's is \[2, 3\]"):
        compare(([one], [one.T]))
    with pytest.raises(EvalError, match="2 reference outputs against 1"):
        compare(([one, one], [one]))


def test_nothing_to_compare() -> None:
    with pytest.raises(EvalError, match="no outputs"):
        Comparison(["out"]).result()
    with pytest.raises(EvalError, match="no outputs"):
        compare(([np.zeros((0, 4), np.float32)], [np.zeros((0, 4), np.float32)]))


@pytest.mark.parametrize(
    ("reference", "approximation", "nmse"),
    [([2, 1, -1], [-2, 4, 1], 4.833333), ([-2, 4, 1], [2, 1, -1], 1.380952), ([2, 1, -1], [2, 1, -1], 0.0)],
)
def test_normalized_mean_squared_errors_of_nncf(
    reference: list[float], approximation: list[float], nmse: float
) -> None:
    """NNCF, tests/common/accuracy_control/test_rank_functions.py: the SQNR is the same ratio in dB."""
    compared = Comparison(["y"])
    compared.add([np.float32(reference)], [np.float32(approximation)])
    assert 10 ** (-compared.result().sqnr_db / 10) == pytest.approx(nmse, abs=1e-6)
