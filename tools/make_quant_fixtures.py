"""Write the quantized models of ``tests/data/quant``, with the quantization tools of Paddle itself.

``python tools/make_quant_fixtures.py a b t`` under Paddle 3.3.1, ``... c`` under Paddle 2.6.2: encoding A, encoding B,
A with one scale a tensor (``t``), and C, whose models Paddle 3 does not export as programs any more. All are one
residual net with a depthwise convolution and a product; ``float`` is its float original.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import paddle

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "data" / "quant"
SHAPE = (3, 8, 8)
STATIC = {
    "a": {"onnx_format": False},
    "b": {"onnx_format": True},
    "t": {"onnx_format": False, "weight_quantize_type": "abs_max"},
}


class Images(paddle.io.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).standard_normal(SHAPE).astype(np.float32)


class Net(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.stem = paddle.nn.Conv2D(3, 4, 3, padding=1)
        self.depthwise = paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False)
        self.head = paddle.nn.Linear(4, 5)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        h = paddle.nn.functional.relu(self.stem(x))
        y = paddle.nn.functional.relu(self.depthwise(h) + h)
        return self.head(paddle.mean(y, axis=[2, 3]))


def old_ir() -> contextlib.AbstractContextManager[object]:
    found = getattr(getattr(paddle, "pir_utils", None), "OldIrGuard", None)
    return found() if found else contextlib.nullcontext()


def write_static(kind: str, folder: Path) -> None:
    """Write the float model too: the same bytes each time."""
    from paddle.static.quantization import PostTrainingQuantization

    paddle.enable_static()
    executor, scope = paddle.static.Executor(paddle.CPUPlace()), paddle.static.Scope()
    program, startup = paddle.static.Program(), paddle.static.Program()
    paddle.seed(0)
    with (
        paddle.static.scope_guard(scope),
        paddle.static.program_guard(program, startup),
        paddle.utils.unique_name.guard(),
    ):
        x = paddle.static.data("x", [-1, *SHAPE])
        y = Net()(x)
        executor.run(startup)
        paddle.static.save_inference_model(str(folder / "float"), [x], [y], executor, program=program)
    scope = paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        loader = paddle.io.DataLoader(
            Images(), feed_list=[x], batch_size=2, places=paddle.CPUPlace(), return_list=False
        )
        tool = PostTrainingQuantization(
            executor=executor,
            scope=scope,
            model_dir=str(folder),
            model_filename="float.pdmodel",
            params_filename="float.pdiparams",
            data_loader=loader,
            batch_nums=2,
            algo="abs_max",
            quantizable_op_type=["conv2d", "depthwise_conv2d", "mul", "matmul_v2"],
            **STATIC[kind],
        )
        tool.quantize()
        tool.save_quantized_model(str(folder), f"{kind}.pdmodel", f"{kind}.pdiparams")


def write_dygraph(folder: Path) -> None:
    from paddle.quantization import PTQ, QuantConfig
    from paddle.quantization.observers import AbsmaxObserver

    paddle.seed(0)
    net = Net()
    net.eval()
    config = QuantConfig(activation=None, weight=None)
    config.add_type_config([paddle.nn.Conv2D, paddle.nn.Linear], activation=AbsmaxObserver(), weight=AbsmaxObserver())
    tool = PTQ(config)
    observed = tool.quantize(net)
    for i in range(len(Images())):
        observed(paddle.to_tensor(Images()[i][None]))
    converted = tool.convert(observed)
    converted.eval()
    spec = paddle.static.InputSpec([None, *SHAPE], "float32", "x")
    paddle.jit.save(converted, str(folder / "c"), input_spec=[spec])
    (folder / "c.pdiparams.info").unlink(missing_ok=True)


def drop_call_stacks(path: Path) -> None:
    """They name files of the machine that ran this."""
    from paddle.base.proto import framework_pb2

    program = framework_pb2.ProgramDesc()
    program.ParseFromString(path.read_bytes())
    for op in program.blocks[0].ops:
        kept = [attr for attr in op.attrs if attr.name != "op_callstack"]
        del op.attrs[:]
        op.attrs.extend(kept)
    path.write_bytes(program.SerializeToString())


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for kind in sys.argv[1:]:
        with old_ir():
            if kind == "c":
                write_dygraph(FOLDER)
            else:
                write_static(kind, FOLDER)
    for path in FOLDER.glob("*.pdmodel"):
        drop_call_stacks(path)


if __name__ == "__main__":
    main()
