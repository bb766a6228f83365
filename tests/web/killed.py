"""A process that is killed in an edit of a session, as a server may be."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from factpatch import Editor, Session
from factpatch.data import load_facts
from factpatch.support.progress import watched


class Killer:
    """Watches an edit, and kills this process in the middle of it."""

    def __init__(self) -> None:
        self.left = 10

    def begin(self, description: str, total: int | None) -> None:
        """Nothing happens yet."""

    def advance(self, steps: int) -> None:
        """The time may have come."""

    def settle(self, done: int, of: int) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def edit_and_die(path: Path, facts: Path) -> None:
    """Attach the session of a directory, plan facts, and die while they are edited."""
    session = Session(path)
    editor = Editor(str(session.source), recipe=session.settled)
    session.attach(editor)
    with session.locked(), watched(Killer()):
        session.plan([load_facts(facts)])
        session.edit(editor)
