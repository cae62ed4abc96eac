"""Encoding D, simulated quantization as quantization-aware training exports it: ``fake_quantize_dequantize_*``.

One op quantizes and dequantizes. Weights keep their float values in the file, and their thresholds are computed from
them when the model runs; activations read theirs from a variable that the op also writes (in place, unchanged at
inference time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
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
from qpass.quant.fakequant import abs_max
from qpass.quant.ops import FAKE, OBSERVERS
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec, Rounding
from qpass.rewrite.edit import Edit

_CHANNELS = "fake_channel_wise_quantize_dequantize_abs_max"
_STORED = "fake_quantize_dequantize_moving_average_abs_max"
_OUT = ".quantized.dequantized"


class EncodingD:
    """Recognises and spells encoding D."""

    name = "D"

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order."""
        return tuple(s for op in model.graph.ops if op.type in (*FAKE, *OBSERVERS) if (s := _site(model, op)))

    def spell(self, e: Edit, graph: Graph, sites: Sequence[QuantSite]) -> None:
        """Write one fake-quantize op for each site.

        Raises
        ------
        QuantError
            If a value is not float32, or a per-channel threshold is not the largest absolute value of its channel: the
            op computes it; if a weight holds integers, or a pair only observes.
        """
        for site in sites:
            if site.storage is not Storage.FLOAT or site.observer_only:
                what = "only observes" if site.observer_only else "is stored as integers"
                raise QuantError(
                    f"it {what}, which encoding D cannot say", where=f"value {site.value}", hint="use encoding B"
                )
            make = _stored(e, site) if site.spec.axis is None else _channels(e, site)
            insert_chain(e, graph, site, [(_OUT, make)])


def _channels(e: Edit, site: QuantSite) -> Callable[[str, str], Op]:
    name, axis = site.value.name, site.spec.axis or 0
    weight = e.model.params.get(name)
    if weight is None or not np.array_equal(abs_max(weight, axis), site.threshold):
        raise QuantError(
            "the thresholds are not the largest absolute values of the channels, which encoding D computes",
            where=f"weight {name!r}",
            hint="use encoding B, or weight thresholds by channel_wise_abs_max",
        )
    scale = declare_param(e, f"{name}@scale", np.asarray(site.threshold, np.float32))
    attrs = {**_attrs(site.spec), "quant_axis": Attr.int(axis)}
    return lambda source, target: Op.make(_CHANNELS, {"X": source}, {"Out": target, "OutScale": scale}, attrs)


def _stored(e: Edit, site: QuantSite) -> Callable[[str, str], Op]:
    scale = declare_param(e, f"{site.value.name}@scale", np.asarray(site.threshold, np.float32).reshape(1))
    # moving_rate is not read at inference time; 0.9 is Paddle's default (phi/ops/yaml/ops.yaml).
    attrs = {**_attrs(site.spec), "is_test": Attr.bool(True), "moving_rate": Attr.float(float(np.float32(0.9)))}
    return lambda source, target: Op.make(
        _STORED, {"X": source, "InScale": scale}, {"Out": target, "OutScale": scale}, attrs
    )


def _attrs(spec: QuantSpec) -> dict[str, Attr]:
    return {"bit_length": Attr.int(spec.bits), "round_type": Attr.int(spec.rounding.value), **FORWARD}


def _site(model: Model, op: Op) -> QuantSite | None:
    graph = model.graph
    value, out = data_in(graph, op), data_out(graph, op)
    if value is None or out is None:
        return None
    role = role_of(graph, value)
    axis = op.int_attr("quant_axis", 0) if op.type == _CHANNELS else None
    return QuantSite(
        role=role,
        value=value,
        uses=real_uses(graph, out),
        threshold=_threshold(model, op, role, value.name, axis),
        # phi/ops/yaml/ops.yaml: round_type of the fake ops is 1 by default.
        spec=spec_of(op, axis, Rounding.HALF_AWAY),
        encoding=EncodingD.name,
        ops=(op.uid,),
        observer_only=op.type in OBSERVERS,
    )


def _threshold(model: Model, op: Op, role: Role, name: str, axis: int | None) -> npt.NDArray[np.float32]:
    if op.type == _STORED:
        return scale_value(model, op, "InScale")
    if op.type in OBSERVERS:
        return scale_value(model, op, "OutScale")
    if role is Role.WEIGHT and name in model.params:
        return abs_max(model.params[name], axis)
    return np.array(np.nan, np.float32)
