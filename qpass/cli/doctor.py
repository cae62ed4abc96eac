"""`qpass doctor`: what this installation can do."""

from __future__ import annotations

import argparse

from qpass.cli.common import add_json, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass doctor`."""
    parser.epilog = "example:\n  qpass doctor"
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass doctor`: versions, then a tiny model through both engines."""
    import importlib.metadata
    import platform

    from qpass import demo
    from qpass._version import __version__
    from qpass.errors import QPassError
    from qpass.formats.files import load
    from qpass.runtime.engines import get_engine
    from qpass.runtime.paddle_env import describe

    facts = {"qpass": __version__, "python": platform.python_version()}
    for package in ("numpy", "networkx", "matplotlib", "protobuf", "rich"):
        facts[package] = importlib.metadata.version(package)
    facts.update(describe())
    failed = False
    model = load(demo.float_prefix())
    feed = {model.feeds[0].name: demo.test_data()[0][:8]}
    for name in ("inference", "executor"):
        try:
            shape = get_engine(name).session(model).run(feed)[0].shape
            facts[f"engine {name}"] = f"ok, runs the bundled model ({list(shape)})"
        except QPassError as e:
            failed = True
            facts[f"engine {name}"] = f"failed: {e}"
    if args.json:
        print_json({"ok": not failed, **facts})
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:{width}}  {value}" for name, value in facts.items()))
    return 1 if failed else 0
