"""Take away: the edits in every format, a session to continue elsewhere, and the commands that do the same."""

from __future__ import annotations

from typing import Any

import gradio as gr

from factpatch.web.desk import Desk
from factpatch.web.panels.base import Page, html
from factpatch.web.recipes import recipe_text
from factpatch.web.take_away import EXPORT_FORMS, command_line, export, python
from factpatch.web.view import shown

_READY = "exported"


def take_panel(page: Page) -> None:
    """Make the choice of formats, the links, and the texts to copy."""
    choices = [(form.title, name) for name, form in EXPORT_FORMS.items()]
    with gr.Row(elem_classes="tools"):
        form = gr.Dropdown(choices, value="patch", label="What to take away", elem_id="form", scale=2)
        prepare = gr.Button("Prepare the file", variant="primary", elem_id="prepare")
    notice = html("take-notice")
    links = html("links")
    copied: dict[str, Any] = {"interactive": False, "buttons": ["copy"], "lines": 3}
    command = gr.Textbox(label="The same on the command line", elem_id="command", **copied)
    code = gr.Textbox(label="The same in Python", elem_id="python", **copied)
    recipe = gr.Textbox(label="The recipe", elem_id="recipe-copy", **copied)
    page.show([links, command, code, recipe], _shown)
    page.begin(prepare.click, _prepare, [form], notice)


def _prepare(desk: Desk, name: str) -> None:
    if name not in EXPORT_FORMS:
        raise ValueError("form: is unknown; choose one from the list.")
    batches = desk.results.batches
    if not batches:
        raise ValueError("Nothing is edited, so there is nothing to take away.")

    def run() -> None:
        file = export(desk, name)
        about, ready = desk.spare.get(_READY, ((), {}))
        kept = ready if about == batches else {}
        desk.spare[_READY] = batches, {**kept, name: (file.name, file.stat().st_size)}

    desk.start(f"preparing {EXPORT_FORMS[name].file}", run)


def _shown(desk: Desk) -> list[str]:
    about, ready = desk.spare.get(_READY, ((), {}))
    current = ready if about == desk.results.batches else {}
    files = [(EXPORT_FORMS[name], *file) for name, file in current.items()]
    edited = bool(desk.results.batches)
    return [
        shown("links", files=files, edited=edited),
        command_line(desk) if edited else "",
        python(desk) if edited else "",
        recipe_text(desk.recipe),
    ]
