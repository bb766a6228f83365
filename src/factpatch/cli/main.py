"""The application: its commands, and how an error, a warning and an interruption look on the screen."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import factpatch
from factpatch.cli import (
    analyze,
    anchor,
    apply,
    capability,
    compose,
    data,
    demo,
    drift,
    edit,
    export,
    locate,
    log,
    lora,
    methods,
    models,
    page,
    plan,
    presets,
    rebase,
    report,
    reproduce,
    run,
    second_moment,
    show,
    tune,
    undo,
    verify,
)
from factpatch.cli.checks import BadArgumentError, argument, explained
from factpatch.cli.render import given, note

# By the panel of `--help` that lists them. They import PyTorch inside their functions, so help does not wait for it.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Edit": (demo.demo, page.page, edit.edit, apply.apply, undo.undo, compose.compose, rebase.rebase),
    "Serve": (export.export, lora.lora),
    "Measure": (verify.verify, capability.capability, drift.drift),
    "Inspect": (show.show, log.log),
    "Prepare a model": (locate.locate, tune.tune, second_moment.second_moment, anchor.anchor, plan.plan),
    "Experiments": (run.run, reproduce.reproduce, report.report, analyze.analyze),
    "Reference": (methods.methods, models.models, presets.presets),
}


_LITTLE_MEMORY = (
    "memory does not suffice. Free some, raise the limit (ulimit -v), load the model in 16 bits (--dtype bfloat16), or "
    "edit fewer facts at a time (--batch-size)"
)
# What the machine lacks, by the kind of an error and a part of its message: libraries report it in words of their own.
_LACKS: tuple[tuple[type[Exception], str, str], ...] = (
    (MemoryError, "", _LITTLE_MEMORY),
    (RuntimeError, "can't allocate memory", _LITTLE_MEMORY),
    (RuntimeError, "can't start new thread", f"no thread can be started: {_LITTLE_MEMORY}, or raise ulimit -u"),
    (OSError, "Cannot allocate memory", _LITTLE_MEMORY),
    (ImportError, "failed to map segment", _LITTLE_MEMORY),
    (RecursionError, "", "something that was read is nested too deeply (factpatch --debug shows what)"),
)


def _told(error: Exception) -> str:
    """An error in one line, with what to do if the machine is too small."""
    text = explained(error)
    for kind, part, told in _LACKS:
        if isinstance(error, kind) and part in text:
            return f"{told}: {text}." if text else f"{told}."
    if text and isinstance(error, (ValueError, OSError, ArithmeticError, RuntimeError)):
        return text
    return f"{type(error).__name__}: {error} (factpatch --debug shows where)"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send: ends a command as Ctrl-C does, with the same words and nothing half written."""


class Commands(TyperGroup):
    """Turns whatever goes wrong in a command into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stopped:
            terminated = isinstance(stopped, Terminated)
            note("terminated" if terminated else "interrupted", "red")
            raise typer.Exit(143 if terminated else 130) from None
        except Exception as error:
            # Typer prints errors of its own kind (usage) and ends quietly on a closed pipe.
            closed_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if closed_pipe or ctx.params.get("debug") or hasattr(error, "exit_code"):
                raise
            note(f"error: {_told(error)}", "red")
            raise typer.Exit(2 if isinstance(error, BadArgumentError) else 1) from error


class _Handler(logging.Handler):
    """Prints what the library logs on stderr, without breaking a progress bar.

    What another library says is printed once: bitsandbytes says the same whenever an 8-bit layer runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        text = record.getMessage()
        if record.name.partition(".")[0] != "factpatch":
            if text in self._printed:
                return
            self._printed.add(text)
        note(f"{record.levelname.lower()}: {text}" if warns else text, "yellow" if warns else "dim")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"factpatch {factpatch.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="factpatch",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Change what an open-weight language model knows, without retraining: facts in, a small reversible patch out.",
)
for panel, commands in COMMANDS.items():
    for command in commands:
        paragraphs = (" ".join(text.split()) for text in (command.__doc__ or "").split("\n\n"))
        name = command.__name__.replace("_", "-")
        app.command(name, help="\n\n".join(paragraphs), rich_help_panel=panel)(command)
app.add_typer(data.app, name="data", rich_help_panel="Reference")


@app.callback()
def prepare(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and warnings of other libraries.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    own_methods: Annotated[
        Path | None,
        typer.Option(
            "--methods", metavar="FILE.py", help="Run this file first, and know the methods that it defines by name."
        ),
    ] = None,
) -> None:
    """Print the log on stderr, and register methods."""
    handler = _Handler()
    root, library = logging.getLogger(), logging.getLogger("factpatch")
    root.addHandler(handler)
    ctx.call_on_close(lambda: root.removeHandler(handler))
    library.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        warnings.simplefilter("ignore")
    given[:] = [] if own_methods is None else ["--methods", str(own_methods)]
    if own_methods is not None:
        from factpatch.presets.own_methods import register_methods

        with argument("--methods"):
            register_methods(own_methods)


def main() -> None:
    """The console script."""
    # Read when PyTorch is loaded. By default a thread that has done its share keeps its core busy until the others are
    # ready; if another process needs that core, they may be waiting for it in turn: docs/performance.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks must not end an edit.
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    finally:
        # All is done or undone: a signal while Python ends would only print a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # the command is ending already, and may be cleaning up
    raise Terminated
