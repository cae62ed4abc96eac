"""Shapes of the values of a program for inputs of given shapes, by the framework's own shape inference."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from qpass.formats import pdmodel
from qpass.ir.model import Model
from qpass.runtime.paddle_env import PADDLE_ERRORS, engine_error, legacy_static


def infer_shapes(model: Model, feeds: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
    """Shapes by name, of all tensors that the root block declares.

    What depends on the content of a value (a shape computed by ops) stays as it is declared, with -1 for what is open.

    Parameters
    ----------
    model : Model
        With each name written once.
    feeds : Mapping[str, tuple of int]
        Shapes of the inputs.

    Raises
    ------
    EngineError
        If Paddle refuses the program.
    """
    try:
        with legacy_static() as paddle:
            program = paddle.static.Program.parse_from_string(pdmodel.encode(model.blocks, model.extra))
            block = program.global_block()
            for name, shape in feeds.items():
                block.desc.find_var(name.encode()).set_shape(list(shape))
            for op in block.ops:
                if op.type not in ("feed", "fetch"):
                    with contextlib.suppress(*PADDLE_ERRORS):  # it keeps the shape it is declared with
                        op.desc.infer_shape(block.desc)
            names = [name for name, decl in model.graph.decls.items() if decl.kind == "tensor"]
            return {name: tuple(block.desc.find_var(name.encode()).shape()) for name in names}
    except PADDLE_ERRORS as e:
        raise engine_error("Paddle refuses the program", e) from e
