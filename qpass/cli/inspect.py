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
from qpass.quant.layers import Layer, find_layers
from qpass.quant.ops import DATA_SLOTS
from qpass.quant.site import QuantSite


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
    """What `qpass inspect` tells; sizes are in bytes."""

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
    layers_quantized: int
    layers: list[LayerFacts]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass inspect`."""
    parser.epilog = "example:\n  qpass inspect inference.pdmodel\n  qpass inspect quant/inference --layers"
    add_model(parser)
    parser.add_argument("--layers", action="store_true", help="list every layer with its thresholds")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass inspect`."""
    facts = describe(load_model(args, structure_only=True))
    if args.json:
        print_json(dataclasses.asdict(facts))
    else:
        print("\n".join(render(facts, layers=args.layers)))
    return 0


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
        layers_quantized=sum(row.weight is not None and row.activation is not None for row in layers),
        layers=layers,
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
    if facts.observers_only:
        lines.append(f"  {facts.observers_only} sites only observe (Paddle runs them as identity)")
    if layers:
        lines += [_layer_line(row) for row in facts.layers]
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
