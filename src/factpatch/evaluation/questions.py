"""The forms in which a model is asked about a fact when it answers freely."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from factpatch.evaluation.generation import MAX_NEW_TOKENS, greedy_answers, sentence_count
from factpatch.evaluation.probabilities import Progress
from factpatch.evaluation.readings import Answer
from factpatch.evaluation.wording import written_question
from factpatch.facts import Fact, same_object
from factpatch.model.frame import Frame, Turn
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import target_ids
from factpatch.support.words import is_question

TURNS: Mapping[str, Sequence[Turn]] = {
    "chat": (),
    "chat_system": ({"role": "system", "content": "You are a helpful assistant who answers briefly."},),
    "chat_later": (
        {"role": "user", "content": "Please name two things that I can cook in ten minutes."},
        {"role": "assistant", "content": "You can make an omelet or pasta with tomato sauce."},
    ),
}
"""The turns before the question in each form that is a chat; without a system turn, the template's own stands there."""
SAMPLED = 100
"""Of how many facts the questions are asked after other turns too: these differ little, and a run has thousands."""
_AFTER_OTHERS = ("chat_system", "chat_later")

_REPEATED = 16
"""More tokens for the answer to a question, which often repeats the question first."""


class Asked(NamedTuple):
    """One text that asks about a fact."""

    form: str
    """One of `readings.FORMS`."""
    text: str
    """What the model continues or, in a chat, what the user says."""


def questions(fact: Fact) -> tuple[str, ...]:
    """Return the complete questions of a fact.

    They are its own `questions`; else its prompt, or the first of its paraphrases, that is one; else what
    `wording.written_question` makes of the prompt. A question that was trained does not count. There are none if
    nothing else is left, or there is no rule for the prompt.
    """
    own = tuple(text for text in fact.questions if not _was_trained(fact, text))
    if own:
        return own
    held = (text.strip() for text in (fact.text, *fact.paraphrases) if is_question(text))
    found = next((text for text in held if not _was_trained(fact, text)), None) or written_question(fact)
    return () if found is None or _was_trained(fact, found) else (found,)


def _was_trained(fact: Fact, question: str) -> bool:
    return any(same_object(question, trained) for trained in fact.trained)


def answers(
    lm: LanguageModel,
    facts: Sequence[Fact],
    progress: Progress = lambda answers: None,
    only: Collection[str] | None = None,
    chosen: Collection[int] | None = None,
) -> list[tuple[Answer, ...]]:
    """Return what a model answers freely about facts: for each fact the answers in every form that suits the model.

    In a chat, the prompt and the questions are turns of a user. Otherwise a question stands between "Question:" and
    "Answer:", and is asked in a chat as well if the tokenizer has a usable chat template; see `asked`. `progress` is
    called after each batch of answers with their number. `only` names the forms that are wanted, by default all;
    `chosen` is as in `asked`.
    """
    framed = {form: frame for form, frame in forms(lm).items() if only is None or form in only}
    by_fact = asked(facts, {form: frame.chat for form, frame in framed.items()}, chosen)
    pairs = [(fact, one) for fact, group in zip(facts, by_fact, strict=True) for one in group]
    # All at once: a step on many rows takes little longer than one on few.
    frames = [framed[one.form] for _, one in pairs]
    rooms = [_room(lm, fact, one.form, frame) for (fact, one), frame in zip(pairs, frames, strict=True)]
    lengths = [max(map(sentence_count, _wanted(fact))) for fact, _ in pairs]
    said = iter(greedy_answers(lm, [one.text for _, one in pairs], rooms, frames, progress, lengths))
    return [tuple(Answer(one.form, one.text, next(said)) for one in group) for group in by_fact]


def answer_count(lm: LanguageModel, facts: Sequence[Fact], chosen: Collection[int] | None = None) -> int:
    """Return how many answers `answers` gives."""
    return sum(map(len, asked(facts, {form: frame.chat for form, frame in forms(lm).items()}, chosen)))


def forms(lm: LanguageModel) -> dict[str, Frame]:
    """Return the forms in which a model can be asked, each with what stands around the prompt.

    A form is missing where the tokenizer's chat template has no place for its turns, such as a system turn. Where every
    prompt is a user's turn already, "question" is what "chat" would be.
    """
    found = {"prompt": lm.frame, "question": lm.frame}
    for form, turns in TURNS.items():
        if turns or not lm.frame.chat:
            frame = lm.turn_after(turns) if turns else lm.turn
            if frame is not None:
                found[form] = lm.frame.like(frame)
    return found


def asked(
    facts: Sequence[Fact], chats: Mapping[str, bool], chosen: Collection[int] | None = None
) -> list[tuple[Asked, ...]]:
    """Return for each fact the texts that ask about it, in the order of the forms.

    A fact is asked with its prompt once, and with all of its questions in each other form; after an earlier turn with
    its first question only, and of more than `SAMPLED` facts only so many, chosen by their texts alone:
    the same before and after an edit, and whichever other facts there are, as far as that is possible. A fact without a
    question is asked with its prompt only.

    Args:
        facts: What to ask about.
        chats: The forms, and whether what is asked in each is a user's turn.
        chosen: The places of the facts that are asked after an earlier turn; by default those that `sampled` returns.
    """
    chosen = sampled(facts) if chosen is None else chosen
    return [tuple(_texts(fact, chats, place in chosen)) for place, fact in enumerate(facts)]


def _texts(fact: Fact, chats: Mapping[str, bool], sampled: bool) -> Iterator[Asked]:
    texts = questions(fact)
    for form, chat in chats.items():
        if form == "prompt":
            yield Asked(form, fact.text)
        elif form in _AFTER_OTHERS:
            yield from (Asked(form, text) for text in texts[: int(sampled)])
        else:
            yield from (Asked(form, framed_question(text, chat)) for text in texts)


def framed_question(text: str, chat: bool) -> str:
    """Return what asks a question: the user's turn itself, or plain text that ends where the answer begins."""
    return text if chat else f"Question: {text}\nAnswer:"


def sampled(facts: Sequence[Fact], count: int | None = None, first: Collection[str] = ()) -> frozenset[int]:
    """Return the places of at most `count` facts, by default `SAMPLED`; those with a key in `first` come first."""

    def by_chance(place: int) -> tuple[bool, bytes]:
        key = facts[place].key
        return key not in first, hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

    return frozenset(sorted(range(len(facts)), key=by_chance)[: SAMPLED if count is None else count])


def room(form: str, tokens: int) -> int:
    """Return how many new tokens an answer may have where the new object has so many, so that a long one is not cut."""
    return max(MAX_NEW_TOKENS, tokens + 1) + (0 if form == "prompt" else _REPEATED)


def _room(lm: LanguageModel, fact: Fact, form: str, frame: Frame) -> int:
    joint = frame.joint(fact.text, fact.space)
    return room(form, max(len(target_ids(lm.tokenizer, answer, frame, joint)) for answer in _wanted(fact)))


def _wanted(fact: Fact) -> tuple[str, ...]:
    """The answers that an answer must have room for: of a fact to forget, the old ones too."""
    return (fact.target_new, *(fact.old_answers if fact.forget else ()))
