"""What a served model says of facts: as `verify`, over HTTP, and with answers only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from factpatch.evaluation.generation import first_sentence, sentence_count
from factpatch.evaluation.probabilities import Progress
from factpatch.evaluation.questions import asked_as, room
from factpatch.evaluation.readings import Answer, Reading
from factpatch.evaluation.server import NotServedError, Server, ServerError
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact

CONCURRENCY = 8
"""Questions at a time. A server that answers one by one lets the others wait."""


class Form(NamedTuple):
    """How a server is asked."""

    name: str
    """One of `readings.FORMS`."""
    chat: bool
    """Whether the text is a user's turn, which the server's chat template frames; else it is sent as it is."""


class _Question(NamedTuple):
    form: Form
    text: str
    tokens: int = room("prompt", 0)
    sentences: int = 1


def served_forms(chat: bool = False) -> tuple[Form, ...]:
    """Return the forms to ask a server in, as `questions.forms` does of a model in process."""
    plainly = (Form("prompt", chat), Form("question", chat))
    return plainly if chat else (*plainly, Form("chat", True))


def usable_forms(server: Server, fact: Fact, chat: bool = False) -> tuple[tuple[Form, ...], dict[str, str]]:
    """Ask about one fact in every form; return those that the server answers in, and why it does not in the others.

    Args:
        server: The model, as `Server.opened` returns it.
        fact: What to ask about.
        chat: Whether to ask every prompt as a user's turn of a chat.

    Raises:
        ServerError: The server answers in none, or not as the API says.
    """
    usable, reasons = [], {}
    for form in served_forms(chat):
        try:
            _asked(server, _question(form, fact))
        except NotServedError as error:
            reasons[form.name] = str(error)
        else:
            usable.append(form)
    if not usable:
        raise ServerError(f"{server.url}: cannot be asked at all: {'; '.join(dict.fromkeys(reasons.values()))}.")
    return tuple(usable), reasons


def verify_served(
    server: Server,
    forms: Sequence[Form],
    facts: Sequence[Fact],
    before: Verification | None = None,
    *,
    neighbors: bool = False,
    concurrency: int = CONCURRENCY,
    progress: Progress = lambda questions: None,
) -> Verification:
    """Ask a served model about facts, greedily. Servers give no probabilities in general, so that none are known.

    An answer ends where it does in process: after the first sentence, or after so many tokens as a model in process may
    say. Without a tokenizer the tokens of a new object are overestimated, so that of a long one it may be longer here.

    Args:
        server: The model, as `Server.opened` returns it.
        forms: How to ask, see `usable_forms`.
        facts: What to ask about.
        before: An earlier verification of the same facts, such as that of the unedited model.
        neighbors: Whether to ask with the neighbors' prompts too. Their answers say something only beside earlier ones.
            They are asked as the edit prompt is, and not at all if that is not among the forms.
        concurrency: How many questions to ask at a time.
        progress: Called with the number of questions that were answered since the last call, of which `question_count`
            gives the total.

    Raises:
        ServerError: The server stops answering, or answers otherwise than the API says.
    """
    by_fact = [_questions(forms, fact, neighbors) for fact in facts]
    answers = _answers(server, [question for group in by_fact for question in group], concurrency, progress)
    readings = []
    for group in by_fact:
        own = [Answer(question.form.name, question.text, answers[question]) for question in group]
        readings.append(Reading(answers=tuple(own[: len(forms)]), neighbor_answers=tuple(own[len(forms) :])))
    return Verification(tuple(facts), tuple(readings), None if before is None else before.after)


def question_count(forms: Sequence[Form], facts: Sequence[Fact], neighbors: bool = False) -> int:
    """Return how many questions `verify_served` asks: the sum of what it reports as progress."""
    return sum(len(_questions(forms, fact, neighbors)) for fact in facts)


def _questions(forms: Sequence[Form], fact: Fact, neighbors: bool) -> list[_Question]:
    """One question for each form, and then one for each neighbor."""
    plain = [form for form in forms if form.name == "prompt" and neighbors]
    around = [_Question(form, neighbor.prompt) for form in plain for neighbor in fact.neighbors]
    return [*(_question(form, fact) for form in forms), *around]


def _question(form: Form, fact: Fact) -> _Question:
    tokens = room(form.name, _most_tokens(fact.target_new))
    return _Question(form, asked_as(form.name, fact, form.chat), tokens, sentence_count(fact.target_new))


def _most_tokens(text: str) -> int:
    """More tokens than a text is likely to have: most stand for more than two letters of the Latin script."""
    letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in text)
    return letters // 2 + len(text.encode("utf-8", "surrogatepass")) - letters


def _answers(
    server: Server, questions: Sequence[_Question], concurrency: int, progress: Progress
) -> dict[_Question, str]:
    unique = list(dict.fromkeys(questions))
    if repeated := len(questions) - len(unique):
        progress(repeated)
    answers = {}
    # Its threads end with the process, whatever they wait for, so that an interruption takes effect at once.
    with ThreadPool(max(1, min(concurrency, len(unique)))) as pool:
        for question, answer in zip(unique, pool.imap(partial(_asked, server), unique), strict=True):
            answers[question] = answer
            progress(1)
    return answers


def _asked(server: Server, question: _Question) -> str:
    ask = server.chat if question.form.chat else server.complete
    return first_sentence(ask(question.text, question.tokens), question.sentences)
