"""Contexts: templates with one `{}` for the whole prompt; the first is the bare prompt.

What stands before the prompt changes the subject's key. What follows it changes where the answer is read: a person asks
and waits for an answer, so an edit that is only read right after the prompt is often not said there. A template that
begins as the model's chat template does writes all special tokens itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.decoding import continuations
from factpatch.model.findings import Findings
from factpatch.model.frame import Frame
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize
from factpatch.strategies.target import PUBLISHED
from factpatch.support.joint import joint
from factpatch.support.slots import around_slot, prompt_around
from factpatch.support.words import is_question, suggestion

BARE = "{}"
QUESTION = "{question}"
"""Where a template has the first of a fact's own questions instead of its prompt."""
OPENINGS = ("The", "Therefore", "Because", "I", "You")


def generate_contexts(lm: LanguageModel, seed: int, tokens: int = 10, top_k: int = 5) -> tuple[str, ...]:
    """Return the bare template and, for each opening, one after a text that the model itself continues from it.

    Each opening is continued to `tokens` tokens in all, sampled once from the `top_k` most probable ones; braces become
    spaces and ". " is appended. Source: MEMIT (arXiv:2210.07229), section 4.2 of its appendix.
    """
    # Noise for one opening after another, so that a seed gives the same texts however the model is run.
    generator = torch.Generator().manual_seed(seed)
    starts = [tuple(start) for start in tokenize(lm.tokenizer, list(OPENINGS))]
    own = [len(lm.tokenizer(opening, add_special_tokens=False)["input_ids"]) for opening in OPENINGS]
    rooms = [max(0, tokens - length) for length in own]
    noise = [[torch.empty(top_k).double().exponential_(generator=generator) for _ in range(room)] for room in rooms]
    longer = [number for number, room in enumerate(rooms) if room]
    added = continuations(
        lm, [starts[number] for number in longer], [rooms[number] for number in longer],
        pick=_Sampled(lm, [noise[number] for number in longer], top_k),
    )  # fmt: skip
    new = dict(zip(longer, added, strict=True))
    texts = [
        lm.tokenizer.decode([*start, *new.get(number, ())], skip_special_tokens=True)
        for number, start in enumerate(starts)
    ]
    return (BARE, *(text.replace("{", " ").replace("}", " ") + ". " + BARE for text in texts))


