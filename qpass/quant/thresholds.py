"""`Thresholds`: what a scale table says of the values of a graph, those that share one threshold joined."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from qpass.errors import QuantError
from qpass.ir.graph import Graph, ValueRef
from qpass.quant.scales import ScaleTable, key


class Thresholds:
    """Thresholds of activations by value; of tied ones, the largest of their group.

    Parameters
    ----------
    graph : Graph
    table : ScaleTable
    ties : sequence of tuple of ValueRef
        Groups that share one threshold.
    """

    def __init__(self, graph: Graph, table: ScaleTable, ties: Sequence[tuple[ValueRef, ...]]) -> None:
        self._graph = graph
        self._table = table.activations
        self._tied = {ref: group for group in ties for ref in group}

    def __getitem__(self, ref: ValueRef) -> np.ndarray:
        """The threshold of a value: float32, shape ().

        Raises
        ------
        QuantError
            If the table lacks it, or one that it is tied to.
        """
        group = self._tied.get(ref, (ref,))
        found = [threshold_of(self._table, key(self._graph, other), "activation") for other in group]
        return np.asarray(max(found), np.float32)


def threshold_of(thresholds: Mapping[str, float] | Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    """What a table of scales says of one tensor: float32, shape () or (C,).

    Raises
    ------
    QuantError
        If it says nothing; the message names the nearest tensor that it knows.
    """
    if name not in thresholds:
        near = difflib.get_close_matches(name, list(thresholds), 1)
        raise QuantError(
            f"the scale table has no threshold for it{f'; the nearest is {near[0]!r}' if near else ''}",
            where=f"{what} {name!r}",
            hint="calibrate this model with the same op types",
        )
    return np.asarray(thresholds[name], np.float32)
