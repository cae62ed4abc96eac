"""What Paddle's and PaddleSlim's arguments mean here: `ptq_config` and `quant_post_static` are read alike.

The names are those of PaddleSlim 2.6, `quant_post_static`, and of Paddle's `PostTrainingQuantization`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from qpass.errors import UsageError
from qpass.ir.schema import EMBEDDINGS, FAMILIES
from qpass.options import QuantOptions, names
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.presets import find_target
from qpass.quant.recipe import FULL_OP_TYPES

FIELDS: Mapping[str, str] = {
    "algo": "algo",
    "hist_percent": "hist_percent",
    "compat": "compat",
    "weight_quantize_type": "weight_algo",
    "weight_bits": "weight_bits",
    "activation_bits": "activation_bits",
    "round_type": "round_type",
    "bias_correction": "bias_correction",
    "skip_tensor_list": "skip",
    "optimize_model": "fold_batch_norm",
    "batch_nums": "batches",
    "overrides": "overrides",
    "equalize": "equalize",
    "outputs": "outputs",
    "target": "target",
    "engine": "engine",
    "simulate": "simulate",
    "fast": "fast",
    "higher_is_better": "higher_is_better",
}
"""Arguments that are fields of `QuantOptions` under another name, or the same."""

_BACKENDS: Mapping[str, str] = {"tensorrt": "tensorrt", "mkldnn": "onednn", "onednn": "onednn", "arm": "lite"}
_ACTIVATION_TYPES = ("moving_average_abs_max", "range_abs_max")
_DERIVED = ("quantizable_op_type", "is_full_quantize", "onnx_format", "activation_quantize_type", "deploy_backend")
KEYS = (*FIELDS, *_DERIVED)
"""Every argument that is known."""


def options_of(config: Mapping[str, object], where: str) -> QuantOptions:
    """Options from Paddle's arguments; None stands for the default.

    Parameters
    ----------
    config : Mapping[str, object]
    where : str
        What they are arguments of, for messages.

    Raises
    ------
    UsageError
        For a name or a value that is not supported, with the nearest one that is.
    """
    for name in config:
        if name not in KEYS:
            near = difflib.get_close_matches(str(name), KEYS, 1)
            raise UsageError(
                f"{where} has no key {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"known keys: {', '.join(KEYS)}",
            )
    try:
        return _options({name: value for name, value in config.items() if value is not None})
    except UsageError as e:
        raise UsageError(e.what, where=where, hint=e.hint) from e


def _options(config: Mapping[str, object]) -> QuantOptions:
    given = {FIELDS[name]: value for name, value in config.items() if name in FIELDS}
    if config.get("activation_quantize_type") == "abs_max":
        raise UsageError(
            "activation_quantize_type 'abs_max' stores no scale: every run would find its own",
            hint=f"one of {', '.join(_ACTIVATION_TYPES)}; for the algorithm, algo='abs_max'",
        )
    _choice(config, "activation_quantize_type", _ACTIVATION_TYPES)
    if backend := _choice(config, "deploy_backend", tuple(_BACKENDS)):
        if given.get("target") not in (None, _BACKENDS[backend]):
            raise UsageError(f"deploy_backend {backend!r} and target {given['target']!r} are two", hint="give one")
        given["target"] = _BACKENDS[backend]
    target = given.get("target")
    if not _flag(config, "onnx_format", default=True):
        given["encoding"] = "A"
    op_types, activation_op_types = _op_types(config.get("quantizable_op_type"))
    if _flag(config, "is_full_quantize", default=False):
        op_types = None
        activation_op_types = find_target(target).activation_op_types if isinstance(target, str) else FULL_OP_TYPES
    if op_types is not None:
        given["op_types"] = op_types
    given["activation_op_types"] = activation_op_types
    return QuantOptions.checked(given, {field: name for name, field in FIELDS.items()})


def _op_types(given: object) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Op types with weights (None: the default), and those without."""
    if given is None:
        return None, ()
    named = names(given, "quantizable_op_type")
    if looked_up := [name for name in named if name in EMBEDDINGS]:
        raise UsageError(
            f"{looked_up[0]!r} has no activations to calibrate",
            hint="quant_post_dynamic stores its weights as integers",
        )
    weighted = tuple(name for name in named if name in FAMILIES)
    others = tuple(name for name in named if name not in FAMILIES)
    for name in others:
        if name not in FULL_OP_TYPES:
            near = difflib.get_close_matches(name, (*FAMILIES, *FULL_OP_TYPES), 3, 0.5)
            raise UsageError(
                f"op type {name!r} has no quantizable weight, and no activations that can be quantized",
                hint=f"the nearest are {', '.join(near)}" if near else f"for example {', '.join(DEFAULT_OP_TYPES)}",
            )
    if not weighted:
        raise UsageError(
            f"quantizable_op_type {list(named)!r} names no op type with weights",
            hint=f"some of {', '.join(sorted(FAMILIES))}",
        )
    return weighted, others


def _choice(config: Mapping[str, object], name: str, known: Collection[str]) -> str | None:
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or value.lower() not in known:
        raise UsageError(f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")
    return value.lower()


def _flag(config: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}, expected True or False")
    return value
