"""`factpatch page`: a page in the browser to edit a model with."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe


@options.with_recipe()
def page(
    recipe: Recipe,
    model: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="As for edit; several to choose from on the page.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N")] = 7860,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None,
    token: Annotated[str | None, typer.Option(metavar="SECRET", envvar="FACTPATCH_PAGE_TOKEN")] = None,
    auth: Annotated[str | None, typer.Option(metavar="NAME:PASSWORD", envvar="FACTPATCH_PAGE_AUTH")] = None,
    session: Annotated[Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False)] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    capability_data: Annotated[Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False)] = None,
    max_facts: Annotated[int, typer.Option(min=1, metavar="N")] = 50,
    max_people: Annotated[int, typer.Option(min=1, metavar="N")] = 8,
    max_minutes: Annotated[float, typer.Option(min=0.1, metavar="N")] = 30.0,
    browser: Annotated[bool, typer.Option("--open")] = False,
) -> None:
    """Edit a model in the browser: type a fact, watch the model learn it, ask it anything, take it back.

    The page is served to this machine alone and needs no network. Each browser has a model and a session of its own;
    the sessions are directories that factpatch edit, log and undo open too. Needs the extra `page`.

    With --host, others reach it too: as plain HTTP, so put a proxy with HTTPS before it, or stay in a network that you
    trust.

    Args:
        port: Where to listen; 0 takes any free port.
        host: Listen on this address instead of 127.0.0.1, such as 0.0.0.0 for all. Needs --token or --auth.
        token: Let in whoever opens the address that ends with this token.
        auth: Let in whoever knows this name and password.
        session: Continue this session's directory, for the first who opens the page.
        data: Where to keep people's sessions. Default: a folder of the user's data.
        capability_data: A folder with the items of capability tasks, as for factpatch capability.
        max_facts: Most facts in one edit.
        max_people: Most people whose models are in memory at a time.
        max_minutes: How long a single piece of work may take.
        browser: Open the page in the browser of this machine.
    """
    models = model or ["smollm2-135m"]
    if host is not None and token is None and auth is None:
        raise checks.BadArgumentError(
            f"--host {host}: others can reach the page there; give --token SECRET or --auth NAME:PASSWORD too."
        )
    folder = data or Path(platformdirs.user_data_dir("factpatch")) / "page"
    with checks.argument("--data"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    checks.check_outside(folder, "page's", session=session)
    with checks.extras():
        try:
            from factpatch.web.app import serve
        except ImportError as error:
            raise ImportError(
                f"the page needs the extra `page`: pip install 'factpatch[page]' ({error.name} is missing)."
            ) from error
    from factpatch.support.files import scratch
    from factpatch.web.gate import Entry
    from factpatch.web.limits import Limits
    from factpatch.web.room import Room

    with checks.argument("--token, --auth"):
        entry = Entry(token, auth)
    checks.silence_transformers()
    limits = Limits(facts=max_facts, people=max_people, seconds=60 * max_minutes)
    with scratch(folder) as uploads:
        room = Room(folder, uploads, [os.fspath(one) for one in models], recipe, limits, session, capability_data)

        def ready(address: str) -> None:
            render.say(f"The page: {address}  (Ctrl-C ends it)", "bold")
            if browser:
                webbrowser.open(address)

        with checks.argument("--port"):
            serve(room, host or "127.0.0.1", port, entry, ready)
