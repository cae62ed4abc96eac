"""`Builder`: write small programs by hand, with seeded weights and consistent shapes.

``Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).batch_norm().relu().model()``: each layer reads the current value and
makes its output the current one. `model()` fetches the current value and gives the model as if loaded from files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qpass.formats import pdmodel
from qpass.formats.framework_pb import framework_pb2
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.ir.params import Params
from qpass.ir.verify import verify


class Builder:
    """A program under construction; every method that adds something gives back the builder."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._ops: list[Op] = []
        self._decls: dict[str, Decl] = {}
        self._params: dict[str, np.ndarray] = {}
        self._feeds = 0
        self._fetches = 0
        self.current = ""

    def shape(self, name: str | None = None) -> tuple[int, ...]:
        """Declared shape of a name, or of the current value."""
        return self._decls[name or self.current].shape

    def at(self, name: str) -> Builder:
        """Make `name` the current value."""
        assert name in self._decls, name
        self.current = name
        return self

    def feed(self, name: str, shape: Sequence[int], dtype: DType = DType.FLOAT32) -> Builder:
        if "feed" not in self._decls:
            self._decls["feed"] = holder("feed")
        self.declare(name, shape, dtype)
        self._ops.append(Op.make("feed", {"X": "feed"}, {"Out": name}, {"col": Attr.int(self._feeds)}))
        self._feeds += 1
        return self

    def declare(self, name: str, shape: Sequence[int], dtype: DType = DType.FLOAT32) -> Builder:
        """Declare a temporary and make it the current value."""
        self._decls[name] = Decl(name, dtype=dtype, shape=tuple(shape))
        self.current = name
        return self

    def param(self, name: str, value: Sequence[int] | np.ndarray, *, scale: float = 1.0) -> str:
        """Declare a parameter: the given array, or seeded normal values of the given shape; its name."""
        if not isinstance(value, np.ndarray):
            value = (scale * self._random.standard_normal(tuple(value))).astype(np.float32)
        self._decls[name] = Decl(name, dtype=DType.of(value), shape=value.shape, persistable=True, is_parameter=True)
        self._params[name] = value
        return name

    def op(
        self,
        kind: str,
        inputs: Mapping[str, str | Sequence[str]],
        outputs: Mapping[str, str | Sequence[str]],
        attrs: Mapping[str, Attr] | None = None,
    ) -> Builder:
        """Add any op; its names must be declared, the current value stays."""
        self._ops.append(Op.make(kind, inputs, outputs, attrs))
        return self

    def conv2d(self, out: int, k: int = 3, *, stride: int = 1, weight: str | None = None) -> Builder:
        """Convolution with "same" padding; give the name of an existing weight to share it."""
        n, c, h, w = self.shape()
        weight = weight or self.param(self._fresh("conv2d", "w_0"), (out, c, k, k), scale=(2 / (c * k * k)) ** 0.5)
        return self._conv("conv2d", weight, 1, stride, (n, out, -(-h // stride), -(-w // stride)))

    def depthwise_conv2d(self, k: int = 3, *, stride: int = 1) -> Builder:
        n, c, h, w = self.shape()
        weight = self.param(self._fresh("depthwise_conv2d", "w_0"), (c, 1, k, k), scale=(2 / (k * k)) ** 0.5)
        return self._conv("depthwise_conv2d", weight, c, stride, (n, c, -(-h // stride), -(-w // stride)))

    def batch_norm(self) -> Builder:
        c = self.shape()[1]
        name, x = self._fresh("batch_norm", "w_0").removesuffix(".w_0"), self.current
        scale = self.param(f"{name}.w_0", self._random.uniform(0.5, 1.5, c).astype(np.float32))
        bias = self.param(f"{name}.b_0", (c,))
        mean = self.param(f"{name}.w_1", (c,))
        var = self.param(f"{name}.w_2", self._random.uniform(0.5, 1.5, c).astype(np.float32))
        self.declare(f"{name}.tmp_0", (c,)).declare(f"{name}.tmp_1", (c,)).declare(f"{name}.tmp_2", self.shape(x))
        return self.op(
            "batch_norm",
            {"X": x, "Scale": scale, "Bias": bias, "Mean": mean, "Variance": var},
            {
                "Y": self.current,
                "MeanOut": mean,
                "VarianceOut": var,
                "SavedMean": f"{name}.tmp_0",
                "SavedVariance": f"{name}.tmp_1",
            },
            {
                "epsilon": Attr.float(float(np.float32(1e-5))),
                "momentum": Attr.float(float(np.float32(0.9))),
                "is_test": Attr.bool(True),
                "use_global_stats": Attr.bool(False),
                "data_layout": Attr.str("NCHW"),
            },
        )

    def unary(self, kind: str, attrs: Mapping[str, Attr] | None = None) -> Builder:
        """An op that maps X to Out of the same shape (`relu`, `softmax`, `scale`, ...)."""
        x = self.current
        self.declare(self._fresh(kind, "tmp_0"), self.shape(x))
        return self.op(kind, {"X": x}, {"Out": self.current}, attrs)

    def relu(self) -> Builder:
        return self.unary("relu")

    def add(self, other: str) -> Builder:
        """Current value plus `other`, which has the same shape or is a bias of the last axis's length."""
        x = self.current
        self.declare(self._fresh("elementwise_add", "tmp_0"), self.shape(x))
        return self.op("elementwise_add", {"X": x, "Y": other}, {"Out": self.current}, {"axis": Attr.int(-1)})

    def pool2d(self, kind: str = "max", k: int = 2, *, whole: bool = False) -> Builder:
        """Pooling with stride `k`; `whole`: over the whole plane."""
        x, (n, c, h, w) = self.current, self.shape()
        self.declare(self._fresh("pool2d", "tmp_0"), (n, c, 1, 1) if whole else (n, c, h // k, w // k))
        attrs = {
            "pooling_type": Attr.str(kind),
            "ksize": Attr.ints((k, k)),
            "strides": Attr.ints((k, k)),
            "paddings": Attr.ints((0, 0)),
            "global_pooling": Attr.bool(whole),
            "exclusive": Attr.bool(True),
            "adaptive": Attr.bool(False),
            "ceil_mode": Attr.bool(False),
            "padding_algorithm": Attr.str("EXPLICIT"),
            "data_format": Attr.str("NCHW"),
        }
        return self.op("pool2d", {"X": x}, {"Out": self.current}, attrs)

    def flatten(self) -> Builder:
        """[N, ...] to [N, rest]."""
        x, shape = self.current, self.shape()
        out = self._fresh("flatten", "tmp_0")
        self.declare(f"{out}.xshape", (0, *shape))
        self.declare(out, (shape[0], int(np.prod(shape[1:]))))
        attrs = {"start_axis": Attr.int(1), "stop_axis": Attr.int(-1)}
        return self.op("flatten_contiguous_range", {"X": x}, {"Out": out, "XShape": f"{out}.xshape"}, attrs)

    def matmul(self, out: int, *, kind: str = "matmul_v2", weight: str | None = None) -> Builder:
        """[N, C] times a weight [C, out]; `kind` is ``matmul_v2`` or ``mul``."""
        x, (n, c) = self.current, self.shape()
        weight = weight or self.param(self._fresh("linear", "w_0"), (c, out), scale=c**-0.5)
        if kind == "mul":
            attrs = {"x_num_col_dims": Attr.int(1), "y_num_col_dims": Attr.int(1)}
        else:
            attrs = {"trans_x": Attr.bool(False), "trans_y": Attr.bool(False)}
        self.declare(self._fresh(kind, "tmp_0"), (n, out))
        return self.op(kind, {"X": x, "Y": weight}, {"Out": self.current}, attrs)

    def mul(self, out: int, *, weight: str | None = None) -> Builder:
        return self.matmul(out, kind="mul", weight=weight)

    def fetch(self, *names: str) -> Builder:
        if "fetch" not in self._decls:
            self._decls["fetch"] = holder("fetch")
        for name in names:
            self._ops.append(Op.make("fetch", {"X": name}, {"Out": "fetch"}, {"col": Attr.int(self._fetches)}))
            self._fetches += 1
        return self

    def model(self) -> Model:
        """The verified model; fetches the current value when nothing was fetched."""
        if not self._fetches:
            self.fetch(self.current)
        ops = tuple(Op(o.type, o.inputs, o.outputs, o.attrs, uid=i) for i, o in enumerate(self._ops))
        return verify(as_loaded((Graph(ops, self._decls),), Params(self._params)))

    def _conv(self, kind: str, weight: str, groups: int, stride: int, shape: Sequence[int]) -> Builder:
        x, pad = self.current, (self.shape(weight)[2] - 1) // 2
        self.declare(self._fresh(kind, "tmp_0"), shape)
        attrs = {
            "strides": Attr.ints((stride, stride)),
            "paddings": Attr.ints((pad, pad)),
            "dilations": Attr.ints((1, 1)),
            "groups": Attr.int(groups),
            "padding_algorithm": Attr.str("EXPLICIT"),
            "data_format": Attr.str("NCHW"),
        }
        return self.op(kind, {"Input": x, "Filter": weight, "Bias": ()}, {"Output": self.current}, attrs)

    def _fresh(self, kind: str, suffix: str) -> str:
        n = 0
        while f"{kind}_{n}.{suffix}" in self._decls:
            n += 1
        return f"{kind}_{n}.{suffix}"


def holder(name: str) -> Decl:
    """The declaration of the variable that `feed` ops read (or `fetch` ops write), or of a step scope."""
    kind = {"feed": "FEED_MINIBATCH", "fetch": "FETCH_LIST"}.get(name, "STEP_SCOPES")
    kinds = framework_pb2().VarType.DESCRIPTOR.enum_types_by_name["Type"].values_by_name
    record = framework_pb2().VarDesc(name="", persistable=False)
    record.type.type = kinds[kind].number
    return Decl(name, kind, None, (), kind != "STEP_SCOPES", None, record.SerializeToString())


def as_loaded(blocks: tuple[Graph, ...], params: Params) -> Model:
    """The model that comes of writing `blocks` to a file and reading it."""
    version = framework_pb2().ProgramDesc(version={"version": 0})
    loaded, extra = pdmodel.decode(pdmodel.encode(blocks, version.SerializeToString()), "memory")
    return Model(loaded, params, extra)


def block_attr(index: int) -> Attr:
    """The attribute by which a control-flow op names its body."""
    return Attr(AttrKind.BLOCK, index)
