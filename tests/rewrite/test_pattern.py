"""Patterns: what matches, what is legal, what a miss says, and the driver."""

from __future__ import annotations

from typing import ClassVar

import pytest
from support.build import Builder

from qpass.errors import PassError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.rewrite.apply import apply, explain
from qpass.rewrite.edit import Edit
from qpass.rewrite.pattern import Either, Match, Miss, Node, Param, Pattern, Value, main_output, match


class Tanh(Pattern):
    """tanh(relu(x)) becomes sigmoid(x)."""

    pattern = Node("tanh", "outer", X=Node("relu", "inner", X=Value("x")))

    def rewrite(self, match: Match, e: Edit) -> None:
        x = match.values["x"].name
        e.remove(match.ops["inner"])
        match.take_over(e, Op.make("sigmoid", {"X": x}, {"Out": match.result.name}))


class Sum(Pattern):
    """A sum whose terms are a parameter, or a product with one, and anything."""

    pattern = Node(
        "elementwise_add",
        "sum",
        X=Either(Node(("mul", "matmul_v2"), "product", X=Value("x"), Y=Param("w")), Value("x")),
        Y=Param("b"),
    )

    def rewrite(self, match: Match, e: Edit) -> None:
        raise AssertionError("only matched")


class Double(Pattern):
    pattern = Node("elementwise_add", X=Value("x"), Y=Value("x"))

    def rewrite(self, match: Match, e: Edit) -> None:
        attrs = {"scale": Attr.float(2.0)}
        match.take_over(e, Op.make("scale", {"X": match.values["x"].name}, {"Out": match.result.name}, attrs))


def chain() -> Builder:
    return Builder().feed("x", (-1, 4))


def types(model: Model) -> list[str]:
    return [op.type for op in model.graph.ops]


def found(pattern: Pattern, model: Model, anchor: int) -> Match | Miss:
    return match(pattern, model, model.graph, model.graph.ops[anchor], frozenset())


def only_miss(pattern: Pattern, model: Model) -> Miss:
    (miss,) = explain(model, pattern)
    assert apply(model, pattern) is model
    return miss


def test_captures() -> None:
    model = chain().relu().unary("tanh").model()
    hit = found(Tanh(), model, 2)
    assert isinstance(hit, Match)
    assert [op.type for op in hit.region] == ["relu", "tanh"]
    assert (hit.ops["outer"], hit.ops["inner"]) == (model.graph.ops[2], model.graph.ops[1])
    assert hit.values == {"x": ValueRef("x", 1)}
    assert hit.result == ValueRef("tanh_0.tmp_0", 1)


def test_rewrite() -> None:
    model = chain().relu().unary("tanh").unary("exp").model()
    made = apply(model, Tanh())
    assert types(made) == ["feed", "sigmoid", "exp", "fetch"]
    assert "relu_0.tmp_0" not in made.graph.decls
    assert apply(made, Tanh()) is made


def test_nothing_to_do_is_the_same_object() -> None:
    model = chain().unary("tanh").model()
    assert apply(model, Tanh()) is model


def test_neighbouring_matches_all_go() -> None:
    build = chain()
    for _ in range(300):
        build.relu().unary("tanh")
    made = apply(build.model(), [Tanh()])
    assert types(made) == ["feed", *["sigmoid"] * 300, "fetch"]


def test_same_name_twice_means_same_value() -> None:
    build = chain().relu()
    y = build.current
    assert types(apply(build.add(y).model(), Double())) == ["feed", "relu", "scale", "fetch"]
    miss = only_miss(Double(), chain().relu().add("x").model())
    assert miss.reason == "'x' stands for relu_0.tmp_0@1, found x@1"


def test_alternatives() -> None:
    build = chain().matmul(3)
    build.add(build.param("b", (3,)))
    hit = found(Sum(), build.model(), 2)
    assert isinstance(hit, Match)
    assert set(hit.ops) == {"sum", "product"}
    assert hit.values == {"x": ValueRef("x", 1), "w": ValueRef("linear_0.w_0", 0), "b": ValueRef("b", 0)}
    build = chain().relu()
    build.add(build.param("b", (4,)))
    hit = found(Sum(), build.model(), 2)
    assert isinstance(hit, Match)
    assert set(hit.ops) == {"sum"}
    assert set(hit.values) == {"x", "b"}


def test_the_furthest_alternative_explains() -> None:
    class Deep(Pattern):
        pattern = Node("tanh", X=Either(Node("exp"), Node("relu", X=Node("sigmoid", X=Value("x")))))

        def rewrite(self, match: Match, e: Edit) -> None:
            raise AssertionError("only matched")

    miss = only_miss(Deep(), chain().unary("log").relu().unary("tanh").model())
    assert miss.reason == "expected sigmoid, found log"
    assert miss.op.type == "log"
    assert miss.where == "block 0, op 3 (tanh)"


def test_parameter_term() -> None:
    build = chain()
    build.param("b", (4,))
    build.relu()
    y = build.current
    miss = only_miss(Sum(), build.at("x").add(y).model())
    assert miss.reason == "slot Y reads relu_0.tmp_0@1, which is not a parameter"
    assert miss.op.type == "relu"


