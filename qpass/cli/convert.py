"""`qpass convert`: spell the quantization of a model in another encoding."""

from __future__ import annotations

import argparse
from collections import Counter

from qpass.cli.common import add_json, add_model, add_output, load_model, print_json, split_names, written
from qpass.errors import UsageError
from qpass.quant.encodings import ENCODINGS, find_sites


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass convert`."""
    parser.epilog = (
        "example:\n"
        "  qpass convert slim/inference.pdmodel --to B -o int8/inference\n\n"
        "A: fake_quantize and fake_dequantize ops (onnx_format=False)\n"
        "B: quantize_linear and dequantize_linear, int8 weights (onnx_format=True)\n"
        "C: as paddle.quantization exports: float zero points, integers of weights held in float32\n"
        "D: simulated quantization, as quantization-aware training exports it"
    )
    add_model(parser)
    parser.add_argument("--to", required=True, choices=sorted(ENCODINGS), help="the encoding to write")
    parser.add_argument("--layers", action="append", metavar="NAMES", help="only these layers, by commas, or @FILE")
    add_output(parser, "prefix of the files to write")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass convert`."""
    from qpass.formats.files import check_target, save
    from qpass.passes import ConvertEncoding

    model = load_model(args)
    if not find_sites(model):
        raise UsageError(
            "nothing is quantized in this model, so there is nothing to convert",
            where=model.source.program,
            hint=f"qpass quantize --encoding {args.to} quantizes a float model",
        )
    check_target(model, args.output, overwrite=args.overwrite)
    made = ConvertEncoding(args.to, tuple(split_names(args.layers)))(model)
    program, params = save(made, args.output, overwrite=args.overwrite)
    before, after = (Counter(site.encoding for site in find_sites(each)) for each in (model, made))
    if args.json:
        print_json({"program": str(program), "params": str(params), "before": before, "after": after})
        return 0
    print(f"sites by encoding: {_words(before)} -> {_words(after)}")
    print(written(model, program, params))
    return 0


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{n} in {name}" for name, n in sorted(counts.items())) or "none"
