"""What to say to somebody who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """' Did you mean …? Known: ….', to be put behind the sentence that names the unknown word."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."
