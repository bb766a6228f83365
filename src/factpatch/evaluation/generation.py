"""What a model says next: the first sentence, greedily, or a text of some length, greedily or sampled."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factpatch.evaluation.probabilities import Progress
from factpatch.model.decoding import Pick, TopK, continuations, end_tokens, most_probable
from factpatch.model.frame import Frame
from factpatch.model.language_model import LanguageModel
from factpatch.model.products import asking
from factpatch.model.tokens import tokenize

MAX_NEW_TOKENS = 16
"""Of an answer."""
TEXT_TOKENS = 100
"""New tokens of a text that is judged for its fluency and consistency."""

# A period after an initial or one of these titles and places ends no sentence: "J. R. Smith", "U.S.", "St. Louis".
_NO_END = r"(?<!\b[A-Z])(?<!\b(?:St|Mt|Ft|Dr|Mr|Ms|Jr|Sr))(?<!\bMrs)"
_CLOSING = r"[.!?]+[\"')\]”’]*"
_WIDE = "[。！？｡।۔؟]+[\"')\\]”’」』》]*"  # no white space has to follow these
_END_BEFORE_MORE = re.compile(rf"{_NO_END}{_CLOSING}(?=\s)|{_WIDE}(?=.)|\n")
_END = re.compile(rf"{_NO_END}{_CLOSING}(?=\s|$)|{_WIDE}|\n")


def first_sentence(text: str, sentences: int = 1) -> str:
    """Return the text up to the end of its first sentence, or of its first line with text, stripped; or of a later one.

    Args:
        sentences: How many sentences or lines to return.
    """
    text = text.strip()
    end = next(islice(_END.finditer(text), sentences - 1, None), None)
    return text[: end.end()].rstrip() if end else text


def sentence_count(text: str) -> int:
    """Return how many sentences or lines a text has, as `first_sentence` counts them; at least 1."""
    return 1 + len(_END_BEFORE_MORE.findall(text.strip()))


def greedy_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int | Sequence[int] = MAX_NEW_TOKENS,
    frames: Sequence[Frame] | None = None,
    progress: Progress = lambda answers: None,
    sentences: Sequence[int] | None = None,
) -> list[str]:
    """Continue each prompt greedily and return the first sentence or line of what the model says.

    Args:
        lm: The model; it is left as it was.
        prompts: Texts that end right before their answer, or, where it is asked in a chat, what the user says.
        max_new_tokens: Where an answer is cut if no sentence or line ends before; one number for each prompt, or one.
        frames: How each prompt is asked; by default all as the model is asked.
        progress: Called after each batch of answers with their number.
        sentences: How many sentences or lines to return for each prompt; by default one.

    Returns:
        One answer for each prompt, stripped; it may be empty.

    Raises:
        ValueError: `max_new_tokens` is below 1, or a prompt has no tokens or more than the model reads.
    """
    rooms = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    rows = _rows(lm, prompts, [lm.frame] * len(prompts) if frames is None else frames, rooms)

    asked = list(zip(rows, rooms, [1] * len(rows) if sentences is None else sentences, strict=True))
    said: dict[tuple[tuple[int, ...], int, int], str] = {}
    for wanted in sorted({one[2] for one in asked}):

        def ended(new: list[int], wanted: int = wanted) -> bool:
            """More text cannot change the first sentences."""
            ends = _END_BEFORE_MORE.finditer(_decode(lm.tokenizer, new).lstrip())
            return next(islice(ends, wanted - 1, None), None) is not None

        alike = [one for one in asked if one[2] == wanted]
        unique = list(dict.fromkeys(alike))
        progress(len(alike) - len(unique))
        own_rows, own_rooms = [row for row, *_ in unique], [room for _, room, _ in unique]
        with asking(lm):
            found = continuations(lm, own_rows, own_rooms, done=ended, ends=end_tokens(lm), progress=progress)
        said |= {
            one: first_sentence(_decode(lm.tokenizer, new), wanted) for one, new in zip(unique, found, strict=True)
        }
    return [said[one] for one in asked]


@dataclass(frozen=True)
class Generation:
    """A text that a model wrote."""

    prompt: str
    """What it was given."""
    said: str
    """What it wrote after that, white space included."""

    @property
    def text(self) -> str:
        """The prompt and what follows it."""
        return self.prompt + self.said

    @property
    def empty(self) -> bool:
        """Whether the model said nothing but white space."""
        return not self.said.strip()


def generate_texts(
    lm: LanguageModel,
    prompts: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = TEXT_TOKENS,
    top_k: int = 5,
    seed: int = 0,
    stop: bool = False,
    progress: Progress = lambda texts: None,
) -> list[tuple[Generation, ...]]:
    """Let a model continue some prompts for each fact.

    A text depends on its prompt, the seed and how many equal prompts the same fact has before it, and not on what other
    prompts there are, except for rounding: sampling has a generator for each text.

    Args:
        lm: The model; it is left as it was.
        prompts: For each fact its prompts; in a chat, what the user says.
        max_new_tokens: How many tokens follow a prompt; fewer where the model's positions end.
        top_k: Each token is sampled from so many most probable ones; 1 is greedy.
        seed: Of the sampling, from 0 up.
        stop: Whether a text ends with an end token. The published evaluation continues after it, without showing it.
        progress: Called after each batch of texts with their number.

    Returns:
        For each fact one text for each of its prompts.

    Raises:
        ValueError: `max_new_tokens` or `top_k` is below 1, the seed is negative, or a prompt has no tokens or more than
            the model reads.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: give 1 for the most probable token, or more to sample.")
    if seed < 0:
        raise ValueError(f"seed={seed}: give a number from 0 up.")
    wanted = [(prompt, 0 if top_k == 1 else seen) for group in prompts for prompt, seen in _numbered(group)]
    unique = list(dict.fromkeys(wanted))
    rooms = [max_new_tokens] * len(unique)
    rows = _rows(lm, [prompt for prompt, _ in unique], [lm.frame] * len(unique), rooms)
    pick: Pick = most_probable
    if top_k > 1:
        pick = TopK([_noise(seed, prompt, seen, (max_new_tokens, top_k)) for prompt, seen in unique])
    progress(len(wanted) - len(unique))
    ends = end_tokens(lm) if stop else ()
    with asking(lm):
        new = continuations(lm, rows, rooms, pick=pick, ends=ends, progress=progress)
    said = {one: _continuation(lm, row, ids) for one, row, ids in zip(unique, rows, new, strict=True)}
    texts = iter(Generation(one[0], said[one]) for one in wanted)
    return [tuple(islice(texts, len(group))) for group in prompts]


