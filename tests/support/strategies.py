"""Hypothesis strategies: `models()` for any valid small program, `runnable_models()` for those that Paddle can run."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from qpass.formats.framework_pb import framework_pb2
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.ir.params import Params
from qpass.ir.verify import verify
from support.build import Builder, as_loaded, block_attr, holder

_INT32 = st.integers(-(2**31), 2**31 - 1)
_INT64 = st.integers(-(2**63), 2**63 - 1)
_FLOAT32 = st.floats(width=32, allow_nan=False)
_FLOAT64 = st.floats(allow_nan=False)
_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=5)
_SUFFIXES = st.sampled_from(
    ("", "", "", "@GRAD", "@1", ".quantized.dequantized", " a b", '"', "\u6743\u91cd", "#", "\\")
)
_ATTR_NAMES = ("axis", "op_role", "op_callstack", "op_namescope", "with_quant_attr", "alpha", "a b", "op_device")
_VALUES = {
    AttrKind.INT: _INT32,
    AttrKind.LONG: _INT64,
    AttrKind.FLOAT: _FLOAT32,
    AttrKind.FLOAT64: _FLOAT64,
    AttrKind.STRING: _TEXT,
    AttrKind.BOOLEAN: st.booleans(),
    AttrKind.VAR: _TEXT,
    AttrKind.INTS: _INT32,
    AttrKind.LONGS: _INT64,
    AttrKind.FLOATS: _FLOAT32,
    AttrKind.FLOAT64S: _FLOAT64,
    AttrKind.STRINGS: _TEXT,
    AttrKind.BOOLEANS: st.booleans(),
    AttrKind.VARS: _TEXT,
}


@st.composite
def attrs(draw: st.DrawFn) -> dict[str, Attr]:
    """Attributes of every kind but those that name blocks (and no NaN, which is unequal to itself)."""
    names = draw(st.lists(st.sampled_from(_ATTR_NAMES), unique=True, max_size=3))
    return {name: draw(_attr(name)) for name in names}


@st.composite
def _attr(draw: st.DrawFn, name: str) -> Attr:
    kind = draw(st.sampled_from((*_VALUES, AttrKind.SCALAR, AttrKind.SCALARS)))
    if kind is AttrKind.SCALARS:
        number = framework_pb2().Scalar(type=2, i=draw(_INT64))
        message = framework_pb2().OpDesc.Attr(name=name, type=kind.value, scalars=[number])
        return Attr(kind, message.SerializeToString())
    if kind is AttrKind.SCALAR:
        return Attr(kind, framework_pb2().Scalar(type=3, r=draw(_FLOAT64)).SerializeToString())
    if kind.is_list:
        return Attr(kind, tuple(draw(st.lists(_VALUES[kind], max_size=3))))
    return Attr(kind, draw(st.none() | _VALUES[kind]))


@st.composite
def models(draw: st.DrawFn, *, max_ops: int = 8, sub_blocks: bool = True) -> Model:
    """Valid models that need not run.

    Among them: names written several times, `batch_norm` in-place pairs, duplicate operands, empty slots, absent
    operands, weights shared by ops, residuals, `while` and `conditional_block` with captured names, unknown op types,
    attributes of all kinds, feed and fetch ops in any order, parameters of several types.
    """
    made = _Program(draw, sub_blocks)
    made.root(max_ops)
    return verify(as_loaded(tuple(made.graphs()), Params(made.params)))


class _Program:
    """Blocks under construction; every choice is drawn."""

    def __init__(self, draw: st.DrawFn, sub_blocks: bool) -> None:
        self.draw = draw
        self.sub_blocks = sub_blocks
        self.names = 0
        self.parents: list[int] = []
        self.ops: list[list[Op]] = []
        self.decls: list[dict[str, Decl]] = []
        self.params: dict[str, np.ndarray] = {}
        self.weights: list[str] = []

    def graphs(self) -> list[Graph]:
        made = []
        for i, parent in enumerate(self.parents):
            ops = tuple(Op(o.type, o.inputs, o.outputs, o.attrs, uid=n) for n, o in enumerate(self.ops[i]))
            made.append(Graph(ops, self.decls[i], i, parent))
        return made

    def root(self, max_ops: int) -> None:
        self.open(-1)
        self.decls[0] |= {"feed": holder("feed"), "fetch": holder("fetch")}
        for _ in range(self.draw(st.integers(1, 3))):
            self.weight()
        feeds = [self.declare(0) for _ in range(self.draw(st.integers(1, 2)))]
        for col in self.draw(st.permutations(range(len(feeds)))):
            self.add(0, "feed", {"X": "feed"}, {"Out": feeds[col]}, {"col": Attr.int(col)})
        readable = list(feeds)
        self.fill(0, readable, max_ops)
        for col in range(self.draw(st.integers(1, 2))):
            self.add(0, "fetch", {"X": self.one(readable)}, {"Out": "fetch"}, {"col": Attr.int(col)})

    def open(self, parent: int) -> int:
        self.parents.append(parent)
        self.ops.append([])
        self.decls.append({})
        return len(self.parents) - 1

    def fill(self, block: int, readable: list[str], max_ops: int) -> None:
        """Draw ops; `readable` is extended by what they write."""
        shapes = [self.unary, self.in_place, self.binary, self.layer, self.batch_norm, self.opaque, self.source]
        if self.sub_blocks and block < 2:
            shapes += [self.conditional, self.loop]
        for _ in range(self.draw(st.integers(0, max_ops))):
            self.one(shapes)(block, readable)

    def unary(self, block: int, readable: list[str]) -> None:
        source = self.one(readable)
        self.add(block, self.one(["relu", "scale", "my_own_op"]), {"X": source}, {"Out": self.new(block, readable)})

    def in_place(self, block: int, readable: list[str]) -> None:
        """Write a name that was written before: from itself or from another value."""
        self.add(block, "relu", {"X": self.one(readable)}, {"Out": self.one(readable)})

    def binary(self, block: int, readable: list[str]) -> None:
        """Residuals, and ``add(a, a)``."""
        x, y = self.one(readable), self.one(readable)
        self.add(block, "elementwise_add", {"X": x, "Y": y}, {"Out": self.new(block, readable)})

    def layer(self, block: int, readable: list[str]) -> None:
        """An op with a weight that others may use too, and an empty slot."""
        inputs = {"Input": self.one(readable), "Filter": self.one(self.weights), "Bias": ()}
        self.add(block, "conv2d", inputs, {"Output": self.new(block, readable)})

    def batch_norm(self, block: int, readable: list[str]) -> None:
        source, scale, bias = self.one(readable), self.one(self.weights), self.one(self.weights)
        mean, variance = self.weight(), self.weight()
        inputs = {"X": source, "Scale": scale, "Bias": bias, "Mean": mean, "Variance": variance}
        outputs = {"Y": self.new(block, readable), "MeanOut": mean, "VarianceOut": variance, "SavedMean": ()}
        self.add(block, "batch_norm", inputs, outputs)

    def opaque(self, block: int, readable: list[str]) -> None:
        """An unknown op: absent and repeated operands, several outputs or none."""
        names = self.draw(st.lists(st.sampled_from([*readable, *self.weights, "", "@EMPTY@"]), max_size=4))
        outputs = [self.new(block, readable) for _ in range(self.draw(st.integers(0, 2)))]
        self.add(block, "my_own_op", {"Xs": names, "Nothing": ()}, {"Outs": [*outputs, "@EMPTY@"], "None": ()})

    def source(self, block: int, readable: list[str]) -> None:
        """An op without inputs."""
        self.add(block, "fill_constant", {}, {"Out": self.new(block, readable)})

    def conditional(self, block: int, readable: list[str]) -> None:
        """`conditional_block`: the body reads outer names and writes one that the op lists."""
        condition, target = self.one(readable), self.new(block, readable)
        body, captured = self.body(block, readable[:-1], [target])
        scope = self.scope(block)
        inputs = {"Cond": condition, "Input": captured}
        self.add(block, "conditional_block", inputs, {"Out": target, "Scope": scope}, {"sub_block": block_attr(body)})

    def loop(self, block: int, readable: list[str]) -> None:
        """`while`: the body reads outer names and overwrites them, its own condition among them."""
        carried = sorted({self.one(readable), self.one(readable)})
        body, captured = self.body(block, readable, carried)
        inputs = {"X": sorted({*captured, *carried}), "Condition": carried[0]}
        outputs = {"Out": carried, "StepScopes": self.scope(block)}
        self.add(block, "while", inputs, outputs, {"sub_block": block_attr(body)})

    def body(self, parent: int, outer: list[str], targets: list[str]) -> tuple[int, list[str]]:
        """A nested block that writes `targets`; its index, and the outer names that it reads."""
        block = self.open(parent)
        readable = list(outer)
        self.fill(block, readable, 3)
        for target in targets:
            self.add(block, "assign", {"X": self.one(readable)}, {"Out": target})
        nested = range(block, len(self.parents))
        used = {name for i in nested for op in self.ops[i] for _, _, name in op.reads()}
        return block, sorted(used & set(outer))

    def add(self, block: int, kind: str, inputs: dict, outputs: dict, more: dict[str, Attr] | None = None) -> None:
        drawn = {} if kind in ("feed", "fetch") else self.draw(attrs())
        self.ops[block].append(Op.make(kind, inputs, outputs, {**drawn, **(more or {})}))

    def new(self, block: int, readable: list[str]) -> str:
        name = self.declare(block)
        readable.append(name)
        return name

    def declare(self, block: int) -> str:
        name = self.name("t")
        dtype = self.one([DType.FLOAT32, DType.INT64, DType.BOOL])
        shape = tuple(self.draw(st.lists(st.sampled_from((-1, 1, 3)), max_size=3)))
        self.decls[block][name] = Decl(name, dtype=dtype, shape=shape, is_parameter=self.one([None, False]))
        return name

    def weight(self) -> str:
        name = self.name("w")
        shape = tuple(self.draw(st.lists(st.integers(1, 3), max_size=3)))
        dtype = self.one(["float32", "float16", "int8", "int64"])
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        self.decls[0][name] = Decl(name, dtype=DType.of(array), shape=shape, persistable=True, is_parameter=True)
        self.params[name] = array
        self.weights.append(name)
        return name

    def scope(self, block: int) -> str:
        name = self.name("scope")
        self.decls[block][name] = holder(name)
        return name

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}_{self.names}{self.draw(_SUFFIXES)}"

    def one(self, items: list):
        return self.draw(st.sampled_from(items))


@st.composite
def runnable_models(draw: st.DrawFn, *, max_layers: int = 6) -> Model:
    """Small CNNs and MLPs with one input ``x`` (float32 [-1, C, H, W] or [-1, C]) that Paddle can run.

    Layers: conv2d (some with a shared weight), depthwise_conv2d, batch_norm, relu, residual and doubled
    elementwise_add, pool2d, then matmul_v2 and mul. Weights follow from a drawn seed.
    """
    build = Builder(seed=draw(st.integers(0, 2**16)))
    if draw(st.booleans()):
        build.feed("x", [-1, draw(st.integers(1, 4)), 8, 8])
        for _ in range(draw(st.integers(1, max_layers))):
            _image_layer(draw, build)
        if draw(st.booleans()):
            return build.model()
        build.pool2d("avg", whole=True).flatten()
    else:
        build.feed("x", [-1, draw(st.integers(1, 6))])
    for _ in range(draw(st.integers(1, 3))):
        _row_layer(draw, build)
    return build.model()


def _image_layer(draw: st.DrawFn, build: Builder) -> None:
    c, h = build.shape()[1:3]
    kind = draw(st.sampled_from(("conv", "block", "twice", "depthwise", "norm", "relu", "residual", "double", "pool")))
    if kind == "conv":
        build.conv2d(draw(st.integers(1, 4)), draw(st.sampled_from((1, 3))), stride=draw(st.integers(1, 2)))
    elif kind == "block":
        build.conv2d(draw(st.integers(1, 4))).batch_norm().relu()
    elif kind == "twice":
        weight = build.param(f"shared_{draw(st.integers(0, 2**16))}.w_0", (c, c, 3, 3), scale=0.3)
        build.conv2d(c, weight=weight).relu().conv2d(c, weight=weight)
    elif kind == "depthwise":
        build.depthwise_conv2d()
    elif kind == "norm":
        build.batch_norm()
    elif kind == "relu":
        build.relu()
    elif kind == "residual":
        skip = build.current
        build.conv2d(c).batch_norm().relu().add(skip)
    elif kind == "double":
        build.add(build.current)
    elif h >= 2:
        build.pool2d(draw(st.sampled_from(("max", "avg"))))


def _row_layer(draw: st.DrawFn, build: Builder) -> None:
    build.matmul(draw(st.integers(1, 6)), kind=draw(st.sampled_from(("matmul_v2", "mul"))))
    if draw(st.booleans()):
        build.add(build.param(f"{build.current}.b_0", (build.shape()[1],)))
    if draw(st.booleans()):
        build.relu()
