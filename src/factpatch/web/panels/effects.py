"""Side effects: traffic lights with their numbers, and where the models keep a fact."""

from __future__ import annotations

from typing import Any

import gradio as gr

from factpatch.web.desk import Desk
from factpatch.web.effects import effects, traced
from factpatch.web.panels.base import Page, html
from factpatch.web.view import shown

_TRACE = "trace"
"""Under this name a desk keeps what was traced last, and in which edits."""


def effects_panel(page: Page) -> None:
    """Make the lights and the heat map."""
    measure = gr.Button("Measure the side effects", variant="primary", elem_id="measure")
    notice = html("effects-notice")
    lights = html("effects")
    with gr.Row(elem_classes="tools"):
        fact = gr.Dropdown([], label="Where is this fact kept?", elem_id="trace-fact", scale=2)
        trace = gr.Button("Trace it", elem_id="trace")
    heat = html("heat")
    page.show([lights, fact, heat], _shown)
    page.begin(measure.click, _measure, [], notice)
    page.begin(trace.click, _trace, [fact], notice)


def _measure(desk: Desk) -> None:
    if not desk.results.batches:
        raise ValueError("Nothing is edited, so there are no side effects.")

    def run() -> None:
        desk.open()
        assert desk.editor is not None
        batches = desk.results.batches
        layers = desk.editor.patch.layers
        facts = [fact for batch in batches for fact in batch]
        data = desk.shared.capability_data
        desk.effects = batches, effects(desk.original, desk.edited_model, layers, facts, data)

    desk.start("measuring side effects", run)


def _trace(desk: Desk, place: str | None) -> None:
    batches = desk.results.batches
    if not batches:
        raise ValueError("Nothing is edited, so there is no fact to trace.")
    i, j = map(int, (place or "1.1").split("."))
    if not (1 <= i <= len(batches) and 1 <= j <= len(batches[i - 1])):
        raise ValueError("This fact is not in force any more.")
    fact = batches[i - 1][j - 1]

    def run() -> None:
        desk.open()
        models = [("Original model", desk.original), ("Edited model", desk.edited_model)]
        desk.spare[_TRACE] = batches, fact, traced(models, fact)

    desk.start("tracing", run)


def _shown(desk: Desk) -> list[Any]:
    facts = [
        (f"{i}.{j}  {one.text} → {one.target_new}", f"{i}.{j}")
        for i, batch in enumerate(desk.results.batches, start=1)
        for j, one in enumerate(batch, start=1)
    ]
    batches, fact, maps = desk.spare.get(_TRACE, ((), None, []))
    if batches != desk.results.batches:
        fact, maps = None, []
    return [
        shown("effects", effects=desk.measured, edited=bool(desk.results.batches)),
        gr.update(choices=facts, value=facts[0][1] if facts else None),
        shown("heat", fact=fact, maps=maps),
    ]
