"""History: every batch with its facts; undo to any point, one fact taken back, an interrupted edit continued."""

from __future__ import annotations

import shutil
from typing import Any

import gradio as gr

from factpatch.web.desk import Desk
from factpatch.web.panels.base import Page, html
from factpatch.web.panels.facts import uploaded
from factpatch.web.table import cells_of
from factpatch.web.take_away import unpack_session
from factpatch.web.view import shown


def history_panel(page: Page) -> None:
    """Make the list of batches, and what takes them back."""
    history = html("history")
    notice = html("history-notice")
    with gr.Row(visible=False) as pending:
        resume = gr.Button("Continue the interrupted edit", variant="primary", elem_id="resume")
        drop = gr.Button("Drop its facts", elem_id="drop")
    with gr.Row(elem_classes="tools"):
        point = gr.Dropdown([], label="Go back to", elem_id="point", scale=2)
        undo = gr.Button("Undo to there", elem_id="undo")
    with gr.Row(elem_classes="tools"):
        fact = gr.Dropdown([], label="A single fact", elem_id="fact", scale=2)
        take = gr.Button("Take it back", elem_id="take-back")
    with gr.Row(elem_classes="tools"):
        archive = gr.UploadButton("Open a session (.zip)", file_types=[".zip"], elem_id="open-session")
        again = gr.Button("Start over: forget all edits", variant="stop", elem_id="start-over")
    page.show([history, pending, point, fact], lambda desk: _shown(desk))

    page.begin(undo.click, _undo, [point], notice)
    page.begin(take.click, _take_back, [fact], notice)
    page.begin(resume.click, lambda desk: desk.start("continuing the edit", desk.resume), [], notice)
    page.begin(drop.click, _drop, [], notice)
    page.begin(archive.upload, lambda desk, file: _open(page, desk, file), [archive], notice)
    page.begin(again.click, lambda desk: desk.start_over(), [], notice)


def _shown(desk: Desk) -> tuple[Any, ...]:
    results = desk.results
    points = [("The unedited model", 0)]
    points += [(f"After batch {number}", number) for number in range(1, len(results.batches))]
    facts = [
        (f"{i}.{j}  {one.text} → {one.target_new}", f"{i}.{j}")
        for i, batch in enumerate(results.batches, start=1)
        for j, one in enumerate(batch, start=1)
    ]
    return (
        shown("history", batches=results.batches, pending=results.pending, taken=results.taken),
        gr.update(visible=bool(results.pending) and not desk.busy),
        gr.update(choices=points if results.batches else [], value=points[-1][1] if results.batches else None),
        gr.update(choices=facts, value=facts[-1][1] if facts else None),
    )


def _undo(desk: Desk, to: int | None) -> None:
    if to is None or not desk.results.batches:
        raise ValueError("There is nothing to undo.")
    undone = [one for batch in desk.results.batches[int(to) :] for one in batch]

    def run() -> None:
        desk.undo(int(to))
        # Back into the table, where they can be changed and taught again.
        desk.rows, desk.facts = [list(cells_of(one)) for one in undone], undone

    desk.start("undoing", run)


def _take_back(desk: Desk, fact: str | None) -> None:
    if not fact:
        raise ValueError("There is no fact to take back.")
    desk.start("taking a fact back", lambda: desk.take_back(fact))


def _open(page: Page, desk: Desk, file: str | None) -> None:
    """Begin to take up the session of an archive that was uploaded."""
    archive = uploaded(page, file)
    folder = desk.folder / "brought"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        unpack_session(archive, folder, page.room.limits.upload)
        desk.start("opening the session", lambda: desk.bring(folder))
    except BaseException:
        shutil.rmtree(folder)
        raise
    finally:
        archive.unlink(missing_ok=True)


def _drop(desk: Desk) -> None:
    desk.start("dropping the facts", lambda: desk.undo(len(desk.results.batches)))
