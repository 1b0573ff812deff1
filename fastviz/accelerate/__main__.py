"""Run a script, or a module, with the tools that it imports accelerated.

``python -m fastviz.accelerate script.py [arguments]`` or ``python -m fastviz.accelerate -m module [arguments]``: as
``python script.py`` or ``python -m module``, with the same arguments, exit code and traceback. Processes that the
script starts are not accelerated, except forked ones.
"""

from __future__ import annotations

import builtins
import io
import os
import runpy
import signal
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType

from fastviz.accelerate._on_import import accelerate_on_import

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Run what the ``arguments`` say."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        raise SystemExit
    if arguments in ([], ["-m"]):
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    accelerate_on_import()
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            _run_script(arguments[0])
    except SystemExit:
        raise
    except BaseException as error:
        _report(error)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        raise SystemExit(1) from None


def _run_script(path: str) -> None:
    """Execute the file as ``__main__``."""
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {os.path.abspath(path)!r}: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    module = ModuleType("__main__")
    module.__dict__.update(
        __file__=os.path.abspath(path),
        __builtins__=builtins,
        __loader__=SourceFileLoader("__main__", path),
        __cached__=None,
    )
    sys.modules["__main__"] = module
    exec(compile(source, os.path.abspath(path), "exec", dont_inherit=True), module.__dict__)


def _report(error: BaseException) -> None:
    """Print the traceback, without the frames that run the script."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    error = error.with_traceback(trace)
    sys.excepthook(type(error), error, trace)


if __name__ == "__main__":
    main(sys.argv[1:])
