"""Templates to HTML for the page. Whatever they are given is text: it is escaped, for Gradio's own templates too."""

from __future__ import annotations

from typing import Any

from factpatch.lab.drawing.render import render
from factpatch.support.words import printable, steerless
from factpatch.web.words import FORMS, TERMS

# Gradio takes the value of an HTML component for a template, of JavaScript (`${...}`) and of Handlebars (`{{...}}`).
_ENTITIES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def shown(template: str, **given: Any) -> str:
    """Fill in a template of this package by its name, with the filters of the templates."""
    text = render(f"web/templates/{template}.html.jinja", **entries(), **TOOLS, **given)
    # A model may say half of a character, which no JSON can hold.
    return text.encode("utf-8", "replace").decode("utf-8").translate(_ENTITIES)


def percent(share: float | None) -> str:
    """A share as 12 %, <1 % or an empty text."""
    return "" if share is None else "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """Seconds as 12 s or 3 min; an empty text if they are not known."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def entries() -> dict[str, Any]:
    """What templates look words up in."""
    return {"terms": TERMS, "forms": FORMS}


TOOLS = {"percent": percent, "duration": duration, "line": printable, "steerless": steerless}
"""Functions that templates call."""
