"""`qpass inspect`: what is in a model."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from qpass.cli.common import add_json, add_model, load_model, print_json, size
from qpass.ir.graph import Use
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.int8_share import Int8Share, int8_share
from qpass.quant.layers import Layer, find_layers
from qpass.quant.ops import DATA_SLOTS
from qpass.quant.site import QuantSite
from qpass.quant.stored import integers_alone


@dataclass(frozen=True)
class LayerFacts:
    """One layer: its weight's shape, and how weight and activation are quantized (None: not).

    `weight` is encoding and storage; thresholds are the largest of the channels, in the tensor's own units.
    """

    layer: str
    family: str
    shape: list[int]
    weight: str | None
    weight_absmax: float | None
    activation: str | None
    activation_threshold: float | None


@dataclass(frozen=True)
class Facts:
    """What `qpass inspect` tells; sizes are in bytes. `int8` is None without quantization, or without parameters."""

    format: str
    program: str | None
    params: str | None
    feeds: list[str]
    fetches: list[str]
    blocks: int
    ops: dict[str, int]
    parameters: int
    parameter_bytes: int
    int8_parameter_bytes: int
    float_parameter_bytes: int
    sites: dict[str, int]
    observers_only: int
    integers_alone: int
    layers_quantized: int
    layers: list[LayerFacts]
    int8: Int8Share | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass inspect`."""
    parser.description = (
        "What is in a model: interface, ops, sizes, layers, quantization sites. For a quantized model also what Paddle "
        "Inference's oneDNN int8 engine will make of it: the share of the multiply-adds in int8, the conversions "
        "between int8 and float ops, and what keeps ops from being fused: why a small net gains little."
    )
    parser.epilog = (
        "example:\n"
        "  qpass inspect inference.pdmodel\n"
        "  qpass inspect quant/inference --layers\n"
        "  qpass inspect quant/inference --engine int8"
    )
    add_model(parser)
    parser.add_argument(
        "--engine",
        choices=("int8",),
        help="ask the engine itself which ops it runs in int8 (loads paddle), beside what the program tells",
    )
    parser.add_argument("--layers", action="store_true", help="list every layer with its thresholds")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass inspect`."""
    model = load_model(args, structure_only=args.engine is None)
    facts = describe(model)
    engine = None if args.engine is None else engine_ops(model)
    if args.json:
        print_json({**dataclasses.asdict(facts), **({} if engine is None else {"engine": engine})})
        return 0
    print("\n".join(render(facts, layers=args.layers)))
    for kind, counts in (engine or {}).items():
        print("\n".join([f"  the engine runs in {kind}:", *_wrapped([f"{name} {n}" for name, n in counts.items()])]))
    return 0


def engine_ops(model: Model) -> dict[str, dict[str, int]]:
    """Numbers of ops by type that the oneDNN int8 engine makes of a model, under ``int8`` and ``float``.

    Raises
    ------
    EngineError
        If the model is not quantized, or Paddle refuses it.
    """
    from qpass.runtime.onednn_plan import onednn_plan

    ops = onednn_plan(model).ops
    return {
        kind: dict(Counter(op.type for op in ops if op.int8 is int8).most_common())
        for kind, int8 in (("int8", True), ("float", False))
    }


def describe(model: Model) -> Facts:
    """Facts about a model: interface, ops, sizes, layers, quantization sites."""
    sites = find_sites(model)
    by_use = {use: site for site in sites for use in site.uses}
    layers = [_layer_facts(model, layer, by_use) for layer in find_layers(model)]
    ops = Counter(op.type for graph in model.blocks for op in graph.ops)
    kinds = Counter(f"{site.encoding} {site.role.value}" for site in sites)
    return Facts(
        format=model.source.format,
        program=model.source.program,
        params=model.source.params,
        feeds=[str(port) for port in model.feeds],
        fetches=[str(port) for port in model.fetches],
        blocks=len(model.blocks),
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        parameters=len(model.params),
        parameter_bytes=model.params.nbytes,
        float_parameter_bytes=_float_bytes(model),
        int8_parameter_bytes=sum(a.nbytes for a in model.params.values() if a.dtype.name == "int8"),
        sites=dict(sorted(kinds.items())),
        observers_only=sum(site.observer_only for site in sites),
        integers_alone=len(set(integers_alone(model).values())),
        layers_quantized=sum(row.weight is not None and row.activation is not None for row in layers),
        layers=layers,
        int8=int8_share(model) if sites and model.params else None,
    )


def _float_bytes(model: Model) -> int:
    """Size of the parameters if nothing were quantized: integers as float32, no scales, no zero points."""
    ops = [op for graph in model.blocks for op in graph.ops if op.type in DATA_SLOTS]
    data = {name for op in ops for name in op.input(DATA_SLOTS[op.type][0])}
    beside = {name for op in ops for _, _, name in (*op.reads(), *op.writes())} - data
    kept = {name: array for name, array in model.params.items() if name not in beside}
    return sum(4 * a.size if n in data and a.itemsize < 4 else a.nbytes for n, a in kept.items())


def _layer_facts(model: Model, layer: Layer, by_use: Mapping[Use, QuantSite]) -> LayerFacts:
    weight = next((by_use[op.weight] for op in layer.ops if op.weight in by_use), None)
    activation = next((by_use[op.activation] for op in layer.ops if op.activation in by_use), None)
    decl = model.graph.decls.get(layer.name)
    return LayerFacts(
        layer=layer.name,
        family=layer.family,
        shape=list(decl.shape) if decl else [],
        weight=None if weight is None else f"{weight.encoding}, {weight.storage.value}",
        weight_absmax=_largest(weight),
        activation=None if activation is None else activation.encoding,
        activation_threshold=_largest(activation),
    )


def _largest(site: QuantSite | None) -> float | None:
    return float(site.threshold.max()) if site is not None and site.threshold.size else None


def render(facts: Facts, *, layers: bool) -> list[str]:
    """Lines for people."""
    lines = [f"{facts.format} {facts.program or '(memory)'}"]
    lines += [f"  feed   {port}" for port in facts.feeds]
    lines += [f"  fetch  {port}" for port in facts.fetches]
    lines.append(f"  {sum(facts.ops.values())} ops in {facts.blocks} block{'s' if facts.blocks > 1 else ''}:")
    lines += _wrapped([f"{name} {n}" for name, n in facts.ops.items()])
    if facts.parameters:
        share = facts.int8_parameter_bytes / max(facts.parameter_bytes, 1)
        lines.append(f"  {facts.parameters} parameters, {size(facts.parameter_bytes)}, {share:.0%} of it int8")
        if facts.sites:
            lines.append(f"  {size(facts.float_parameter_bytes)} without quantization, weights in float32")
    else:
        lines.append("  parameters: none loaded")
    lines.append(f"  {len(facts.layers)} layers with weights, {facts.layers_quantized} of them quantized")
    lines += [f"  encoding {name}: {n} sites" for name, n in facts.sites.items()]
    if facts.integers_alone:
        lines.append(f"  weights stored as integers alone, as Paddle Lite reads them: {facts.integers_alone}")
    if facts.observers_only:
        lines.append(f"  {facts.observers_only} sites only observe (Paddle runs them as identity)")
    if facts.int8 is not None:
        lines += _share_lines(facts.int8)
    if layers:
        lines += [_layer_line(row) for row in facts.layers]
    return lines


def _share_lines(share: Int8Share) -> list[str]:
    if not share.int8_layers:
        return ["  nothing would run in oneDNN's int8 engine: qpass lint --target onednn tells what stands in the way"]
    line = f"  in oneDNN's int8 engine: {share.int8_layers} of {share.layers} layers"
    if share.unknown:
        line += f"; multiply-adds unknown, the program does not say the shapes of {share.unknown} layers"
    elif share.macs:
        line += f", {share.int8_macs / share.macs:.1%} of {share.macs / 1e6:.4g} million multiply-adds a sample"
    lines = [line, f"    {share.quantized} values are quantized and {share.dequantized} dequantized between its ops"]
    if share.float_between:
        lines[1] += f"; float ops between: {', '.join(share.float_between)}"
    if share.batch_norms:
        lines.append(f"    {share.batch_norms} batch norms are in no layer, and run on their own (fold-batch-norm)")
    if share.reshaped_biases:
        lines.append(
            f"    {share.reshaped_biases} biases are added through a reshape, and run on their own (fold-bias)"
        )
    return lines


def _layer_line(row: LayerFacts) -> str:
    text = f"    {row.layer}  {row.family}{row.shape}"
    if row.weight:
        text += f"  weight {row.weight}, absmax {_number(row.weight_absmax)}"
    if row.activation:
        text += f"  activation {row.activation}, threshold {_number(row.activation_threshold)}"
    return text


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


def _wrapped(words: list[str], width: int = 100) -> list[str]:
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > width:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return [*lines, line.rstrip(",")]
