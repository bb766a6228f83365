"""`factpatch show`: what a patch file contains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted, printable


@options.documented
def show(patch: Annotated[Path, typer.Argument(metavar="PATCH")]) -> None:
    """Show what a patch contains: the model, the method, its settings and the facts. Verifies the file's checksum.

    Args:
        patch: A file that `factpatch edit` wrote.
    """
    from factpatch.model.places import name_of
    from factpatch.patch.description import asked_in_chat
    from factpatch.patch.file import describe, ranks

    with checks.argument("PATCH"):
        if patch.is_dir():
            raise checks.BadArgumentError(f"{patch}: is a directory. If it is a session, use factpatch log {patch}")
        found = describe(patch, verify=True)
    settings: dict[str, Any] = found.settings
    lines = {
        "file": f"{patch} ({render.size(patch)}, format {found.format})",
        "model": f"{found.config.get('_name_or_path') or '(unnamed)'} ({found.config.get('model_type')})",
        "method": found.method,
        "layers": render.numbers(found.layers),
        "rank": ", ".join(f"{rank} in layer {name_of(place)}" for place, rank in ranks(patch).items())
        or "(no factors)",
        "weights": f"{found.weight_dtype}, shifts rounded to {found.written_dtype}",
        "precision": settings.get("precision", "(not recorded)"),
        "seed": str(found.seed),
        "chat": "yes" if asked_in_chat(settings) else "no",
        "made with": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "sha256": f"{found.sha256} (fits the file's content)",
    }
    for name, value in settings.items():
        if isinstance(value, dict):
            fields = ", ".join(f"{field}={setting}" for field, setting in value.items() if field != "class")
            lines[name] = f"{value.get('class', '')}({fields})"
    for name, text in lines.items():
        render.say(f"{printable(name):<12} {printable(text)}")
    for number, batch in enumerate(found.batches, start=1):
        render.heading(f"Batch {number} of {len(found.batches)}: {counted(len(batch.facts), 'fact')}")
        for fact in batch.facts:
            render.say(f"  {render.fact_line(fact)}")
            for line in render.about_fact(fact):
                render.say(f"    {line}", "dim")
