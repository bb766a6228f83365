"""What the panels share: whose desk an event is about, and how work is begun and followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from factpatch.web.desk import Desk
from factpatch.web.room import Room, RoomFullError
from factpatch.web.view import shown
from factpatch.web.work import State

LOOK = 0.2
"""Seconds between two looks at work that is followed."""
Shows = Callable[[Desk], Sequence[Any]]


@dataclass
class Page:
    """What the panels make together."""

    room: Room
    status: Any = None
    """Shows what is at work."""
    outputs: list[Any] = field(default_factory=list)
    """All that shows the state of a desk."""
    _shows: list[tuple[int, Shows]] = field(default_factory=list)

    def desk(self, request: gr.Request) -> Desk:
        """The desk of whoever has sent a request."""
        return self.room.desk(key_of(request))

    def show(self, outputs: Sequence[Any], show: Shows) -> None:
        """Have components show the state of a desk: when the page is loaded, and when some work has ended.

        Args:
            show: Returns an update for each of them.
        """
        self.outputs += outputs
        self._shows.append((len(outputs), show))

    def refresh(self, request: gr.Request) -> list[Any]:
        """All that shows the state of a desk, as it is now."""
        try:
            desk = self.desk(request)
        except RoomFullError:
            return [gr.skip() for _ in self.outputs]
        found: list[Any] = []
        for count, show in self._shows:
            updates = list(show(desk))
            assert len(updates) == count
            found += updates
        return found

    async def follow(self, request: gr.Request) -> AsyncIterator[str]:
        """Show how far the work of a desk is, until it is over."""
        try:
            desk = await asyncio.to_thread(self.desk, request)
        except RoomFullError as error:
            yield shown("notice", error=str(error), text="")
            return
        while desk.busy:
            yield self.status_of(desk)
            await asyncio.sleep(LOOK)
        yield self.status_of(desk)

    def status_of(self, desk: Desk) -> str:
        """What is at work at a desk, as HTML."""
        job, batches = desk.job, desk.results.batches
        waits = job is not None and job.state is State.WAITING
        return shown(
            "status",
            model=desk.model,
            method=str(desk.recipe.method),
            facts=sum(map(len, batches)),
            batches=len(batches),
            state="" if job is None else job.state.value,
            job="" if job is None else job.what,
            progress=None if job is None else job.progress,
            error="" if job is None else job.error,
            before=self.room.shared.worker.before(job) if job is not None and waits else 0,
            took=None if job is None else job.took,
        )

    def begin(self, trigger: Any, start: Callable[..., Any], inputs: Sequence[Any], notice: Any) -> Any:
        """On an event, start some work, follow it, and show what has become of the desk.

        Args:
            trigger: The event of a component, such as `button.click`.
            start: Given the request and the values of `inputs`, starts a job of the desk. A ValueError is shown.
            notice: The component that shows it.
        """

        def started(request: gr.Request, *values: Any) -> str:
            try:
                start(self.desk(request), *values)
            except ValueError as error:
                return shown("notice", error=str(error), text="")
            return ""

        begun = trigger(started, inputs, [notice], show_progress="minimal", **ALONE)
        followed = begun.then(self.follow, None, [self.status], show_progress="hidden", **ALONE)
        return followed.then(self.refresh, None, self.outputs, show_progress="hidden", **ALONE)


def html(name: str, **options: Any) -> Any:
    """A component for what `shown` returns, in the page's own style, with a name for it and for tests."""
    return gr.HTML(elem_id=name, apply_default_css=False, padding=False, **options)


ALONE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
"""How all events are: no part of an interface, and any number at a time, since models have a queue of their own."""


def key_of(request: gr.Request) -> str:
    """The secret of the browser that has sent a request, as the gate has found or made it."""
    key = str(request.request.scope.get("desk", "")) if request.request is not None else ""
    if not key:
        raise gr.Error("This page has lost its cookie; reload it.")
    return key
