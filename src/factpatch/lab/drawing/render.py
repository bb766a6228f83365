"""From a template to the text of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factpatch.support.files import atomic_write


def render(template: str, **given: Any) -> str:
    """Fill in a template by its path in the package. What it is given is text, not HTML, unless it says otherwise."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("factpatch", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**given)


def write_page(content: str, path: Path) -> None:
    """Write a page, whole or not at all."""
    # A model may say half of a character, which no file of text can hold.
    atomic_write(path, lambda draft: draft.write_text(content, "utf-8", errors="replace"))
