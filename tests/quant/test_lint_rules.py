"""Each rule of lint: a planted fault fires it, a model in order does not, and the passes it names mend it."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.faults import FAULTS, Fault, clean, float_net, half, two_scales
from support.infer import infer
from support.quantized import quantized

from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.mend import mend
from qpass.passes import REGISTRY, FoldQuant, QuantizeWeights, StripQuant, TieConcatScales, parse_passes
from qpass.quant.lint.rule import Fix
from qpass.quant.lint.run import RULES, fixes, lint
from qpass.quant.presets import TARGETS, find_target
from qpass.rewrite.passes import spec_name

CASES = [(rule, fault) for rule, faults in FAULTS.items() for fault in faults]
IDS = [f"{rule}-{fault.target}-{i}" for i, (rule, fault) in enumerate(CASES)]
UNMENDABLE = {"weights-alone", "bit-length", "activation-per-channel", "batch-norm-between", "channel-axis"}


def rules_of(model: Model, target: str) -> set[str]:
    return {finding.rule for finding in lint(model, target)}


def outputs(model: Model) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    return infer(model, {"x": x})[0]


def test_every_rule_has_a_planted_fault() -> None:
    assert list(FAULTS) == sorted(FAULTS, key=[rule.name for rule in RULES].index)
    assert {rule.name for rule in RULES} == set(FAULTS)
    assert all(set(rule.targets) <= set(TARGETS) for rule in RULES)


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_in_order_has_no_findings(target: str) -> None:
    assert lint(clean(target), target) == ()


@pytest.mark.parametrize(("rule", "fault"), CASES, ids=IDS)
def test_a_planted_fault_is_found(rule: str, fault: Fault) -> None:
    model = fault.plant()
    found = [finding for finding in lint(model, fault.target) if finding.rule == rule]
    assert found
    for finding in found:
        op = model.graph.ops[finding.position]
        assert op.type == finding.op
        mentioned = {name for _, _, name in (*op.reads(), *op.writes())}
        assert not finding.tensor or finding.tensor in mentioned | set(model.graph.decls)
        assert all((finding.what, finding.consequence, finding.source))


@pytest.mark.parametrize(("rule", "fault"), CASES, ids=IDS)
def test_the_passes_that_a_finding_names_mend_it(rule: str, fault: Fault) -> None:
    model = fault.plant()
    mended, specs = mend(model, fault.target)
    left = lint(mended, fault.target)
    assert [finding for finding in left if finding.fix is not None] == []
    by_rule = {finding.rule: finding.fix for finding in lint(model, fault.target)}
    assert (rule in {finding.rule for finding in left}) is (by_rule[rule] is None)
    assert bool(specs) is any(by_rule.values())
    assert mend(mended, fault.target) == (mended, ())


def test_only_what_needs_data_or_a_decision_has_no_pass() -> None:
    without = {rule.name for rule in RULES if not rule.mends}
    assert without == UNMENDABLE
    known = {spec_name(cls) for cls in REGISTRY}
    for rule in RULES:
        words = rule.mends.replace(",", " ").replace(";", " ").split()
        assert not rule.mends or known & {word.split("{")[0] for word in words}, rule.name


def test_a_fault_of_another_engine_is_not_reported() -> None:
    model = FAULTS["weight-not-restored"][0].plant()
    assert "weight-not-restored" in rules_of(model, "onednn")
    assert rules_of(model, "lite") == set()


def test_unequal_scales_of_a_pair_are_found_and_left() -> None:
    (finding,) = lint(two_scales(2.0), "tensorrt")
    assert (finding.rule, finding.fix) == ("two-scales", None)


def test_a_weight_on_the_grid_may_go_without_a_pair() -> None:
    assert lint(FoldQuant(to="float")(clean()), "onednn") == ()
    assert "half-quantized" in rules_of(half(weights=False, activations=True), "onednn")


@pytest.mark.parametrize("rule", ["float-held-int8", "square-weight", "two-scales", "unhandled-op"])
def test_mending_the_spelling_keeps_the_numbers(rule: str) -> None:
    fault = FAULTS[rule][0]
    model = fault.plant()
    mended, specs = mend(model, fault.target)
    assert specs
    x = {
        port.name: np.random.default_rng(1).standard_normal((2, *port.shape[1:])).astype(np.float32)
        for port in model.feeds
    }
    np.testing.assert_array_equal(infer(mended, x)[0], infer(model, x)[0])


def test_a_dead_channel_stays_exactly_zero() -> None:
    model = FAULTS["zero-scale"][1].plant()
    mended, specs = mend(model, "tensorrt")
    assert specs == ("mend-scales",)
    assert mended.params["conv2d_0.w_0@scale"][1] == 1
    np.testing.assert_array_equal(outputs(mended), outputs(model))


def test_a_zero_scale_of_an_activation_is_taken_out() -> None:
    mended, _ = mend(FAULTS["zero-scale"][0].plant(), "generic")
    assert not any("x@scale" in name for name in mended.params)
    conv = next(op for op in mended.graph.ops if op.type == "conv2d")
    assert conv.input("Input") == ("x",)


def test_the_bias_of_zeros_that_the_framework_quantizes_is_named() -> None:
    model = FAULTS["zero-scale"][2].plant()
    (finding,) = [finding for finding in lint(model, "tensorrt") if finding.rule == "zero-scale"]
    assert "a bias of zeros behind a reshape" in finding.what
    assert model.graph.ops[finding.position].type == "quantize_linear"


def test_observed_scales_move_to_the_op_that_made_the_value() -> None:
    mended, _ = mend(FAULTS["unhandled-op"][0].plant(), "lite")
    assert [op.attr("out_threshold") for op in mended.graph.ops if op.type == "relu"] == [None, 2.5]
    assert not any(op.type == "moving_average_abs_max_scale" for op in mended.graph.ops)


def test_inputs_of_a_concatenation_get_the_largest_scale() -> None:
    mended, specs = mend(FAULTS["unequal-concat-scales"][0].plant(), "onednn")
    assert "tie-concat-scales" in specs
    concat = next(op for op in mended.graph.ops if op.type == "concat")
    scales = [mended.params[mended.graph.writer(mended.graph.read(concat, "X", i)).input("Scale")[0]] for i in range(2)]
    assert [scale.tolist() for scale in scales] == [[4.0], [4.0]]


def test_scales_that_are_computed_when_the_model_runs_cannot_be_tied() -> None:
    b = Builder().feed("x", [-1, 3, 8, 8])
    shape, made = b.shape("x"), []
    for kind in ("relu", "tanh"):
        source = b.at("x").unary(kind).current
        b.declare(f"{source}.scale", (1,)).declare(f"{source}.q", shape)
        made.append(f"{source}.q")
        b.op(
            "fake_quantize_dequantize_abs_max",
            {"X": source},
            {"Out": made[-1], "OutScale": f"{source}.scale"},
            {"bit_length": Attr.int(8)},
        )
    b.declare("both", (-1, 6, 8, 8)).op("concat", {"X": made}, {"Out": "both"}, {"axis": Attr.int(1)})
    model = b.model()
    assert TieConcatScales()(model) is model
    assert "unequal-concat-scales" not in rules_of(model, "onednn")


def test_fixes_come_once_each_in_an_order_that_works() -> None:
    both = StripQuant(layers=("linear_0.w_0",))(clean())
    assert fixes(lint(both, "onednn")) == ()
    findings = lint(FAULTS["missing-round-type"][1].plant(), "onednn")
    assert len(findings) > len(fixes(findings))
    assert fixes(findings) == ("add-quant-defaults", "fold-bias", "legalize-onednn", "mark-skip-quant")
    assert Fix("strip-quant", layers=("a b", "c")).spec == 'strip-quant{layers="a b","c"}'
    assert parse_passes(Fix("fold-quant", "to=float", ("w",)).spec) == (FoldQuant(to="float", layers=("w",)),)


def test_the_published_twin_can_be_mended() -> None:
    model = load(corpus("models/ppocr_cls_qat/inference.pdmodel"))
    assert {"encoding-unsupported", "missing-round-type", "not-simulated"} <= rules_of(model, "onednn")
    mended, specs = mend(model, "onednn")
    assert specs == ("convert-encoding{to=B}", "add-quant-defaults", "legalize-onednn", "mark-skip-quant")
    assert lint(mended, "onednn") == ()


def test_a_float_model_has_findings_of_its_own() -> None:
    assert rules_of(float_net(folded=False), "tensorrt") == {"batch-norm-unfolded"}
    assert lint(float_net(), "tensorrt") == ()


def test_a_wide_activation_is_fine_where_the_engine_takes_it() -> None:
    wide = quantized(float_net(), activation_bits=16)
    assert "bit-length" in rules_of(wide, "onednn")
    assert lint(wide, "lite") == ()


def test_integers_alone_are_for_lite_and_no_batch_norm_folds_into_them() -> None:
    model = float_net(folded=False)
    assert "batch-norm-unfolded" in rules_of(model, "lite")
    assert lint(QuantizeWeights()(model), "lite") == ()


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="onednn, tensorrt, lite, generic") as caught:
        lint(clean(), "tensor-rt")
    assert caught.value.hint == "did you mean 'tensorrt'?"


@pytest.mark.parametrize("target", TARGETS)
def test_targets_name_passes_and_encodings_that_exist(target: str) -> None:
    preset = find_target(target)
    assert parse_passes(",".join((*preset.before, *preset.after))) is not None
    assert preset.encoding in preset.accepts
    assert set(preset.accepts) <= {"A", "B", "C", "D"}
    assert 8 in preset.bits
    assert preset.source
