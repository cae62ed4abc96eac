"""`QuantSpec`: how numbers are rounded to integers, without saying where or at what scale."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from qpass.errors import QuantError


class Rounding(enum.Enum):
    """How a scaled number becomes an integer; the value is Paddle's attribute `round_type`."""

    HALF_EVEN = 0
    HALF_AWAY = 1


@dataclass(frozen=True)
class QuantSpec:
    """Symmetric integer quantization: the zero point is 0 and `threshold` maps to ``2**(bits-1) - 1``.

    Parameters
    ----------
    bits : int
        2 to 16.
    axis : int or None
        Channel axis of per-channel scales; None is per tensor.
    rounding : Rounding
    narrow : bool
        Whether the lowest level is ``-(2**(bits-1) - 1)`` (Paddle's fake ops with round_type 1) or ``-2**(bits-1)``
        (`quantize_linear`, and the fake ops with round_type 0).
    """

    bits: int = 8
    axis: int | None = None
    rounding: Rounding = Rounding.HALF_EVEN
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise QuantError(f"bits is {self.bits}, expected 2 to 16")

    @property
    def qmax(self) -> int:
        """Highest level."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def qmin(self) -> int:
        """Lowest level."""
        return -self.qmax - (0 if self.narrow else 1)
