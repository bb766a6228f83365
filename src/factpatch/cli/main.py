"""The application: its subcommands, and how an error, a warning and an interruption look on the screen."""

# Subcommands import the library inside their functions: whoever asks for help should not wait for PyTorch.

from __future__ import annotations

import errno
import io
import logging
import sys
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from factpatch.cli import (
    analyze,
    apply,
    capability,
    compose,
    data,
    demo,
    drift,
    edit,
    locate,
    log,
    lora,
    methods,
    models,
    presets,
    report,
    reproduce,
    run,
    second_moment,
    show,
    tune,
    undo,
    verify,
)
from factpatch.cli.checks import BadArgumentError
from factpatch.cli.render import messages


class Commands(TyperGroup):
    """Turns whatever goes wrong in a subcommand into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _say("interrupted", "red")
            raise typer.Exit(130) from None
        except Exception as error:
            # Typer prints errors of its own kind (usage) and ends quietly on a closed pipe.
            closed_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if closed_pipe or ctx.params.get("debug") or hasattr(error, "exit_code"):
                raise
            _say(f"error: {_explain(error)}", "red")
            raise typer.Exit(2 if isinstance(error, BadArgumentError) else 1) from error


class _Handler(logging.Handler):
    """Shows what the library logs as lines on stderr, beside a progress bar too."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        text = record.getMessage()
        _say(f"{record.levelname.lower()}: {text}" if warns else text, "yellow" if warns else "dim")


def _say(text: str, style: str) -> None:
    messages.print(Text(text, style=style), soft_wrap=True)


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError, ArithmeticError, RuntimeError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (factpatch --debug shows where)"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"factpatch {version('factpatch')}")
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
app.command("demo")(demo.demo)
app.command("edit")(edit.edit)
app.command("verify")(verify.verify)
app.command("capability")(capability.capability)
app.command("drift")(drift.drift)
app.command("locate")(locate.locate)
app.command("apply")(apply.apply)
app.command("undo")(undo.undo)
app.command("log")(log.log)
app.command("show")(show.show)
app.command("compose")(compose.compose)
app.command("lora")(lora.lora)
app.command("run")(run.run)
app.command("reproduce")(reproduce.reproduce)
app.command("report")(report.report)
app.command("tune")(tune.tune)
app.command("analyze")(analyze.analyze)
app.command("second-moment")(second_moment.second_moment)
app.add_typer(data.app, name="data")
app.command("methods")(methods.methods)
app.command("models")(models.models)
app.command("presets")(presets.presets)


@app.callback()
def prepare(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and warnings of other libraries.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Send what is logged to the screen."""
    handler = _Handler()
    root, library = logging.getLogger(), logging.getLogger("factpatch")
    root.addHandler(handler)
    ctx.call_on_close(lambda: root.removeHandler(handler))
    library.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        warnings.simplefilter("ignore")


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A fact in a script that the terminal's encoding lacks must not end an edit.
            stream.reconfigure(errors="replace")
    app()