def test_a_parameter_that_was_overwritten_is_none() -> None:
    build = chain()
    build.param("b", (4,))
    build.op("relu", {"X": "x"}, {"Out": "b"})
    assert only_miss(Sum(), build.add("b").model()).reason == "slot Y reads b@1, which is not a parameter"


def test_operand_count() -> None:
    class One(Pattern):
        pattern = Node("concat", X=Value("x"))

        def rewrite(self, match: Match, e: Edit) -> None:
            raise AssertionError("only matched")

    build = chain().declare("y", (-1, 8)).op("concat", {"X": ("x", "x")}, {"Out": "y"})
    assert only_miss(One(), build.model()).reason == "slot X holds 2 operands, expected 1"


def test_side_output_is_not_the_main_output() -> None:
    class Flat(Pattern):
        pattern = Node("relu", X=Node("flatten_contiguous_range", X=Value("x")))

        def rewrite(self, match: Match, e: Edit) -> None:
            raise AssertionError("only matched")

    model = Builder().feed("x", (-1, 4, 1)).flatten().at("flatten_0.tmp_0.xshape").relu().model()
    assert main_output(model.graph.ops[1]) == "Out"
    assert "not the main output" in only_miss(Flat(), model).reason


def test_values_that_escape() -> None:
    build = chain().relu()
    y = build.current
    model = build.unary("tanh").add(y).model()
    miss = only_miss(Tanh(), model)
    assert miss.reason == "relu_0.tmp_0@1 (Out) is also read by elementwise_add"
    assert miss.op is model.graph.ops[3]


def test_fetched_values_escape() -> None:
    build = chain().relu().unary("tanh")
    model = build.fetch("relu_0.tmp_0", build.current).model()
    assert only_miss(Tanh(), model).reason == "relu_0.tmp_0@1 (Out) is also read by fetch"


def test_unknown_ops_are_impure() -> None:
    class Opaque(Tanh):
        pattern = Node("tanh", "outer", X=Node("my_own_op", "inner", X=Value("x")))

    miss = only_miss(Opaque(), chain().unary("my_own_op").unary("tanh").model())
    assert miss.reason == "my_own_op is not known to be free of effects"


def test_writing_a_state_is_an_effect() -> None:
    build = chain()
    build.param("state", (4,))
    build.op("relu", {"X": "x"}, {"Out": "state"}).declare("y", (-1, 4))
    model = build.op("tanh", {"X": "state"}, {"Out": "y"}).model()
    assert only_miss(Tanh(), model).reason == "relu writes 'state', which outlives the run"


def test_source_overwritten_inside_the_region() -> None:
    build = chain().relu()
    y = build.current
    build.op("exp", {"X": "x"}, {"Out": "x"})
    model = build.at(y).unary("tanh").add("x").model()
    miss = only_miss(Tanh(), model)
    assert miss.reason == "x@1 (X) is overwritten before tanh runs"
    assert miss.op.type == "exp"


def test_in_place_region() -> None:
    build = chain().op("relu", {"X": "x"}, {"Out": "x"}).op("tanh", {"X": "x"}, {"Out": "x"})
    made = apply(build.unary("exp").model(), Tanh())
    assert types(made) == ["feed", "sigmoid", "exp", "fetch"]
    assert made.graph.read(made.graph.ops[2], "X") == ValueRef("x", 2)


def test_check_can_refuse() -> None:
    class Choosy(Tanh):
        def check(self, match: Match) -> Miss | None:
            return match.miss("not today", "inner")

    model = chain().relu().unary("tanh").model()
    miss = only_miss(Choosy(), model)
    assert (miss.reason, miss.op) == ("not today", model.graph.ops[1])
    assert str(miss).startswith("block 0, op 2 (tanh): not today (relu(")


def test_endless_rewriting_is_stopped() -> None:
    class Flip(Pattern):
        pattern = Node(("relu", "tanh"), "op", X=Value("x"))
        other: ClassVar[dict[str, str]] = {"relu": "tanh", "tanh": "relu"}

        def rewrite(self, match: Match, e: Edit) -> None:
            op = match.anchor
            match.take_over(e, Op(self.other[op.type], op.inputs, op.outputs))

    with pytest.raises(PassError, match=r"Flip: still matching after \d+ rounds on block 0"):
        apply(chain().relu().model(), Flip())


def test_sub_blocks_are_rewritten_and_captures_respected() -> None:
    from support.golden_case import FOLDER, Case

    model = Case.read((FOLDER / "drop_identity_captured_stays.txt").read_text(encoding="utf-8")).input()

    class Inner(Pattern):
        pattern = Node("relu", "op", X=Value("x"))

        def rewrite(self, match: Match, e: Edit) -> None:
            match.take_over(e, Op("exp", match.anchor.inputs, match.anchor.outputs))

    made = apply(model, Inner())
    assert [op.type for op in made.blocks[1].ops] == ["tanh", "exp"]
    assert "relu" not in types(made)
