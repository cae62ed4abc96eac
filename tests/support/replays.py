"""Recordings of evaluations and replays of them, made the way a sweep makes them."""

from __future__ import annotations

import numpy as np

from qpass import demo
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.rewrite.edit import edit
from qpass.runtime.engine import Session
from qpass.runtime.engines import get_engine
from qpass.runtime.replay import Recording, ReplaySession
from qpass.runtime.spool import Spool

ENGINE = get_engine("inference")


def model_and_variant() -> tuple[Model, Model]:
    """The bundled model, and one that gives other outputs: a weight of it is scaled."""
    model = load(demo.float_prefix())
    with edit(model) as e:
        e.set_param("linear_1.w_0", model.params["linear_1.w_0"] * np.float32(1.7))
    return model, e.model


def computed(model: Model, recording: Recording, memory_bytes: int | None = None) -> Spool:
    """What a sweep does in between: the outputs of a variant, feed by feed."""
    session, outputs = ENGINE.session(model), Spool(memory_bytes)
    for feed in recording:
        outputs.add(session.run(feed))
    return outputs


def replayed(model: Model, recording: Recording, what: str = "the variant") -> ReplaySession:
    """A replay that has to run nothing."""

    def live() -> Session:
        raise AssertionError("run for real")

    return ReplaySession(recording, computed(model, recording).__getitem__, live, what)