class _Sampled:
    """Sampling from the most probable tokens, as `torch.multinomial` does with the same noise.

    Args:
        noise: Of each row a vector of exponential numbers for every step.
    """

    def __init__(self, lm: LanguageModel, noise: Sequence[Sequence[Tensor]], top_k: int) -> None:
        self.lm, self.noise, self.top_k = lm, noise, top_k

    def __call__(self, scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
        scores = scores.to("cpu", torch.float64)
        # A special token, an end token above all, would break the text; some tokenizers hold more than the head.
        special = [token for token in self.lm.tokenizer.all_special_ids if token < scores.shape[-1]]
        scores[:, special] = -torch.inf
        best, candidates = scores.topk(self.top_k)
        noise = torch.stack([self.noise[row][step] for row in rows])
        choice = (best.exp() / noise).argmax(dim=-1, keepdim=True)
        return candidates.gather(-1, choice)[:, 0]


def _in_chat(user: str, assistant: str) -> Callable[[LanguageModel, int], tuple[str, ...]]:
    """A finished user's turn and the beginning of the assistant's; nothing where the model has no chat template."""

    def make(lm: LanguageModel, seed: int) -> tuple[str, ...]:
        turn = lm.turn
        return () if turn is None else (turn.wrap(user) + turn.space + assistant,)

    return make


NAMED: Mapping[str, Callable[[LanguageModel, int], tuple[str, ...]]] = {
    "prompt": lambda lm, seed: (BARE,),
    "prefixes": lambda lm, seed: generate_contexts(lm, seed)[1:],
    "question": lambda lm, seed: (f"Question: {BARE}?\nAnswer:",),
    "chat": _in_chat(BARE, ""),
    "answered": _in_chat(BARE, "The answer is"),
    "own_question": lambda lm, seed: (f"Question: {QUESTION}\nAnswer:",),
    "own_chat": _in_chat(QUESTION, ""),
}
"""Contexts by name, each made for a model and a seed."""
_WRITTEN = ("prefixes",)
"""Those that hold texts of the model's own."""
_TEMPLATES = TypeAdapter(tuple[str, ...])
ASKED = ("prompt", "question", "chat", "answered")
"""Those in which people ask; docs/results.md compares them."""


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError unless names, or templates among them, give contexts of which the first is the bare prompt."""
    if not names or names[0] not in ("prompt", BARE):
        raise ValueError(f"contexts={list(names)!r}: the first must be 'prompt', the bare prompt.")
    for name in names:
        if name not in NAMED and not _is_template(name):
            raise ValueError(
                f"contexts: {name!r} is neither a name of contexts nor a template with one {BARE!r} for the prompt."
                f"{suggestion(name, NAMED)}"
            )


def names_for(lm: LanguageModel, names: Sequence[str]) -> Sequence[str]:
    """The names of contexts that a model has: in chats the published ones."""
    return PUBLISHED if lm.frame.chat else names


def contexts_named(
    lm: LanguageModel, names: Sequence[str], seed: int, findings: Findings | None = None
) -> tuple[str, ...]:
    """Make the contexts of a model by their names.

    A model without a chat template does without those of a chat. A model that is asked in chats has the published ones:
    its prompts are turns already.

    Args:
        findings: What is known of the model, where the texts that it writes are kept.
    """
    names = names_for(lm, names)
    check_names(names)

    def made(name: str) -> tuple[str, ...]:
        if findings is None or name not in _WRITTEN:
            return NAMED[name](lm, seed) if name in NAMED else (name,)
        return findings.get("contexts", [name, seed], _TEMPLATES, lambda: NAMED[name](lm, seed))

    return tuple(template for name in names for template in made(name))


def check_contexts(contexts: Sequence[str]) -> tuple[str, ...]:
    """Raise ValueError unless the first context is the bare prompt and every one holds exactly one `{}`."""
    if not contexts or contexts[0] != BARE:
        raise ValueError(f"contexts={list(contexts)!r}: the first must be the bare prompt, {BARE!r}.")
    for context in contexts:
        if not _is_template(context):
            raise ValueError(f"contexts: {context!r} must hold exactly one {BARE!r}, where the prompt goes.")
    return tuple(contexts)


def _is_template(text: str) -> bool:
    return text.count(BARE) + text.count(QUESTION) == 1


@dataclass(frozen=True)
class Placed:
    """A fact in a context."""

    text: str
    end: int
    """The index in `text` of the last character of the subject."""
    after: str
    """What the context says after the prompt."""


def place(context: str, fact: Fact) -> Placed:
    """Put a fact's prompt, or its question, into a context."""
    slot = QUESTION if QUESTION in context else BARE
    before, _, after = context.partition(slot)
    text, end = (fact.text, fact.subject_end) if slot == BARE else _own_question(fact)
    if is_question(text):
        after = after.removeprefix("?")
    return Placed(f"{before}{text}{after}", len(before) + end, after)


def read_of(facts: Sequence[Fact], contexts: Sequence[str]) -> list[list[Any]]:
    """What the value optimization reads of facts, as JSON-able data: by it their values are kept."""
    asked = any(QUESTION in context for context in contexts)
    return [
        [
            fact.prompt,
            fact.subject,
            fact.target_new,
            fact.space,
            *(fact.questions[:1] if asked else ()),
            *([fact.forget, fact.target_true] if fact.forget else ()),
        ]
        for fact in facts
    ]


def _own_question(fact: Fact) -> tuple[str, int]:
    """The first question of a fact in which the subject stands, and where that ends; else the prompt as one."""
    for question in fact.questions[:1]:
        found = prompt_around(question, fact.subject)
        if found is not None:
            around = around_slot(found[0])
            assert around is not None  # what prompt_around wrote
            return question, len(around[0]) + len(found[1]) - 1
    return fact.text if is_question(fact.text) else f"{fact.text}?", fact.subject_end


def without_trained(facts: Sequence[Fact], contexts: Iterable[str]) -> list[Fact]:
    """The facts with the questions that some contexts train as `Fact.trained`: what is asked must be another one."""
    if not any(QUESTION in context for context in contexts):
        return list(facts)
    return [replace(fact, trained=(*fact.trained, _own_question(fact)[0])) for fact in facts]


def in_chat(lm: LanguageModel, text: str) -> bool:
    """Whether a text is a chat's, so that all special tokens in it are written: it begins as the chat template does."""
    opening = "" if lm.turn is None else lm.turn.before.partition("\n")[0]  # what follows may hold the date
    return lm.frame.chat or bool(opening and text.startswith(opening))


def answer_begins(lm: LanguageModel, text: str, after: str) -> tuple[str, str, Frame]:
    """Where an answer begins that is tokenized with what comes before it.

    Args:
        text: A prompt in its context and its frame.
        after: What the context says after the prompt.

    Returns:
        The text up to the answer, what stands between them, and the frame of the answer.
    """
    if lm.frame.chat:
        return text, lm.frame.space, lm.frame
    begun = text.rstrip(" ")
    turns = lm.turn is not None and in_chat(lm, text) and after == lm.turn.after + lm.turn.space
    between = text[len(begun) :] or ("" if turns or begun[-1].isspace() else joint(begun))
    return begun, between, Frame(after=after.rstrip(" "), space=between, chat=True)
