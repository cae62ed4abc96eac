"""Gradients of a model's outputs with respect to values inside it, by the framework's own backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qpass.formats import pdmodel
from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.runtime.feed import checked_feed
from qpass.runtime.paddle_env import PADDLE_ERRORS, engine_error, legacy_static

# What their backward ops read, and what the framework drops when it saves a model for inference.
_DROPPED = {
    "reshape2": "XShape",
    "transpose2": "XShape",
    "squeeze2": "XShape",
    "unsqueeze2": "XShape",
    "flatten2": "XShape",
    "flatten_contiguous_range": "XShape",
}

# Attributes that backward kernels ask for, and that programs of other versions or by hand may lack.
_ASKED_FOR = {"batch_norm": {"trainable_statistics": Attr.bool(False)}}

_SEED = "{}@direction"

# Gradients start from copies: the framework gives none for a value that is both a start and an end.
_START = "{}@start"


class Gradients:
    """Runs a model forward, then backward from its outputs to chosen values.

    Parameters
    ----------
    model : Model
        Float, with one block.
    targets : sequence of str
        Names of values that gradients start from.
    values : sequence of str
        Names of values that gradients are taken with respect to; each written once.

    Raises
    ------
    EngineError
        If Paddle has no backward op for an op on the way.
    """

    def __init__(self, model: Model, targets: Sequence[str], values: Sequence[str]) -> None:
        bare = _bare(model, targets)
        self._model = model
        try:
            with legacy_static() as paddle:
                place = paddle.CPUPlace()
                self._scope: Any = paddle.static.Scope()
                for name, array in model.params.items():
                    self._scope.var(name).get_tensor().set(np.array(array), place)
                self._executor: Any = paddle.static.Executor(place)
                self._program: Any = paddle.static.Program.parse_from_string(pdmodel.encode(bare.blocks, bare.extra))
                block = self._program.global_block()
                for variable in block.vars.values():
                    variable.stop_gradient = bool(variable.persistable)
                starts = [block.var(_START.format(name)) for name in targets]
                with paddle.static.program_guard(self._program):
                    seeds = [_seed(block, name) for name in targets]
                    found = paddle.static.gradients(starts, [block.var(name) for name in values], seeds)
                self._columns = [None if grad is None else grad.name for grad in found]
        except PADDLE_ERRORS as e:
            raise engine_error("Paddle cannot make the backward pass of the model", e) from e

    @property
    def reached(self) -> tuple[bool, ...]:
        """By value: whether the targets depend on it."""
        return tuple(name is not None for name in self._columns)

    def run(self, feed: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray]) -> list[np.ndarray | None]:
        """Gradients for one batch of ``sum(direction * target)``, over all elements of all targets.

        Parameters
        ----------
        feed : Mapping[str, np.ndarray]
        directions : Mapping[str, np.ndarray]
            By target, in its shape.

        Returns
        -------
        list of np.ndarray or None
            By value, in its shape; None where no target depends on it.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the executor fails.
        """
        batch = dict(checked_feed(self._model.feeds, feed))
        batch.update({_SEED.format(name): np.asarray(array, np.float32) for name, array in directions.items()})
        wanted = [name for name in self._columns if name is not None]
        try:
            with legacy_static():
                found = self._executor.run(self._program, feed=batch, fetch_list=wanted, scope=self._scope)
        except PADDLE_ERRORS as e:
            raise engine_error("the executor failed while it ran the model backward", e) from e
        arrays = dict(zip(wanted, found, strict=True))
        return [None if name is None else arrays[name] for name in self._columns]


def _seed(block: Any, name: str) -> Any:
    target = block.var(name)
    variable = block.create_var(name=_SEED.format(name), shape=target.shape, dtype=target.dtype)
    variable.stop_gradient = True
    return variable


def _bare(model: Model, targets: Sequence[str]) -> Model:
    """The model without feeds and fetches, which the executor adds itself, with what backward ops read, and copies."""
    graph = model.graph
    decls = dict(graph.decls)
    ops: list[Op] = []
    for op in graph.ops:
        slot = _DROPPED.get(op.type)
        if slot is not None and not op.output(slot):
            name = f"{op.output('Out')[0]}@{slot}"
            shape = decls[op.output("Out")[0]].shape
            decls[name] = dataclasses.replace(decls[op.output("Out")[0]], name=name, shape=(0, *shape))
            outputs = (*(held for held in op.outputs if held[0] != slot), (slot, (name,)))
            op = dataclasses.replace(op, outputs=outputs)
        missing = {name: attr for name, attr in _ASKED_FOR.get(op.type, {}).items() if name not in op.attrs}
        op = op.with_attrs(**missing) if missing else op
        if op.type not in ("feed", "fetch"):
            ops.append(op)
    for name in targets:
        start = _START.format(name)
        decls[start] = dataclasses.replace(decls[name], name=start)
        ops.append(Op.make("assign", {"X": name}, {"Out": start}))
    return model.replaced(graph=dataclasses.replace(graph, ops=tuple(ops), decls=decls))


def differentiable(model: Model, names: Sequence[str]) -> list[str]:
    """Those of these values that gradients can start from: floats."""
    return [name for name in names if model.graph.decls[name].dtype is DType.FLOAT32]
