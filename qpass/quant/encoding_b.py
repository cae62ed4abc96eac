"""Encoding B, the framework's `onnx_format=True`: ``quantize_linear`` and ``dequantize_linear`` with int32 zero points.

An activation, or a weight that is still float, passes through both ops, which share one scale; a stored integer weight
(int8 in the parameter file under a declaration that says float32) passes through ``dequantize_linear`` only. Scales are
absmax, not absmax/127. Pairs with the attribute ``only_observer`` are run as identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qpass.ir.dtype import DType
from qpass.ir.graph import Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.ir.schema import FORWARD
from qpass.quant.encoding import (
    data_in,
    data_out,
    declare_param,
    insert_chain,
    real_uses,
    role_of,
    scale_value,
    spec_of,
)
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec, Rounding
from qpass.rewrite.edit import Edit

QUANTIZED = ".quantized"
DEQUANTIZED = ".quantized.dequantized"


class EncodingB:
    """Recognises and spells encoding B."""

    name = "B"

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order."""
        return tuple(linear_sites(model, self.name, float_zero=False))

    def spell(self, e: Edit, graph: Graph, sites: Sequence[QuantSite]) -> None:
        """Write a pair around each float value, and one op behind each weight that holds integers.

        Weights that are float stay float (`FoldQuant` stores them as integers).

        Raises
        ------
        QuantError
            If a value is not float32.
        """
        for site in sites:
            self._one(e, graph, site)

    def _one(self, e: Edit, graph: Graph, site: QuantSite) -> None:
        name, count = site.value.name, np.asarray(site.threshold).size
        scale = declare_param(e, f"{name}@scale", np.asarray(site.threshold, np.float32).reshape(count))
        zero = declare_param(e, f"{name}@zero_point", np.zeros(count, np.int32))
        attrs = linear_attrs(site.spec, observer_only=site.observer_only)

        def quantize(source: str, target: str) -> Op:
            return Op.make("quantize_linear", {"X": source, "Scale": scale, "ZeroPoint": zero}, {"Y": target}, attrs)

        def dequantize(source: str, target: str) -> Op:
            return Op.make("dequantize_linear", {"X": source, "Scale": scale, "ZeroPoint": zero}, {"Y": target}, attrs)

        first = [(QUANTIZED, quantize)] if site.storage is Storage.FLOAT else []
        insert_chain(e, graph, site, [*first, (DEQUANTIZED, dequantize)])


def linear_attrs(spec: QuantSpec, *, observer_only: bool = False) -> dict[str, Attr]:
    """Attributes of the two ops: 2.6's kernel reads `bit_length`, 3.3's reads `qmin` and `qmax`."""
    return {
        "quant_axis": Attr.int(-1 if spec.axis is None else spec.axis),
        "bit_length": Attr.int(spec.bits),
        "qmin": Attr.int(spec.qmin),
        "qmax": Attr.int(spec.qmax),
        "round_type": Attr.int(spec.rounding.value),
        "is_test": Attr.bool(True),
        "only_observer": Attr.bool(observer_only),
        **FORWARD,
    }


def linear_sites(model: Model, encoding: str, *, float_zero: bool) -> Iterator[QuantSite]:
    """Sites spelled by the two linear ops whose zero point is held as float, or as an integer.

    Every ``dequantize_linear`` is one site: together with the ``quantize_linear`` it reads from, or alone on a
    parameter.
    """
    graph = model.graph
    for dequantize in graph.ops:
        if dequantize.type != "dequantize_linear" or _zero_is_float(model, dequantize) is not float_zero:
            continue
        source, out = data_in(graph, dequantize), data_out(graph, dequantize)
        if source is None or out is None:
            continue
        axis = dequantize.int_attr("quant_axis", -1)
        spec = spec_of(dequantize, axis if axis >= 0 else None, Rounding.HALF_EVEN)
        quantize = graph.writer(source)
        ops: tuple[int, ...] = (dequantize.uid,)
        storage = Storage.FLOAT
        value = source
        if quantize is not None and quantize.type == "quantize_linear":
            before = data_in(graph, quantize)
            if before is None:
                continue
            value, ops = before, (quantize.uid, dequantize.uid)
            spec = spec_of(quantize, spec.axis, Rounding.HALF_EVEN)
        elif role_of(graph, source) is Role.WEIGHT:
            storage = Storage.INT if _held_as_int(model, source.name) else Storage.INT_AS_FLOAT
        else:
            continue
        yield QuantSite(
            role=role_of(graph, value),
            value=value,
            uses=real_uses(graph, out),
            threshold=scale_value(model, dequantize, "Scale"),
            spec=spec,
            encoding=encoding,
            ops=ops,
            storage=storage,
            observer_only=bool(dequantize.attr("only_observer")),
        )


def _zero_is_float(model: Model, op: Op) -> bool:
    names = op.input("ZeroPoint")
    decl = model.graph.decls.get(names[0]) if names else None
    return decl is not None and decl.dtype is not None and decl.dtype.is_float


def _held_as_int(model: Model, name: str) -> bool:
    # Without parameters only the declaration can tell, and the framework's own says float32 for its int8 weights: under
    # an integer zero point that is encoding B as the framework writes it.
    array = model.params.get(name)
    return array is None or not DType.of(array).is_float
