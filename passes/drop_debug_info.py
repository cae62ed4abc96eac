"""Drop what programs record about their own making: Python call stacks and training annotations.

Dropped where present: ``op_callstack`` (source lines), ``op_role_var`` (which gradients the op belonged to),
``op_namescope`` and ``op_device`` where they say nothing. Kept, because programs are read by them:

- ``op_role``: `Program.clone(for_test=True)` asks every op for it, and fails without (base/framework.py);
- ``op_namescope`` with a scope of its own: Paddle's quantization finds skipped layers there (``skip_quant``);
- ``op_device`` with a device: the executor places the op by it (framework/operator.cc, `ChooseKernel`);
- ``with_quant_attr``: it protects quantization attributes from being stripped when the program is saved again
  (base/framework.py, `_remove_training_info`).
"""

from __future__ import annotations

from dataclasses import dataclass

from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass

_ALWAYS = ("op_callstack", "op_role_var")
_WHERE_EMPTY = {"op_namescope": ("", "/"), "op_device": ("",)}


@dataclass(frozen=True)
class DropDebugInfo(Pass):
    """Drop call stacks and training annotations from every op."""

    def run(self, model: Model) -> Model:
        """The model without them, or `model` itself when it has none."""
        for graph in model.blocks:
            with edit(model, graph.index) as e:
                for op in graph.ops:
                    e.drop_attrs(op, _droppable(op))
            model = e.model
        return model


def _droppable(op: Op) -> tuple[str, ...]:
    said_nothing = (n for n, empty in _WHERE_EMPTY.items() if op.attr(n, None) in empty)
    return (*_ALWAYS, *said_nothing)
