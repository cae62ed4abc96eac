"""How many digits a column of numbers needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_FEWEST, _MOST = 4, 8
_NOISE = 1e-12


@dataclass(frozen=True)
class Digits:
    """One number format for a column: four decimals, more only where four would make different numbers look equal.

    Parameters
    ----------
    decimals : int
        4 to 8.
    floor : float
        Absolute values up to it are rounding noise of the column and are written as zero.
    """

    decimals: int = _FEWEST
    floor: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Digits:
        """The format for these numbers: the fewest decimals that keep apart what differs in the eighth decimal.

        Noise is what lies below 1e-12 of the largest number: subtracting two float64 metrics leaves about 1e-16 of
        them.
        """
        column = list(values)
        floor = _NOISE * max((abs(v) for v in column if abs(v) != float("inf")), default=0.0)
        for decimals in range(_FEWEST, _MOST):
            if len({f"{v:.{decimals}f}" for v in column}) == len({f"{v:.{_MOST}f}" for v in column}):
                return cls(decimals, floor)
        return cls(_MOST, floor)

    def coarse(self, largest: float) -> Digits:
        """Fewer decimals for a picture: three digits of its largest number, at least four decimals, no exponents."""
        decimals = _FEWEST
        while decimals < self.decimals and abs(largest) < 10.0 ** (2 - decimals):
            decimals += 1
        return Digits(decimals, max(self.floor, 0.5 * 10.0**-decimals))

    def text(self, value: float) -> str:
        """`value` in this format; in ``%.4g`` where its decimals would all be zeros."""
        if abs(value) <= self.floor:
            value = 0.0
        fixed = f"{value:.{self.decimals}f}"
        return fixed if value == 0 or float(fixed) != 0 else f"{value:.4g}"
