"""The scales of `PostTrainingQuantization`, bit for bit and quirk by quirk: ``compat="paddle"``.

Source: python/paddle/static/quantization/post_training_quantization.py (2.6 and 3.3). Where they differ from the
default algorithms:

- mse and emd look for the best of 36 fractions in every batch, and keep the best loss *across* batches: the quietest
  batch decides the scale. The old format (``onnx_format=False``) clips all negative numbers to 0 while it searches.
- "emd" is |difference of means| + |difference of standard deviations|, not the earth mover's distance.
- ptf looks at the last batch only, and clips negative numbers to 0.
- hist and KL look at bins from the smallest to the largest |x|, which needs two passes, but count from 0 when they
  turn a bin into a scale. A tensor of one value everywhere gets a scale near 0 from KL.
"""

from __future__ import annotations

import abc
import math

import numpy as np

from qpass.quant.observer_options import ObserverOptions
from qpass.quant.record import Part, Record, TwoPassPart, View
from qpass.quant.threshold_search import kl_bin


class PaddleMeans(Part):
    """Every batch's mean of the samples' largest absolute values: 8 bytes a batch, since `np.mean` adds in pairs."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self.means: list[float] = []

    def observe(self, view: View) -> None:
        """See one batch."""
        self.means.append(view.mean_peak)

    def merge(self, other: PaddleMeans) -> None:
        """Go on with what `other` saw."""
        self.means += other.means


class PaddleHistogram(TwoPassPart):
    """`np.histogram` of |x| between the smallest and the largest |x| of all data: the range first, then the counts."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._low, self._high = math.inf, -math.inf
        self._edges: np.ndarray | None = None
        self.counts = np.zeros(options.bins, np.int64)

    def observe(self, view: View) -> None:
        """See one batch in the first pass."""
        magnitude = np.abs(view.real)
        self._low, self._high = min(self._low, float(magnitude.min())), max(self._high, float(magnitude.max()))

    def again(self, view: View) -> None:
        """See one batch in the second pass; what lies out of the range of the first is not counted."""
        self.counts += np.histogram(np.abs(view.real), bins=self.edges)[0]

    def merge(self, other: PaddleHistogram) -> None:
        """Add what `other` saw in the same pass."""
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._edges = None
        self.counts += other.counts

    @property
    def edges(self) -> np.ndarray:
        """[bins + 1] float64."""
        if self._edges is None:
            self._edges = np.histogram_bin_edges(np.empty(0), bins=self.options.bins, range=(self._low, self._high))
        return self._edges

    @property
    def width(self) -> float:
        """Width of the first bin."""
        return float(self.edges[1] - self.edges[0])


class _Quietest(Part, abc.ABC):
    """The scale with the smallest loss of any batch."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._loss = math.inf
        self.scale = 0.0

    def observe(self, view: View) -> None:
        """See one batch."""
        x = view.real.reshape(-1)
        peak = view.peak or 1e-8
        fraction = 0.3
        while fraction <= 1.0:
            scale = fraction * peak
            fraction += 0.02
            loss = self._measure(x, self._quantized(x, scale))
            if loss <= self._loss:
                self._loss, self.scale = loss, scale

    def merge(self, other: _Quietest) -> None:
        """Go on with what `other` saw."""
        if other._loss <= self._loss:
            self._loss, self.scale = other._loss, other.scale

    def _quantized(self, x: np.ndarray, scale: float) -> np.ndarray:
        n = self.options.levels
        y = x / scale if self.options.onnx_format else np.clip(x, 0.0, scale)
        if not self.options.onnx_format:
            y /= scale
        y *= n
        np.rint(y, out=y)
        if self.options.onnx_format:
            np.clip(y, -n - 1, n, out=y)
        y /= n
        y *= scale
        return y

    @abc.abstractmethod
    def _measure(self, x: np.ndarray, quantized: np.ndarray) -> float: ...


class PaddleMse(_Quietest):
    """`_sample_mse`: mean squared error."""

    def _measure(self, x: np.ndarray, quantized: np.ndarray) -> float:
        return float(((x - quantized) ** 2).mean())


class PaddleEmd(_Quietest):
    """`_sample_emd`: |difference of means| + |difference of standard deviations|."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._mean: np.floating = np.float32(0)
        self._std: np.floating = np.float32(0)

    def observe(self, view: View) -> None:
        """See one batch."""
        x = view.real.reshape(-1)
        self._mean, self._std = x.mean(), x.std()
        super().observe(view)

    def _measure(self, x: np.ndarray, quantized: np.ndarray) -> float:
        return float(np.abs(self._mean - quantized.mean()) + np.abs(self._std - quantized.std()))


class PaddlePtf(Part):
    """`_sample_ptf`: the best of an eighth, a quarter, a half and all of the last batch's largest |x|."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._seen = False
        self.scale = 0.0

    def observe(self, view: View) -> None:
        """See one batch."""
        self._seen = True
        self.scale = 0.0
        if view.peak:
            n, x = self.options.levels, view.real
            least = view.peak / n / 8
            losses = []
            for factor in (1, 2, 4, 8):
                step = least * factor
                losses.append(((x - np.clip(np.round(x / step), 0, n) * step) ** 2).mean())
            self.scale = n * (least * 2 ** losses.index(min(losses)))

    def merge(self, other: PaddlePtf) -> None:
        """Go on with what `other` saw."""
        if other._seen:
            self._seen, self.scale = True, other.scale


def paddle_avg(record: Record) -> float:
    """Mean of the batches' means."""
    return float(np.array(record.part(PaddleMeans).means).mean())


def paddle_hist(record: Record) -> float:
    """`_get_hist_scaling_factor`; -half a bin where rounding hides that everything is kept."""
    part = record.part(PaddleHistogram)
    reached = np.flatnonzero(np.cumsum(part.counts / float(part.counts.sum())) >= record.options.hist_percent)
    index = int(reached[0]) + 1 if reached.size else 0
    return (index - 0.5) * part.width


def paddle_kl(record: Record) -> float:
    """`cal_kl_threshold`."""
    part = record.part(PaddleHistogram)
    index = kl_bin(part.counts, record.options.levels)
    if index is None:
        below = np.flatnonzero(part.counts[: (part.counts.size - 1) // 2 + 1])
        index = int(below[-1]) if below.size else 0
    return (index + 0.5) * part.width
