"""The forms in which a model is asked about a fact when it answers freely."""

from __future__ import annotations

from collections.abc import Sequence

from factpatch.evaluation.generation import MAX_NEW_TOKENS, greedy_answers, sentence_count
from factpatch.evaluation.probabilities import Progress
from factpatch.evaluation.readings import Answer
from factpatch.facts import Fact
from factpatch.model.frame import Frame, chat_frame
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import target_ids

_REPEATED = 16
"""More tokens for the answer to a question, which often repeats the question first."""


def question(fact: Fact) -> str:
    """Return the fact as a question: its prompt if that is one, else its first paraphrase that is one, else a task."""
    own = (text.strip() for text in (fact.text, *fact.paraphrases))
    return next((text for text in own if text.endswith(("?", "？", "؟"))), f"Complete the sentence: {fact.text} ...")


def answers(
    lm: LanguageModel, facts: Sequence[Fact], progress: Progress = lambda answers: None
) -> list[tuple[Answer, ...]]:
    """Return what a model answers freely about facts: for each fact one answer in every form that suits the model.

    In a chat, the prompt and the question are turns of a user. Otherwise a question stands between "Question:" and
    "Answer:", and is asked in a chat as well if the tokenizer has a usable chat template. `progress` is called after
    each batch of answers with their number.
    """
    framed = forms(lm)
    asked = [(name, asked_as(name, fact, frame.chat)) for fact in facts for name, frame in framed.items()]
    rooms = [_room(lm, fact, name, frame) for fact in facts for name, frame in framed.items()]
    # All at once: a step on many rows takes little longer than one on few.
    frames = [framed[name] for name, _ in asked]
    lengths = [sentence_count(fact.target_new) for fact in facts for _ in framed]
    said = greedy_answers(lm, [prompt for _, prompt in asked], rooms, frames, progress, lengths)
    found = [Answer(name, prompt, answer) for (name, prompt), answer in zip(asked, said, strict=True)]
    return [tuple(found[first : first + len(framed)]) for first in range(0, len(found), len(framed))]


def forms(lm: LanguageModel) -> dict[str, Frame]:
    """Return the forms in which a model can be asked, each with what stands around the prompt."""
    plainly = {"prompt": lm.frame, "question": lm.frame}
    if lm.frame.chat:
        return plainly
    try:
        return {**plainly, "chat": chat_frame(lm.tokenizer)}
    except ValueError:  # there is no chat template, or none that serves
        return plainly


def asked_as(form: str, fact: Fact, chat: bool) -> str:
    """Return the text that asks about a fact in a form: what the model continues or, in a chat, what the user says."""
    if form == "prompt":
        return fact.text
    return question(fact) if chat else f"Question: {question(fact)}\nAnswer:"


def room(form: str, tokens: int) -> int:
    """Return how many new tokens an answer may have where the new object has so many, so that a long one is not cut."""
    return max(MAX_NEW_TOKENS, tokens + 1) + (0 if form == "prompt" else _REPEATED)


def _room(lm: LanguageModel, fact: Fact, form: str, frame: Frame) -> int:
    return room(form, len(target_ids(lm.tokenizer, fact.target_new, frame, frame.joint(fact.text, fact.space))))
