"""How much one person may ask of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from factpatch.facts import Fact
from factpatch.support.words import counted


@dataclass(frozen=True)
class Limits:
    """What the page allows. What is more is refused with a message that names the limit."""

    facts: int = 50
    """Facts in one edit."""
    session_facts: int = 500
    """Facts in all edits of one person."""
    characters: int = 1000
    """Characters of any text that is typed in, pasted facts aside."""
    upload: int = 20_000_000
    """Bytes of a file."""
    seconds: float = 1800.0
    """How long a single job may take."""
    people: int = 8
    """People whose models are in memory at the same time."""
    grace: float = 60.0
    """Seconds after which the memory of somebody who has left is freed; a page that is reloaded is back before."""
    days: float = 30.0
    """Days after which the files of somebody who has not come back are removed."""
    tokens: int = 80
    """Tokens of an answer."""

    def check_facts(self, facts: Sequence[Fact], edited: int = 0) -> None:
        """Raise ValueError if these are too many or too long to be edited after so many others."""
        if len(facts) > self.facts:
            raise ValueError(
                f"facts: {counted(len(facts), 'fact')}; this page edits at most {self.facts} at a time. Remove some."
            )
        if edited + len(facts) > self.session_facts:
            raise ValueError(
                f"facts: with these the session would have {edited + len(facts)} facts, and this page allows "
                f"{self.session_facts}; undo some, or start over."
            )
        for fact in facts:
            for one in (fact.prompt, fact.subject, fact.target_new, fact.target_true or ""):
                self.check_text(one, "facts")

    def check_text(self, text: str, name: str) -> None:
        """Raise ValueError if a text is too long."""
        if len(text) > self.characters:
            raise ValueError(f"{name}: a text has {len(text)} characters, and this page allows {self.characters}.")

    def check_file(self, path: Path, name: str) -> None:
        """Raise ValueError if a file is too large."""
        size = path.stat().st_size
        if size > self.upload:
            raise ValueError(f"{name}: the file has {size} bytes, and this page takes at most {self.upload}.")

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise ValueError(f"{one.name}={getattr(self, one.name)}: must be positive.")
