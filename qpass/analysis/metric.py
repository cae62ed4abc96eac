"""Label-free metrics: how alike a variant's outputs are to the reference's, over all outputs and all batches.

With r the reference and v the variant, sums running over every element of one output in every batch::

    cosine = sum(r v) / sqrt(sum(r r) sum(v v))          SQNR = 10 log10(sum(r r) / sum((v - r)^2))  [dB]

Several outputs count alike, whatever their size: the cosine is the mean of the outputs' cosines, the SQNR is
``-10 log10`` of the mean of their noise-to-signal ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import EvalError

SQNR_LIMIT = 300.0
"""Largest absolute SQNR that is reported, in dB: float64 resolves about 313 dB (2**-52), and JSON has no infinity."""


@dataclass(frozen=True)
class Similarity:
    """How alike two sets of outputs are.

    Parameters
    ----------
    cosine : float
        -1 to 1; 1 for equal outputs.
    sqnr_db : float
        Signal-to-quantization-noise ratio in dB, limited to ±`SQNR_LIMIT`.
    """

    cosine: float
    sqnr_db: float


class Comparison:
    """Compares outputs batch by batch, in float64; memory does not grow with the data.

    Integer and boolean outputs (an arg_max) have no direction and no noise: the share of equal elements stands for
    the cosine, the share of unequal ones for the noise-to-signal ratio. Where both outputs are all zero they are equal
    (cosine 1); where one of them is, the cosine is 0.

    Parameters
    ----------
    names : sequence of str
        Names of the outputs, for messages.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._sums = [_Sums() for _ in self._names]

    def add(self, reference: Sequence[np.ndarray], variant: Sequence[np.ndarray]) -> None:
        """Take in one batch.

        Parameters
        ----------
        reference, variant : sequence of np.ndarray
            One array for each output, of equal shapes.

        Raises
        ------
        EvalError
            If outputs are missing, differ in shape, or are not finite.
        """
        if not len(reference) == len(variant) == len(self._names):
            raise EvalError(
                f"{len(reference)} reference outputs against {len(variant)}, expected {len(self._names)} "
                f"({', '.join(self._names)})"
            )
        for name, sums, r, v in zip(self._names, self._sums, reference, variant, strict=True):
            sums.add(r, v, f"output {name!r}")

    def result(self) -> Similarity:
        """The similarity over everything taken in.

        Raises
        ------
        EvalError
            If nothing was.
        """
        if not any(sums.count for sums in self._sums):
            raise EvalError(
                "there are no outputs to compare", hint="the data yielded no batch, or every output is empty"
            )
        counted = [sums for sums in self._sums if sums.count]
        return Similarity(
            cosine=float(np.mean([sums.cosine() for sums in counted])),
            sqnr_db=sqnr_db(float(np.mean([sums.noise_to_signal() for sums in counted]))),
        )


def sqnr_db(noise_to_signal: float) -> float:
    """``-10 log10`` of a noise-to-signal power ratio, in dB, limited to ±`SQNR_LIMIT`."""
    limit = 10.0 ** (SQNR_LIMIT / 10)
    return float(-10 * np.log10(np.clip(noise_to_signal, 1 / limit, limit)))


def noise_to_signal(noise: float, signal: float) -> float:
    """The ratio of two sums of squares; no noise is ratio 0 even without a signal."""
    return noise / signal if signal > 0 else (0.0 if noise == 0 else float("inf"))


def sum_of_products(a: np.ndarray, b: np.ndarray) -> float:
    """``sum(a b)``, the same to the last bit on any number of threads, which ``a @ b`` is not."""
    return float((a * b).sum())


class _Sums:
    """The running sums of one output."""

    def __init__(self) -> None:
        self.count = 0
        self._equal = 0
        self._rr = self._vv = self._rv = self._noise = 0.0
        self._discrete = False

    def add(self, reference: np.ndarray, variant: np.ndarray, where: str) -> None:
        if reference.shape != variant.shape:
            raise EvalError(
                f"the shape is {list(variant.shape)}, the reference's is {list(reference.shape)}",
                where=where,
                hint="outputs whose size depends on their content need an evaluation function",
            )
        self.count += reference.size
        if reference.dtype.kind in "biu":
            self._discrete = True
            self._equal += int(np.count_nonzero(reference == variant))
            return
        r = reference.astype(np.float64).ravel()
        v = variant.astype(np.float64).ravel()
        for values, whose in ((r, "the reference"), (v, "the variant")):
            if not np.isfinite(values).all():
                raise EvalError(f"{whose} has values that are NaN or infinite", where=where)
        self._rr += sum_of_products(r, r)
        self._vv += sum_of_products(v, v)
        self._rv += sum_of_products(r, v)
        noise = v - r
        self._noise += sum_of_products(noise, noise)

    def cosine(self) -> float:
        if self._discrete:
            return self._equal / self.count
        if self._rr == 0 or self._vv == 0:
            return float(self._rr == self._vv)
        return min(1.0, max(-1.0, self._rv / math.sqrt(self._rr * self._vv)))

    def noise_to_signal(self) -> float:
        if self._discrete:
            return 1 - self._equal / self.count
        return noise_to_signal(self._noise, self._rr)
