"""`factpatch models`: what can be edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from factpatch.cli import render

if TYPE_CHECKING:
    from factpatch.model.architectures import Architecture


def models() -> None:
    """List the embedded models, the supported architectures, and models of images and text."""
    from factpatch.model.architectures import ARCHITECTURES, TEXT_MODELS
    from factpatch.model.embedded import EMBEDDED

    embedded = ((model.name, model.requirement, model.license, model.source) for model in EMBEDDED.values())
    families = (
        (row.model_type, f"{row.blocks}.*.{row.down_projection}", _editable(row)) for row in ARCHITECTURES.values()
    )
    render.screen.print(render.table("embedded model", "from", "license", "source", rows=embedded))
    render.screen.print(render.table("architecture", "edited weight", "editable", rows=families))
    render.screen.print(render.table("model of images and text", "its text model", rows=TEXT_MODELS.items()))


def _editable(row: Architecture) -> str:
    return "; ".join(["yes", *(f"but not {refusal}" for refusal in row.refuses)])
