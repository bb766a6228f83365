"""`factpatch show`: what a patch file contains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted


@options.documented
def show(patch: Annotated[Path, typer.Argument(metavar="PATCH")]) -> None:
    """Show what a patch contains: the model, the method, its settings and the facts. Reads only the file's header.

    Args:
        patch: A file that `factpatch edit` wrote.
    """
    from factpatch.facts import Fact
    from factpatch.patch.file import asked_in_chat, describe

    with checks.argument("PATCH"):
        if patch.is_dir():
            raise checks.BadArgumentError(f"{patch}: is a directory. If it is a session, use factpatch log {patch}")
        found = describe(patch)
    config = found["config"]
    lines = {
        "file": f"{patch} ({render.size(patch)}, format {found['format']})",
        "model": f"{config.get('_name_or_path') or '(unnamed)'} ({config.get('model_type')})",
        "method": found["method"],
        "layers": render.numbers(found["layers"]),
        "weights": f"{found['weight_dtype']}, shifts rounded to {found['written_dtype']}",
        "precision": found["settings"].get("precision", "(not recorded)"),
        "seed": str(found["seed"]),
        "chat": "yes" if asked_in_chat(found["settings"]) else "no",
        "made with": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "sha256": f"{found['sha256']} (as stated; not checked)",
    }
    for name, value in found["settings"].items():
        if isinstance(value, dict):
            fields = ", ".join(f"{field}={setting}" for field, setting in value.items() if field != "class")
            lines[name] = render.printable(f"{value.get('class', '')}({fields})")
    for name, text in lines.items():
        render.say(f"{name:<12} {text}")
    for number, batch in enumerate(found["batches"], start=1):
        render.heading(f"Batch {number} of {len(found['batches'])}: {counted(len(batch['facts']), 'fact')}")
        for fact in batch["facts"]:
            render.say(f"  {render.fact_line(Fact.from_dict(fact))}")
