"""`Progress`: how a sweep tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Follows a sweep."""

    def start(self, total: int, done: int = 0) -> None:
        """The sweep begins: `total` layers, of which a checkpoint already holds `done`."""

    def advance(self, layer: str, metric: float) -> None:
        """One more layer is done."""


class Silent:
    """A `Progress` that says nothing."""

    def start(self, total: int, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, layer: str, metric: float) -> None:
        """Say nothing."""
