"""`factpatch data`: list published data sets, and download them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from factpatch.cli import checks, options, render

app = typer.Typer(no_args_is_help=True, help="List published data sets, and download them.")


@app.command("list")
def list_data() -> None:
    """List the published files that can be fetched by name, and which of them are in the cache."""
    from factpatch.data.sources import SOURCES, data_directory

    made = render.table("name", "holds", "size", "checksum", "fetched")
    for source in SOURCES.values():
        size = "" if source.size is None else decimal(source.size)
        checksum = "known" if source.sha256 else "of the first download"
        here = (data_directory() / source.file).is_file()
        made.add_row(source.name, source.about, size, checksum, "yes" if here else "no")
    render.screen.print(made)
    render.say("`factpatch data fetch NAME` downloads one. Then its name can be given wherever a command takes facts.")
    render.say(f"Cache: {data_directory()}")


@app.command("fetch")
@options.documented
def fetch_data(
    names: Annotated[list[str], typer.Argument(metavar="NAME")],
    to: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
) -> None:
    """Download published files from their original sources, and check them.

    Args:
        names: Names that `factpatch data list` shows.
        to: Save them in this directory. Default: the cache, where other commands find them by name.
    """
    from factpatch.data.sources import fetch, source_named

    with checks.argument("NAME"):
        for name in names:
            source_named(name)
    for name in names:
        path = fetch(name, to)
        render.say(f"{name}: {path} ({render.size(path)})")
