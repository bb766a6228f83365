"""From a template to the text of a page."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from factpatch.support.files import atomic_write


def render(template: str, **given: Any) -> str:
    """Fill in a template by its path in the package. What it is given is text, not HTML, unless it says otherwise."""
    return str(_environment().get_template(template).render(**given))


@cache
def _environment() -> Any:
    """Where templates are kept once they are read: the page in the browser fills some in several times a second."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("factpatch", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(content: str, path: Path) -> None:
    """Write a page, whole or not at all."""
    # A model may say half of a character, which no file of text can hold.
    atomic_write(path, lambda draft: draft.write_text(content, "utf-8", errors="replace"))
