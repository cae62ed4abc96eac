"""Metrics of single samples that need no labels: how much worse a sample's outputs are than the float model's.

Accuracy changes only when an answer flips, so a few hundred images leave most layers tied. What moves with every image:

- **Lost probability**, for outputs that are answers: how much less probability the float model's own answer has. With
  a the answer, ``loss = q(variant) - q(float)`` where ``q = sum of p[c] over all c but a``. That is ``1 - p[a]``, but
  added up from the others: softmax saturates, and a float32 near 1 has steps of 6e-8, while small probabilities keep
  seven digits down to 1e-38. Not ``-log p[a]``: it has no bound, so a few flipped answers would decide the mean and its
  interval, whereas a probability lost is between -1 and 1.
- **Noise share**, for other outputs: ``noise / (signal + noise)``, with the sums of squares of the sample's error and
  of the float model's output. For small noise it is the noise-to-signal ratio; where there is no signal it is 1, not
  infinite. Of whole numbers (the index of a class) it is the share that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qpass.analysis.metric import sqnr_db
from qpass.errors import EvalError

NOISE_SHARE = "noise share of the outputs"
LOST_PROBABILITY = "lost probability of the float model's answer"

_SUM_ERROR = 1e-3
"""How far a row of probabilities may be from 1: float16 resolves 5e-4 there."""


class FineMetric(Protocol):
    """Measures samples."""

    @property
    def name(self) -> str:
        """What is measured."""

    @property
    def why(self) -> str:
        """A sentence for the report: why this metric."""

    def losses(self, reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> np.ndarray:
        """How much worse each sample's outputs are than the float model's.

        Parameters
        ----------
        reference, outputs : sequence of np.ndarray
            Of the float model and of a variant: one array for each output, of equal shapes.

        Returns
        -------
        np.ndarray
            float64 of shape [samples], larger is worse; 0 for equal outputs.

        Raises
        ------
        EvalError
            If outputs are missing, differ in shape, or are not finite.
        """

    def hardness(self, reference: Sequence[np.ndarray]) -> np.ndarray:
        """How much is to be expected of each sample, from the float model's outputs alone: float64 of shape [samples].

        Larger is more; only the order counts.
        """


@dataclass(frozen=True)
class LostProbability:
    """Probability that the float model's own answer lost; the mean over outputs and over the answers of an output.

    Parameters
    ----------
    probabilities, logits : tuple of int
        Positions of the outputs that hold them, along their last axis.
    """

    probabilities: tuple[int, ...]
    logits: tuple[int, ...]
    name = LOST_PROBABILITY

    @property
    def why(self) -> str:
        """Why this metric."""
        what = "holds class probabilities" if self.probabilities else "has a row of class scores for each sample"
        taken = "" if self.probabilities else " (taken through softmax)"
        return (
            f"an output {what}{taken}, and what the float model's own answer loses moves with every sample, "
            "whereas accuracy moves only when an answer flips"
        )

    def losses(self, reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> np.ndarray:
        """See `FineMetric.losses`."""
        found = []
        for i in (*self.probabilities, *self.logits):
            r, v = _pair(reference, outputs, i)
            answer = r.argmax(axis=-1)[..., None]
            lost = _of_others(v, answer, i in self.logits) - _of_others(r, answer, i in self.logits)
            found.append(lost.reshape(len(r), -1).mean(axis=1))
        return np.asarray(np.mean(found, axis=0))

    def hardness(self, reference: Sequence[np.ndarray]) -> np.ndarray:
        """How unsure the float model is: the probability of everything but its own answer."""
        found = []
        for i in (*self.probabilities, *self.logits):
            r = reference[i].astype(np.float64)
            unsure = _of_others(r, r.argmax(axis=-1)[..., None], i in self.logits)
            found.append(unsure.reshape(len(r), -1).mean(axis=1))
        return np.asarray(np.mean(found, axis=0))


@dataclass(frozen=True)
class NoiseShare:
    """Share of noise in the power of each sample's outputs; the mean over outputs.

    Parameters
    ----------
    positions : tuple of int
        Positions of the outputs whose first axis is the samples.
    """

    positions: tuple[int, ...]
    name = NOISE_SHARE

    @property
    def why(self) -> str:
        """Why this metric."""
        return (
            "no output holds class probabilities or a row of class scores for each sample, and noise can be measured "
            "in any output"
        )

    def losses(self, reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> np.ndarray:
        """See `FineMetric.losses`."""
        return np.asarray(np.mean([_noise_share(*_pair(reference, outputs, i)) for i in self.positions], axis=0))

    def hardness(self, reference: Sequence[np.ndarray]) -> np.ndarray:
        """The power of outputs, which noise is a share of: the less, the harder."""
        return -np.asarray(np.mean([_power(reference[i]) for i in self.positions], axis=0))


def choose(reference: Sequence[np.ndarray], samples: int) -> FineMetric | None:
    """The metric for outputs like these; None where no output has its samples apart (see `why_none`).

    An output is taken for class probabilities when all rows along its last axis (of two or more) are non-negative and
    sum to 1, for class scores (logits) when it is of shape [samples, C >= 2] and not all within 0 and 1: those are
    independent probabilities, from which softmax would make nothing.

    Parameters
    ----------
    reference : sequence of np.ndarray
        The float model's outputs for one batch.
    samples : int
        Number of samples in the batch.
    """
    apart = [i for i, output in enumerate(reference) if _has_samples(output, samples)]
    rows = [i for i in apart if reference[i].dtype.kind == "f" and reference[i].ndim >= 2]
    rows = [i for i in rows if reference[i].shape[-1] >= 2 and reference[i].size]
    probabilities = tuple(i for i in rows if _are_probabilities(reference[i]))
    if probabilities:
        return LostProbability(probabilities, ())
    logits = tuple(i for i in rows if reference[i].ndim == 2 and not _within_one(reference[i]))
    if logits:
        return LostProbability((), logits)
    return NoiseShare(tuple(apart)) if apart else None


def losses_of(
    fine: FineMetric, pairs: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
) -> tuple[float, ...]:
    """Losses of all samples: of the float model's and a variant's outputs, batch by batch.

    Raises
    ------
    EvalError
        If outputs are missing, differ in shape, or are not finite.
    """
    return tuple(np.concatenate([fine.losses(reference, outputs) for reference, outputs in pairs]).tolist())


def why_none(reference: Sequence[np.ndarray], samples: int) -> str:
    """A sentence for the report: why `choose` found no metric."""
    shapes = ", ".join(str(list(output.shape)) for output in reference) or "none"
    return (
        f"No finer metric and no intervals: no output has one entry for each sample along its first axis "
        f"(outputs {shapes} for {samples} samples)."
    )


def loss_as_sqnr(loss: float) -> float:
    """The SQNR in dB of outputs with this noise share: ``10 log10(signal / noise)``, limited as in `sqnr_db`."""
    return sqnr_db(loss / (1 - loss) if loss < 1 else float("inf"))


def _has_samples(output: np.ndarray, samples: int) -> bool:
    return output.ndim >= 1 and output.shape[0] == samples and output.dtype.kind in "fiub"


def _are_probabilities(output: np.ndarray) -> bool:
    sums = output.sum(axis=-1, dtype=np.float64)
    return bool((output >= 0).all() and (np.abs(sums - 1) <= _SUM_ERROR).all())


def _within_one(output: np.ndarray) -> bool:
    return bool((output >= 0).all() and (output <= 1).all())


def _of_others(rows: np.ndarray, answer: np.ndarray, logits: bool) -> np.ndarray:
    """Probability of everything but `answer`."""
    weights = np.exp(rows - rows.max(axis=-1, keepdims=True)) if logits else rows.copy()
    total = weights.sum(axis=-1) if logits else 1.0
    np.put_along_axis(weights, answer, 0.0, axis=-1)
    return np.asarray(weights.sum(axis=-1) / total)


def _noise_share(reference: np.ndarray, output: np.ndarray) -> np.ndarray:
    r, v = (values.reshape(len(reference), -1) for values in (reference, output))
    if r.dtype.kind != "f":
        return np.asarray((r != v).mean(axis=1) if r.shape[1] else np.zeros(len(r)))
    noise, signal = np.square(v - r).sum(axis=1), np.square(r).sum(axis=1)
    return np.asarray(np.divide(noise, signal + noise, out=np.zeros_like(noise), where=noise > 0))


def _power(output: np.ndarray) -> np.ndarray:
    """Sum of squares of each sample."""
    return np.asarray(np.square(output.reshape(len(output), -1).astype(np.float64)).sum(axis=1))


def _pair(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray]:
    """Output `i` of both, checked; floats as float64."""
    if len(reference) != len(outputs):
        raise EvalError(f"{len(reference)} reference outputs against {len(outputs)}")
    r, v = reference[i], outputs[i]
    where = f"output {i}"
    if r.shape != v.shape:
        raise EvalError(
            f"the shape is {list(v.shape)}, the reference's is {list(r.shape)}",
            where=where,
            hint="outputs whose size depends on their content need an evaluation function",
        )
    if r.dtype.kind != "f":
        return r, v
    for values, whose in ((r, "the reference"), (v, "the variant")):
        if not np.isfinite(values).all():
            raise EvalError(f"{whose} has values that are NaN or infinite", where=where)
    return r.astype(np.float64), v.astype(np.float64)