def _numbered(group: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each prompt with how many equal ones come before it."""
    seen: Counter[str] = Counter()
    for prompt in group:
        yield prompt, seen[prompt]
        seen[prompt] += 1


def _noise(seed: int, prompt: str, seen: int, shape: tuple[int, int]) -> Tensor:
    words = np.frombuffer(hashlib.sha256(prompt.encode()).digest(), dtype="<u4")
    return torch.from_numpy(np.random.default_rng([seed, seen, *words.tolist()]).gumbel(size=shape))


def _continuation(lm: LanguageModel, row: Sequence[int], new: Sequence[int]) -> str:
    """The text of new tokens after their row."""
    # Some tokenizers drop the space in front of a text's first word, so the row is decoded too.
    before, whole = _decode(lm.tokenizer, row), _decode(lm.tokenizer, [*row, *new])
    said = whole.removeprefix(before) if whole.startswith(before) else _decode(lm.tokenizer, new)
    return "\n" + said.lstrip() if lm.frame.chat and said.strip() else said


def _rows(
    lm: LanguageModel, prompts: Sequence[str], frames: Sequence[Frame], rooms: Sequence[int]
) -> list[tuple[int, ...]]:
    if min(rooms, default=1) < 1:
        raise ValueError(f"max_new_tokens={min(rooms)}: give at least 1.")
    rows = []
    for prompt, frame in zip(prompts, frames, strict=True):
        (row,) = tokenize(lm.tokenizer, [frame.wrap(prompt)], frame)
        if not row:
            raise ValueError(f"prompt={prompt!r} has no tokens under this tokenizer; give a text.")
        lm.check_length(row, prompt)
        rows.append(tuple(row))
    return rows


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
