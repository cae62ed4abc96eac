"""What another process gets."""

from __future__ import annotations

import pickle
from typing import TypeVar

T = TypeVar("T")


def through_pickle(value: T) -> T:
    """The value as it arrives there."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - made here
