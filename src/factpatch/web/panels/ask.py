"""Ask: a free prompt or a chat, answered by the original and the edited model at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from factpatch.web.asking import SIDES, Talk, answer
from factpatch.web.desk import Desk
from factpatch.web.panels.base import ALONE, Page, html
from factpatch.web.view import shown
from factpatch.web.work import Job

_LOOK = 0.1
_TALK, _JOB = "talk", "asking"
_WAYS = [("Continue a text", "prompt"), ("Chat", "chat")]


def ask_panel(page: Page) -> None:
    """Make the place to ask both models anything."""
    gr.Markdown("Both models answer the same text, word by word, always with the likeliest next word.")
    way = gr.Radio(_WAYS, value="prompt", label="How to ask", elem_id="way")
    text = gr.Textbox(label="Your text", placeholder="The capital of France is", max_lines=4, elem_id="ask-text")
    with gr.Row(elem_classes="tools"):
        send = gr.Button("Ask both models", variant="primary", elem_id="ask")
        stop = gr.Button("Stop", elem_id="ask-stop")
        new = gr.Button("New chat", elem_id="ask-new")
    notice = html("ask-notice")
    with gr.Row(elem_classes="answers"):
        sides = [html(f"answer-{side}", min_width=260) for side in SIDES]
    page.show(sides, _answers)

    async def asked(text: str, way: str, request: gr.Request) -> AsyncIterator[list[str]]:
        desk = await asyncio.to_thread(page.desk, request)
        try:
            job = _start(desk, text, way)
        except ValueError as error:
            yield [shown("notice", error=str(error), text=""), *_answers(desk)]
            return
        while not job.over.is_set():
            before = page.room.shared.worker.before(job)
            waits = f"Waiting: {before} before you in the queue." if before else ""
            yield [shown("notice", error="", text=waits), *_answers(desk)]
            await asyncio.sleep(_LOOK)
        yield [shown("notice", error=job.error, text=""), *_answers(desk)]

    outputs = [notice, *sides]
    for trigger in (send.click, text.submit):
        trigger(asked, [text, way], outputs, show_progress="minimal", **ALONE)

    def end(request: gr.Request) -> None:
        job = page.desk(request).spare.get(_JOB)
        if job is not None:
            job.cancel("Stopped.")

    def begin_anew(request: gr.Request) -> list[str]:
        desk = page.desk(request)
        end(request)
        desk.spare[_TALK] = Talk()
        return ["", *_answers(desk)]

    stop.click(end, None, None, **ALONE)
    new.click(begin_anew, None, outputs, **ALONE)


def _start(desk: Desk, text: str, way: str) -> Job[None]:
    limits, earlier = desk.shared.limits, desk.spare.get(_JOB)
    if not text.strip():
        raise ValueError("text: is empty; write what both models are to continue or answer.")
    limits.check_text(text, "text")
    if earlier is not None and not earlier.over.is_set():
        raise ValueError("Both models are still busy with your last text; wait, or stop them.")
    talk: Talk = desk.spare.setdefault(_TALK, Talk())
    talk.begin(text, way)

    def run(job: Job[None]) -> None:
        desk.open()
        models = dict(zip(SIDES, (desk.original, desk.edited_model), strict=True))
        answer(models, talk, limits.tokens, job.check)

    job: Job[None] = Job("asking", run, limits.seconds)
    desk.spare[_JOB] = job
    return desk.shared.worker.submit(job)


def _answers(desk: Desk) -> list[Any]:
    talk: Talk = desk.spare.get(_TALK) or Talk()
    job = desk.spare.get(_JOB)
    speaking = job is not None and not job.over.is_set()
    turns = {side: list(zip(talk.asked, talk.said[side], strict=True)) for side in SIDES}
    return [shown("answer", side=side, way=talk.way, turns=turns[side], speaking=speaking) for side in SIDES]
