"""Paddle's protobuf messages, loaded from the installed wheel by file path, so that paddle itself is not imported."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from qpass.errors import FormatError

_FILES = ("base/proto/framework_pb2.py", "fluid/proto/framework_pb2.py")


@functools.cache
def framework_pb2() -> ModuleType:
    """The generated module of `framework.proto`.

    Importing paddle takes 1 to 2 s, loading this one file about 20 ms.

    Raises
    ------
    FormatError
        If no paddlepaddle is installed, or its wheel has no such file.
    """
    loaded = sys.modules.get("paddle.base.proto.framework_pb2")
    if loaded is not None:
        return loaded
    spec = importlib.util.find_spec("paddle")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    for root in roots:
        for name in _FILES:
            path = Path(root) / name
            if path.is_file():
                return _load(path)
    raise FormatError(
        "the protobuf messages of Paddle were not found",
        where=str(roots[0]) if roots else "installed packages",
        hint="install paddlepaddle >= 2.6 (pip install paddlepaddle); its wheel holds base/proto/framework_pb2.py",
    )


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("qpass_framework_pb2", path)
    if spec is None or spec.loader is None:
        raise FormatError("not an importable Python file", where=str(path), hint="reinstall paddlepaddle")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
