"""Processes of their own, forked from this one: they need not import PyTorch again, and killing one harms no other."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any


def start(function: Callable[[], object]) -> int:
    """Run a function in a new process and return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code: Any = 1
    try:
        import torch

        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        function()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def wait(process: int) -> int:
    """Return a process's exit code; of one that was killed, minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command(*arguments: object) -> Callable[[], object]:
    """What runs a factpatch command in the present process."""

    def run() -> None:
        from factpatch.cli.main import main

        sys.argv = ["factpatch", *map(str, arguments)]
        main()

    return run


def killed(function: Callable[[], object], target: str, call: int, first: Callable[..., object] | None = None) -> int:
    """Run a function in a new process, which kills itself in a call of a target, without a chance to clean up.

    Args:
        function: What to run.
        target: The dotted name of the function in whose call the process ends.
        call: In which call, counted from 1.
        first: What the process still does in that call, given the call's arguments.

    Returns:
        The exit code.
    """
    module, _, name = target.rpartition(".")
    calls = 0

    def dies() -> None:
        place, original = resolve_name(module), resolve_name(target)

        def replaced(*given: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                if first is not None:
                    first(*given, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **options)

        setattr(place, name, replaced)
        function()

    return wait(start(dies))
