"""What Paddle Inference's oneDNN int8 engine does with a model, op by op, as the engine itself tells.

The engine rewrites the program before it runs it: it takes the quantization ops out, fuses, and puts ``quantize`` and
``dequantize`` around the ops that it runs in int8. It can save what it made (``Config.enable_save_optim_model``). With
`cpu_quantize_squash_pass` left out, which only joins neighbours, every one of these ops still names the value of the
model that it stands at, and its scale: levels per unit, 127 or 255 over the threshold (Paddle,
fluid/framework/ir/onednn/cpu_quantize_pass.cc; the same in 2.6.2 and 3.3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpass.errors import EngineError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.runtime.engine_program import engine_program

SQUASH = "cpu_quantize_squash_pass"
_WEIGHTS = {"fused_conv2d": "Filter", "conv2d": "Filter", "depthwise_conv2d": "Filter", "fc": "W"}


@dataclass(frozen=True)
class Int8Value:
    """How the engine holds a value in 8 bits.

    Parameters
    ----------
    threshold : float
        The absolute value that maps to the highest level, in the tensor's own units.
    unsigned : bool
        Levels 0 to 255 (behind relu), else -128 to 127.
    """

    threshold: float
    unsigned: bool


@dataclass(frozen=True, eq=False)
class EngineOp:
    """One op of the rewritten program, by the model's own names.

    Parameters
    ----------
    type : str
        ``fused_conv2d``, ``fc``, ``pool2d``, ...
    outputs : tuple of str
        Values that it makes.
    reads : frozenset of str
        Values that it reads as int8; empty for a float op.
    weight : str or None
        Its weight parameter.
    weight_value : np.ndarray or None
        What the engine's passes made of that parameter: float32, stored integers dequantized, batch norms folded; it
        is what is rounded. None for a float op.
    weight_scales : np.ndarray or None
        float32, levels per unit, one or one per output channel; None for a float op.
    """

    type: str
    outputs: tuple[str, ...]
    reads: frozenset[str]
    weight: str | None
    weight_value: npt.NDArray[np.float32] | None
    weight_scales: npt.NDArray[np.float32] | None

    @property
    def int8(self) -> bool:
        """Whether it computes in int8."""
        return bool(self.reads)


@dataclass(frozen=True, eq=False)
class OneDNNPlan:
    """What the engine does with a model.

    Parameters
    ----------
    stored : Mapping[str, Int8Value]
        Values that ops make in int8: every reader sees the quantized value. Not among them is what a convolution or
        `fc` makes for float ops alone: `_float_after_all`.
    quantized : Mapping[str, Int8Value]
        Float values that are quantized for some of their readers.
    ops : tuple of EngineOp
        In program order, without the quantize and dequantize ops.
    """

    stored: Mapping[str, Int8Value]
    quantized: Mapping[str, Int8Value]
    ops: tuple[EngineOp, ...]

    def same_as(self, other: OneDNNPlan) -> bool:
        """Whether the same values are held in 8 bits at the same scales, by the same ops."""
        return (
            self.stored == other.stored
            and self.quantized == other.quantized
            and {(op.type, op.outputs, op.reads) for op in self.ops if op.int8}
            == {(op.type, op.outputs, op.reads) for op in other.ops if op.int8}
        )

    def maker(self, name: str) -> EngineOp | None:
        """The op that makes a value; None where fusion swallowed it."""
        return next((op for op in self.ops if name in op.outputs), None)


def onednn_plan(model: Model, fetch: Sequence[ValueRef] | None = None) -> OneDNNPlan:
    """Ask the engine what it would run in int8.

    Parameters
    ----------
    model : Model
        With parameters; quantized in encoding A, B or D.
    fetch : sequence of ValueRef, optional
        Values to return in place of the model's outputs: that may change what is fused and quantized.

    Raises
    ------
    EngineError
        If Paddle refuses the model, or does not save what it made of it.
    """
    made = engine_program(model, fetch, int8=True, delete_passes=(SQUASH,))
    return read_plan(made.graph.ops, made.params)


def read_plan(ops: Sequence[Op], params: Mapping[str, np.ndarray]) -> OneDNNPlan:
    """The plan that a rewritten, unsquashed program spells, by its ops and parameters."""
    quantized = {op.input("Input")[0]: _value(op) for op in ops if op.type == "quantize"}
    named = {op.output("Output")[0]: op.input("Input")[0] for op in ops if op.type == "quantize"}
    makers = {name: op for op in ops for _, _, name in op.writes()}
    stored: dict[str, Int8Value] = {}
    for op in ops:
        if op.type == "dequantize":
            inside, name = op.input("Input")[0], op.output("Output")[0]
            named[inside] = name
            if not (name not in quantized and _float_after_all(makers[inside])):
                stored[name] = _value(op)
    made = tuple(
        _engine_op(op, named, params) for op in ops if op.type not in ("quantize", "dequantize", "feed", "fetch")
    )
    return OneDNNPlan(stored, {n: v for n, v in quantized.items() if n not in stored}, made)


def _float_after_all(maker: Op) -> bool:
    """Whether an op makes float where no int8 op reads what it makes: the squash pass joins it with the dequantize op.

    Source: cpu_quantize_squash_pass.cc, OpDequantSquash; not where a residual sum is fused into the op.
    """
    return "force_fp32_output" in maker.attrs and not maker.attr("fuse_residual_connection")


def _value(op: Op) -> Int8Value:
    unsigned, scale = op.attr("is_negative_input") is False, op.attr("Scale")
    if not isinstance(scale, float) or not scale > 0:
        raise EngineError(f"the engine's scale is {scale!r}, expected a number > 0", where=str(op))
    return Int8Value((255 if unsigned else 127) / scale, unsigned)


def _engine_op(op: Op, named: Mapping[str, str], params: Mapping[str, np.ndarray]) -> EngineOp:
    slot = _WEIGHTS.get(op.type)
    names = op.input(slot) if slot else ()
    scales = op.attr("Scale_weights")
    reads = frozenset(named[name] for _, _, name in op.reads() if name in named)
    int8 = bool(reads) and bool(names) and isinstance(scales, tuple)
    return EngineOp(
        op.type,
        tuple(named.get(name, name) for _, _, name in op.writes()),
        reads,
        names[0] if names else None,
        np.array(params[names[0]], np.float32) if int8 else None,
        np.array(scales, np.float32) if int8 else None,
    )
