"""What a served model says of facts: as `verify`, over HTTP, and with answers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from factpatch.evaluation.generation import first_sentence, sentence_count
from factpatch.evaluation.probabilities import Progress
from factpatch.evaluation.probes import Spoken, beside, spoken
from factpatch.evaluation.questions import TURNS, Asked, asked, framed_question, room
from factpatch.evaluation.readings import Answer, Reading
from factpatch.evaluation.server import NotServedError, Server, ServerError
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact

_CONTINUING, _ASKING = ("prompt",), ("question", "chat")
"""The forms in which prompts are continued and questions asked beside facts; of these, the first that there is."""
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
    return (*plainly, *(Form(name, True) for name, turns in TURNS.items() if turns or not chat))


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
        # A fact without a question serves too: which forms there are depends on the server alone.
        text = next(iter(_texts((form,), [fact])[0]), Asked(form.name, fact.text))
        try:
            _answer(server, _question(form, fact, text))
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
    probes: bool = False,
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
        probes: Whether to ask beside the facts too, as far as answers suffice; see `probes.spoken`. What is to be
            continued is asked as the edit prompt is; questions are asked as questions or, if that is not among the
            forms, in a chat.
        concurrency: How many questions to ask at a time.
        progress: Called with the number of questions that were answered since the last call, of which `question_count`
            gives the total.

    Raises:
        ServerError: The server stops answering, or answers otherwise than the API says; or probes are wanted, and the
            forms leave no way to ask any.
    """
    if probes:
        _check_askable(server, forms)
    by_fact = _questions(forms, facts, neighbors, probes)
    wanted = [question for group in by_fact for question in group.all]
    answers = _answers(server, wanted, concurrency, progress)
    readings = [group.reading(fact, answers, probes) for fact, group in zip(facts, by_fact, strict=True)]
    return Verification(tuple(facts), tuple(readings), None if before is None else before.after)


def question_count(forms: Sequence[Form], facts: Sequence[Fact], neighbors: bool = False, probes: bool = False) -> int:
    """Return how many questions `verify_served` asks: the sum of what it reports as progress."""
    return sum(len(asked.all) for asked in _questions(forms, facts, neighbors, probes))


class _AskedOf(NamedTuple):
    """All that is asked of a fact."""

    own: list[_Question]
    around: list[_Question]
    """One for each neighbor."""
    beside: list[tuple[Spoken, _Question | None]]
    """The probes, and None for one that the forms leave no way to ask."""

    @property
    def all(self) -> list[_Question]:
        return [*self.own, *self.around, *(question for _, question in self.beside if question is not None)]

    def reading(self, fact: Fact, answers: Mapping[_Question, str], probes: bool) -> Reading:
        """What the answers say of the fact."""
        own, around = (
            tuple(Answer(one.form.name, one.text, answers[one]) for one in some) for some in (self.own, self.around)
        )
        given = [(one, "" if it is None else it.text, None if it is None else answers[it]) for one, it in self.beside]
        return Reading(answers=own, neighbor_answers=around, beside=beside(fact, given) if probes else None)


def _questions(forms: Sequence[Form], facts: Sequence[Fact], neighbors: bool, probes: bool) -> list[_AskedOf]:
    named = {form.name: form for form in forms}
    plain = [named["prompt"]] if neighbors and "prompt" in named else []
    return [
        _AskedOf(
            [_question(named[one.form], fact, one) for one in texts],
            [_Question(form, neighbor.prompt) for form in plain for neighbor in fact.neighbors],
            [(one, _beside(named, one)) for one in spoken(fact, facts)] if probes else [],
        )
        for fact, texts in zip(facts, _texts(forms, facts), strict=True)
    ]


def _beside(named: Mapping[str, Form], one: Spoken) -> _Question | None:
    """What asks a probe."""
    form = next((named[name] for name in (_ASKING if one.question else _CONTINUING) if name in named), None)
    if form is None:
        return None
    text = framed_question(one.text, form.chat) if one.question else one.text
    kind = "prompt" if one.kind == "ripple" else form.name  # as in process
    return _Question(form, text, room(kind, max(map(_most_tokens, one.wanted))))


def _check_askable(server: Server, forms: Sequence[Form]) -> None:
    if not {form.name for form in forms} & {*_ASKING, *_CONTINUING}:
        raise ServerError(
            f"{server.url}: continues no text and takes no first turn of a chat, so that nothing can be asked beside "
            "the facts; leave the probes out."
        )


def _texts(forms: Sequence[Form], facts: Sequence[Fact]) -> list[tuple[Asked, ...]]:
    return asked(facts, {form.name: form.chat for form in forms})


def _question(form: Form, fact: Fact, one: Asked) -> _Question:
    tokens = room(form.name, _most_tokens(fact.target_new))
    return _Question(form, one.text, tokens, sentence_count(fact.target_new))


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
        for question, answer in zip(unique, pool.imap(partial(_answer, server), unique), strict=True):
            answers[question] = answer
            progress(1)
    return answers


def _answer(server: Server, question: _Question) -> str:
    form, text, tokens, sentences = question
    if form.chat:
        return first_sentence(server.chat(text, tokens, TURNS.get(form.name, ())), sentences)
    return first_sentence(server.complete(text, tokens), sentences)
