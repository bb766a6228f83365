"""Facts: the table, files, pasted text and examples; every row as the library reads it; and the edit itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from factpatch.facts import Fact
from factpatch.web.desk import Desk
from factpatch.web.panels.base import ALONE, Page, html
from factpatch.web.table import COLUMNS, EXAMPLES, cells_of, example, read_file, read_pasted, read_rows
from factpatch.web.view import shown

_BLANK = [["", "", "", ""]]
_FILES = [".json", ".jsonl", ".csv", ".tsv"]


def facts_panel(page: Page) -> None:
    """Make the table of facts, what fills it, and the buttons that teach them."""
    with gr.Row(elem_classes="tools"):
        names = gr.Dropdown(list(EXAMPLES), label="Examples", value=next(iter(EXAMPLES)), scale=2, min_width=160)
        examples = gr.Button("Use examples", min_width=120, elem_id="use-examples")
        upload = gr.UploadButton("Upload a file", file_types=_FILES, min_width=120, elem_id="upload-facts")
        clear = gr.Button("Clear the table", min_width=120, elem_id="clear-facts")
    table = gr.Dataframe(
        value=_BLANK,
        headers=list(COLUMNS),
        datatype="str",
        type="array",
        column_count=len(COLUMNS),
        interactive=True,
        wrap=True,
        column_widths=["40%", "20%", "20%", "20%"],
        line_breaks=False,
        show_row_numbers=True,
        label="Facts to teach",
        buttons=[],
        elem_id="facts",
    )
    with gr.Accordion("Paste facts", open=False):
        pasted = gr.Textbox(
            label="JSON, JSON Lines, CSV, or cells of a spreadsheet",
            info="CSV and cells begin with the names prompt, subject, target_new and, if known, target_true.",
            lines=4,
            elem_id="pasted",
        )
        add = gr.Button("Put them into the table", elem_id="add-pasted")
    checked = html("checked")
    with gr.Row(elem_classes="tools"):
        edit = gr.Button("Teach the model these facts", variant="primary", elem_id="edit")
        cancel = gr.Button("Cancel", elem_id="cancel")
    notice = html("edit-notice")
    page.show([table, checked], lambda desk: (_table(desk), _checked(desk)))
    page.begin(edit.click, teach, [table], notice)
    _fill(page, table, checked, examples.click, [names], lambda desk, name: example(name))
    _fill(page, table, checked, upload.upload, [upload], lambda desk, file: _read(page, file))
    _fill(page, table, checked, add.click, [pasted], lambda desk, text: _paste(page, text))
    _fill(page, table, checked, clear.click, [], lambda desk: [])

    def check(values: Sequence[Sequence[Any]], request: gr.Request) -> str:
        desk = page.desk(request)
        desk.rows = values
        return _checked(desk)

    def stop(request: gr.Request) -> None:
        desk = page.desk(request)
        if desk.busy and desk.job is not None:
            desk.job.cancel()

    cancel.click(stop, None, None, **ALONE)
    table.input(check, [table], [checked], show_progress="hidden", trigger_mode="always_last", **ALONE)


def _fill(page: Page, table: Any, checked: Any, trigger: Any, inputs: Sequence[Any], read: Callable[..., Any]) -> None:
    """On an event, put the facts into the table that `read` returns, given the desk and the inputs' values."""

    def fill(request: gr.Request, *values: Any) -> tuple[Any, str]:
        desk = page.desk(request)
        try:
            facts = read(desk, *values)
        except ValueError as error:
            return gr.skip(), _checked(desk, str(error))
        desk.facts, desk.rows = list(facts), [list(cells_of(fact)) for fact in facts]
        return _table(desk), _checked(desk)

    trigger(fill, inputs, [table, checked], **ALONE)


def _paste(page: Page, text: str) -> list[Fact]:
    return read_pasted(text, page.room.uploads, page.room.limits.facts)


def teach(desk: Desk, values: Sequence[Sequence[Any]]) -> None:
    """Begin to teach the facts of the table; ValueError if a row is none."""
    desk.rows = values
    rows = read_rows(values, desk.facts)
    wrong = [str(row.number) for row in rows if row.mistake]
    if wrong:
        raise ValueError(f"Correct or empty row {', '.join(wrong)} first.")
    facts = [row.fact for row in rows if row.fact is not None]
    if not facts:
        raise ValueError("There are no facts in the table; type one, or take the examples.")
    desk.shared.limits.check_facts(facts)

    def run() -> None:
        desk.edit(facts)
        desk.rows, desk.facts = (), []

    desk.start(f"teaching {len(facts)} fact{'' if len(facts) == 1 else 's'}", run)


def uploaded(page: Page, file: str | None) -> Path:
    """A file that was uploaded; ValueError if it was not, or is too large."""
    path = Path(file or "")
    if file is None or not path.resolve().is_relative_to(page.room.uploads.resolve()):
        raise ValueError("file: was not uploaded here.")
    page.room.limits.check_file(path, path.name)
    return path


def _read(page: Page, file: str | None) -> list[Fact]:
    """The facts of a file that was uploaded, which is removed."""
    path = uploaded(page, file)
    try:
        return read_file(path, path.name, page.room.limits.facts)
    finally:
        path.unlink(missing_ok=True)


def _table(desk: Desk) -> Any:
    return gr.update(value=list(desk.rows) or _BLANK)


def _checked(desk: Desk, notice: str = "") -> str:
    return shown("checked", rows=read_rows(desk.rows, desk.facts), notice=notice)
