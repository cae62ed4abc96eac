"""`ObserverOptions`: the numbers that steer observers, under the names Paddle's users know."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qpass.errors import UsageError

_MAX_BINS = 1 << 22


@dataclass(frozen=True)
class ObserverOptions:
    """How scales are found; each algorithm reads what concerns it.

    Parameters
    ----------
    quant_bits : int
        2 to 16. KL, mse, emd and ptf ask what so many bits lose.
    hist_percent : float
        Share of the numbers that ``hist`` keeps, in (0, 1].
    bins : int
        Resolution of the histogram of ``hist`` and ``KL``: at most so many bins up to the largest absolute value, and
        with the default `upsample_bins` never fewer than 7/8 of them.
    upsample_bins : int
        Into how many a bin is divided while the range may still grow; mse, emd and ptf search in
        ``bins * upsample_bins`` bins.
    moving_rate : float
        Weight of the past for ``moving_average_abs_max``, in [0, 1).
    onnx_format : bool
        Which of its two formats Paddle is asked for; only for mse and emd with ``compat="paddle"``, where the old
        format sees no negative numbers.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    quant_bits: int = 8
    hist_percent: float = 0.99999
    bins: int = 2048
    upsample_bins: int = 16
    moving_rate: float = 0.9
    onnx_format: bool = True

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("quant_bits", self.quant_bits, 2, 16),
            ("bins", self.bins, 16, _MAX_BINS),
            ("upsample_bins", self.upsample_bins, 1, _MAX_BINS // self.bins if self.bins > 0 else 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
        for name, rate, fits in (
            ("hist_percent", self.hist_percent, 0 < self.hist_percent <= 1),
            ("moving_rate", self.moving_rate, 0 <= self.moving_rate < 1),
        ):
            if not math.isfinite(rate) or not fits:
                interval = "(0, 1]" if name == "hist_percent" else "[0, 1)"
                hint = "a share, not a percentage: 0.99999 for 99.999 %" if rate > 1 else None
                raise UsageError(f"{name} is {rate}, expected a number in {interval}", hint=hint)

    @property
    def levels(self) -> int:
        """The highest level: 127 for 8 bits."""
        return (1 << (self.quant_bits - 1)) - 1

    @property
    def fine_bins(self) -> int:
        """Bins of the histogram that grows with the data."""
        return self.bins * self.upsample_bins


DEFAULT_OPTIONS = ObserverOptions()
