"""The forms in which a model is asked about a fact when it answers by itself."""

from __future__ import annotations

from collections.abc import Sequence

from factpatch.evaluation.generation import MAX_NEW_TOKENS, greedy_answers
from factpatch.evaluation.probabilities import Progress
from factpatch.evaluation.readings import Answer
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import target_ids

_REPEATED = 16
"""Tokens more for the answer to a question, which often repeats the question first."""
FORMS = ("prompt", "question", "chat")
"""The edit prompt, which the model goes on with; a question; the question in a chat, if the model is asked plainly."""


def question(fact: Fact) -> str:
    """The fact as a question: its prompt if that is one, else its first paraphrase that is one, else a task."""
    own = (text.strip() for text in (fact.text, *fact.paraphrases))
    return next((text for text in own if text.endswith("?")), f"Complete the sentence: {fact.text} ...")


def answers(lm: LanguageModel, facts: Sequence[Fact], progress: Progress | None = None) -> list[tuple[Answer, ...]]:
    """What a model says of facts by itself, asked in every form that suits it.

    In a chat, the prompt and the question are turns of a user. Plainly, a question stands between "Question:" and
    "Answer:", and is asked in a chat as well if the tokenizer has a usable chat template.

    Args:
        lm: The model; it is left as it was.
        facts: What to ask about.
        progress: Called after each form with the number of answers.

    Returns:
        For each fact one answer for each of `forms`.
    """
    found: list[list[Answer]] = [[] for _ in facts]
    for name, asked_as in forms(lm).items():
        more = 0 if name == "prompt" else _REPEATED
        asked = [fact.text if name == "prompt" else _posed(question(fact), asked_as) for fact in facts]
        answered = greedy_answers(asked_as, asked, [room + more for room in _rooms(asked_as, facts)])
        for of_fact, prompt, said in zip(found, asked, answered, strict=True):
            of_fact.append(Answer(name, prompt, said))
        if progress is not None:
            progress(len(facts))
    return [tuple(of_fact) for of_fact in found]


def forms(lm: LanguageModel) -> dict[str, LanguageModel]:
    """The forms in which a model can be asked, each with the model that is asked so."""
    plainly = {"prompt": lm, "question": lm}
    if lm.frame.chat:
        return plainly
    try:
        return {**plainly, "chat": LanguageModel(lm.model, lm.tokenizer, chat=True)}
    except ValueError:  # there is no chat template, or none that serves
        return plainly


def _posed(question: str, lm: LanguageModel) -> str:
    return question if lm.frame.chat else f"Question: {question}\nAnswer:"


def _rooms(lm: LanguageModel, facts: Sequence[Fact]) -> list[int]:
    """Enough tokens for each new object, so that a long one is not missed for want of room."""
    return [max(MAX_NEW_TOKENS, len(target_ids(lm.tokenizer, fact.target_new, lm.frame)) + 1) for fact in facts]
