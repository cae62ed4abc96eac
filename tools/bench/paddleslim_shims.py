"""What PaddleSlim 2.6.0 needs to run on a Paddle that is newer than it: each shim says why.

PaddleSlim's last release was made for Paddle 2.6. Its wheel asks for versions that do not install any more
(`opencv-python==4.6.0.66`, `swig`) and leaves out packages that it imports, so it is installed by hand.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator

INSTALL = """PaddleSlim is not installed here. In an environment with paddlepaddle and qpass:
    pip install --no-deps paddleslim==2.6.0
    pip install pyzmq tqdm six decorator requests pyyaml scikit-learn scipy opencv-python-headless "setuptools<81"
or measure without it: --side qpass"""

NEEDED = ("paddleslim", "zmq", "tqdm", "six", "decorator", "requests", "yaml", "sklearn", "cv2", "pkg_resources")


def missing() -> list[str]:
    """Modules that PaddleSlim's import needs and that are not there."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def legacy_programs() -> Iterator[None]:
    """A process in which PaddleSlim's analysis works.

    Paddle 3 reads and runs PIR programs by default; PaddleSlim loads `.pdmodel` files and edits them as `IrGraph`,
    which only the old IR has. It expects static mode, and sets no mode itself.
    """
    import paddle

    guard = getattr(getattr(paddle, "pir_utils", None), "OldIrGuard", None)
    with contextlib.nullcontext() if guard is None else guard():
        paddle.enable_static()
        try:
            yield
        finally:
            paddle.disable_static()


def quiet() -> None:
    """Keep PaddleSlim from logging every step.

    `paddleslim.common.get_logger` gives each module's logger a handler and a level of its own, so the root logger has
    no say; Paddle's quantization does the same.
    """
    logging.disable(logging.INFO)
