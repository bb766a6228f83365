"""What stands between a prompt and its answer: a space, where the language has one."""

from __future__ import annotations

import re
import unicodedata

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003347f"
)
"""Scripts that put no space between words, for the brackets of a regular expression: Thai, Lao, Tibetan, Burmese,
Khmer, Japanese and Chinese."""
_MARKS = "\u3000-\u303f\uff01-\uff65"  # punctuation of these scripts
_ATTACHED = re.compile(
    rf"""[{UNSPACED}{_MARKS}]["'“”‘’]*$|[/\\@]$"""
    rf"""|(?:^|[\s=:,;+|<>/–—({{\[])\\*["'`“”„‘’‚«»‹›]+$"""  # a quote after none of these closes
    rf"""|\b[^\W\d_]['’]$"""  # French l', d', j'
)


def joint(prompt: str, space: bool | None = None) -> str:
    """Return what stands between a prompt and its answer: a space or nothing.

    Nothing follows a prompt that ends in a script without spaces, in an opening bracket or quote, or in a sign that
    belongs to what follows it, as in "$5" or "and/or".

    Args:
        prompt: The complete prompt, without white space at its end.
        space: What the fact itself says; see `Fact.space`.
    """
    if space is not None:
        return " " if space else ""
    attached = _ATTACHED.search(prompt) or unicodedata.category(prompt[-1:] or " ") in ("Ps", "Sc")
    return "" if attached else " "
