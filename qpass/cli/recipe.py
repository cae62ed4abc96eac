"""Arguments of commands that write quantized models: what is quantized, in how many bits, and how it is refined."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from qpass.cli.common import OBSERVING, split_names
from qpass.quant.encodings import ENCODINGS

_BITS = range(2, 17)
_PLAIN = ("algo", "weight_algo", *OBSERVING, "engine", "weight_bits", "activation_bits", "round_type", "encoding")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The arguments; each None or False where it is not given."""
    group = parser.add_argument_group("what is quantized, and how")
    group.add_argument("--full", action="store_true", help="inputs of ops without weights too (pools, sums, products)")
    group.add_argument("--weight-bits", type=int, choices=_BITS, metavar="N", help="2 to 16 (default 8)")
    group.add_argument("--activation-bits", type=int, choices=_BITS, metavar="N", help="2 to 16 (default 8)")
    group.add_argument(
        "--override",
        action="append",
        metavar="NAME:w4a8",
        help="other bits for the ops with this tensor, or with those that this regular expression matches",
    )
    group.add_argument("--encoding", choices=sorted(ENCODINGS), help="spelling (default B, or that of --target)")
    group.add_argument(
        "--output-scales", action="store_true", help="keep scales of outputs too, for engines that look for them"
    )
    group.add_argument("--fold-batch-norm", action="store_true", help="fold batch norms into convolutions first")
    group.add_argument("--equalize", action="store_true", help="equalize ranges across layers first (and fold)")
    group.add_argument(
        "--round-type",
        choices=("round", "adaround"),
        help="rounding of weights: nearest (default), or as suits outputs",
    )
    group.add_argument(
        "--bias-correction",
        nargs="?",
        const="bias",
        choices=("bias", "paddle"),
        help="take mean errors out of biases; paddle: do to weights what the framework does under this name",
    )


def recipe_fields(args: argparse.Namespace) -> Mapping[str, object]:
    """Fields of `QuantOptions` for the arguments of `add_recipe` and `add_quantizers`; None is the default."""
    from qpass.quant.presets import find_target
    from qpass.quant.recipe import FULL_OP_TYPES

    target = getattr(args, "target", None)
    full = FULL_OP_TYPES if target is None else find_target(target).activation_op_types
    return {
        **{name: getattr(args, name) for name in _PLAIN},
        "op_types": split_names(args.op_types) or None,
        "activation_op_types": full if args.full else None,
        "skip": split_names(args.skip),
        "overrides": tuple(args.override or ()),
        "outputs": args.output_scales,
        "fold_batch_norm": args.fold_batch_norm,
        "equalize": args.equalize,
        "bias_correction": args.bias_correction,
        "target": target,
    }
