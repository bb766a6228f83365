"""`factpatch models`: what can be edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from factpatch.cli import checks, render

if TYPE_CHECKING:
    from factpatch.model.architectures import Architecture


def models() -> None:
    """List the embedded models and the supported architectures."""
    from factpatch.model.architectures import ARCHITECTURES
    from factpatch.model.embedded import EMBEDDED

    checks.silence_transformers()
    embedded = render.table("embedded model", "from", "license", "source")
    for model in EMBEDDED.values():
        embedded.add_row(model.name, model.requirement, model.license, model.source)
    families = render.table("architecture", "edited weight", "editable")
    for row in ARCHITECTURES.values():
        reason = _refusal(row)
        families.add_row(row.model_type, f"{row.blocks}.*.{row.down_projection}", f"no: {reason}" if reason else "yes")
    for made in (embedded, families):
        render.screen.print(made)


def _refusal(row: Architecture) -> str | None:
    """Why a family is refused in its default configuration, or None."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(row.model_type)
    except ValueError:
        return None  # a registered family that transformers does not know by name
    return row.refuse(config)
