"""Write `tests/data/control_flow.pdmodel` and `.pdiparams`: a real program with `while` and nested `conditional_block`.

Run it with PaddlePaddle 2.6 (3.3 fails to trace control flow into a `.pdmodel`).
The call stacks that Paddle records are dropped, for they name files of the machine that ran this.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
from paddle.base.proto import framework_pb2

PREFIX = Path(__file__).resolve().parents[1] / "tests" / "data" / "control_flow"


def main() -> None:
    paddle.enable_static()
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        x = paddle.static.data("x", [-1, 4], "float32")
        weight = paddle.static.create_parameter([4, 4], "float32", name="loop_weight")
        bias = paddle.static.create_parameter([4], "float32", name="branch_bias")
        i, n = paddle.full([1], 0, "int64"), paddle.full([1], 3, "int64")
        _, v = paddle.static.nn.while_loop(
            lambda i, v: paddle.less_than(i, n),
            lambda i, v: [i + 1, paddle.tanh(paddle.matmul(v, weight))],
            [i, x],
        )
        y = paddle.static.nn.cond(
            paddle.mean(v) > 0,
            lambda: v * 2.0,
            lambda: paddle.static.nn.cond(paddle.mean(v) > -0.3, lambda: v - bias, lambda: v + 1.0),
        )
        executor = paddle.static.Executor(paddle.CPUPlace())
        executor.run(startup)
        scope, random = paddle.static.global_scope(), np.random.default_rng(0)
        for name, shape in (("loop_weight", (4, 4)), ("branch_bias", (4,))):
            scope.find_var(name).get_tensor().set(random.standard_normal(shape).astype("float32"), paddle.CPUPlace())
        paddle.static.save_inference_model(str(PREFIX), [x], [y], executor, program=program)
    path = PREFIX.with_suffix(".pdmodel")
    message = framework_pb2.ProgramDesc.FromString(path.read_bytes())
    for block in message.blocks:
        for op in block.ops:
            kept = [attr for attr in op.attrs if attr.name != "op_callstack"]
            del op.attrs[:]
            op.attrs.extend(kept)
    path.write_bytes(message.SerializeToString())


if __name__ == "__main__":
    main()
