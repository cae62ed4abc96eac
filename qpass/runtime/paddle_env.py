"""The one place that imports paddle: version check, the guard for legacy programs, and what the installation can do."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from qpass.errors import EngineError, FormatError
from qpass.formats.framework_pb import framework_pb2

OLDEST = (2, 6)
INSTALL = "install paddlepaddle >= 2.6 (pip install paddlepaddle)"

# The exceptions into which Paddle turns its C++ errors: paddle/fluid/pybind/exception.cc (ThrowExceptionToPython)
PADDLE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, OSError, MemoryError, SystemError)

_MODE = threading.RLock()
_OPERATOR = re.compile(
    r"\[operator < (\S+) > error\]|Operator [(`]?(\w+)(?:[)`]? (?:is|does|has) not|'s)", re.IGNORECASE
)
_SUMMARY = "Error Message Summary:"
# Before the cause stands the op's op_callstack, where it has one: paddle/fluid/framework/op_call_stack.cc
_CAUSE = re.compile(r"In user code:.*?^\s*(?=\w+Error: )", re.DOTALL | re.MULTILINE)


_THREADS = "OMP_NUM_THREADS"


def _is_paddles_own() -> bool:
    """Whether the number of threads is the 1 that paddle writes, as it is imported, where nothing was set.

    Source: paddle/base/__init__.py, __bootstrap__. What a process was started with is in ``/proc/self/environ``.
    """
    started = Path("/proc/self/environ")
    if "paddle" not in sys.modules or os.environ.get(_THREADS) != "1" or not started.is_file():
        return False
    return not any(line.startswith(_THREADS.encode() + b"=") for line in started.read_bytes().split(b"\0"))


if _is_paddles_own():
    del os.environ[_THREADS]


@functools.cache
def import_paddle() -> ModuleType:
    """The `paddle` module.

    Raises
    ------
    EngineError
        If it is not installed, cannot be imported, or is older than 2.6.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No ccache found", UserWarning)  # news for builders of C++ extensions
            os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's C++ side reports each new executor otherwise
            wish = os.environ.get(_THREADS)
            import paddle

            if wish is None:
                os.environ.pop(_THREADS, None)  # `_is_paddles_own`
    except ImportError as e:
        raise EngineError(f"paddle cannot be imported ({e})", hint=INSTALL) from e
    module: ModuleType = paddle
    # A build from source calls itself 0.0.0
    if version(module) < OLDEST and version(module) != (0, 0):
        raise EngineError(f"paddle {module.__version__} is too old, expected 2.6 or newer", hint=INSTALL)
    return module


def version(paddle: ModuleType) -> tuple[int, int]:
    """Major and minor version."""
    major, minor = re.findall(r"\d+", paddle.__version__)[:2]
    return int(major), int(minor)


@contextlib.contextmanager
def legacy_static() -> Iterator[ModuleType]:
    """The context in which legacy programs are parsed and run by an executor: the old IR, static mode; gives paddle.

    Paddle 3 runs PIR programs by default. Its own way back inside a running process is `paddle.pir_utils.OldIrGuard`;
    2.6 has none and needs none. The mode the caller was in is restored. Threads take turns: parts of the mode are the
    process's.
    """
    paddle = import_paddle()
    guard = getattr(getattr(paddle, "pir_utils", None), "OldIrGuard", None)
    # Not paddle.enable_static(): it does nothing in a thread that is not the one that imported paddle.
    static = paddle.base.framework._dygraph_guard(None)
    with _MODE, static, contextlib.nullcontext() if guard is None else guard():
        yield paddle


def compiled_with_cuda() -> bool:
    """Whether the installed paddle is a GPU build."""
    return bool(import_paddle().is_compiled_with_cuda())


def engine_error(doing: str, error: BaseException) -> EngineError:
    """The EngineError for an error that Paddle raised: its summary, and the op where Paddle names it."""
    text = str(error)
    found = _OPERATOR.search(text)
    op = next((g for g in found.groups() if g), None) if found else None
    summary = _CAUSE.sub("", text.partition(_SUMMARY)[2] if _SUMMARY in text else text, count=1)
    lines = [line.strip(" -") for line in summary.splitlines()]
    short = " ".join(line for line in lines if line and not line.startswith(("[Hint", "[operator")))
    where = f"op {op}" if op else None
    return EngineError(f"{doing}: {_cut(short) or type(error).__name__}", where=where)


def default_threads() -> int:
    """Threads an engine uses unless told: OMP_NUM_THREADS where it is a number, else the CPUs this process may use."""
    wish = os.environ.get(_THREADS, "")
    if wish.isdigit() and int(wish) > 0:
        return int(wish)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, str]:
    """What the installation can do, as label -> words; never raises for a missing or broken paddle."""
    facts: dict[str, str] = {}
    try:
        framework_pb2()
        facts["program messages"] = "ok"
    except FormatError as e:
        facts["program messages"] = f"missing: {e}"
    facts["cpu flags"] = " ".join(cpu_flags()) or "none of use"
    facts["threads"] = str(default_threads())
    try:
        paddle = import_paddle()
    except EngineError as e:
        facts["paddle"] = f"missing: {e}"
        return facts
    facts["paddle"] = paddle.__version__
    facts["oneDNN"] = "yes" if paddle.base.core.is_compiled_with_mkldnn() else "no"
    facts["gpu build"] = "yes" if compiled_with_cuda() else "no"
    guard = hasattr(getattr(paddle, "pir_utils", None), "OldIrGuard")
    facts["legacy programs"] = (
        "by old-IR guard" if guard else "native" if version(paddle) < (3, 0) else "no guard: executor engine may fail"
    )
    return facts


def cpu_flags() -> tuple[str, ...]:
    """The instruction sets of this CPU that matter for speed; empty where they cannot be told."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return ()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    present = set(match.group(1).split()) if match else set()
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp")
    return tuple(flag for flag in known if flag in present)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what Paddle's C++ side writes to standard error from getting there.

    The passes of the int8 engine report there how many ops they quantized, whatever the log level.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _cut(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
