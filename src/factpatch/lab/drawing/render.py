"""From a template to the text of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factpatch.support.files import atomic_write


def render(template: str, **given: Any) -> str:
    """Fill a template in. What it is given is text, and no HTML, unless the template says otherwise.

    Args:
        template: Its path in the package; it extends `lab/drawing/base.html.jinja`.
        given: What the template speaks of.
    """
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
