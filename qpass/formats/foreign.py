"""Model files that qpass does not read: what they are, and what their owner can do."""

from __future__ import annotations

from pathlib import Path

from qpass.errors import FormatError

JSON_WHAT = "a Paddle 3 program in JSON (PIR), expected a .pdmodel"
JSON_HINT = (
    "export the model again as .pdmodel: set FLAGS_enable_pir_api=0 in the environment before paddle is imported, "
    "then call paddle.jit.save or paddle.static.save_inference_model as before"
)

_BY_SUFFIX = {
    ".json": (JSON_WHAT, JSON_HINT),
    ".onnx": ("an ONNX model, expected a Paddle .pdmodel", "export the model from Paddle as .pdmodel"),
    ".pdiparams": ("a parameter file, expected the program", "give the .pdmodel; its .pdiparams is found beside it"),
    ".pdparams": (
        "a training checkpoint (parameters only), expected an exported program",
        "export the network with paddle.jit.save; that writes .pdmodel and .pdiparams",
    ),
}


def refuse_foreign(path: Path) -> None:
    """Check the suffix of a path that is about to be read or written as a program.

    Raises
    ------
    FormatError
        If the suffix is one of another kind of model file.
    """
    found = _BY_SUFFIX.get(path.suffix.lower())
    if found is not None:
        what, hint = found
        raise FormatError(what, where=str(path), hint=hint)
