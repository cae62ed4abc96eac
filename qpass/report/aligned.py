"""Tables of plain text: columns as wide as what stands in them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(header: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its header first; no blanks at their ends."""
    widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in (header, *table)]
