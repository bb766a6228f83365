"""What a served model says, against what the same model says in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.fake_server import Fake, fake
from tests.models import tiny

from factpatch.evaluation.generation import first_sentence
from factpatch.evaluation.probes import read_probes
from factpatch.evaluation.questions import answers
from factpatch.evaluation.readings import FORMS, LETTERS, Answer, Reading
from factpatch.evaluation.served import Form, question_count, served_forms, usable_forms, verify_served
from factpatch.evaluation.server import ENGINES, Server, ServerError
from factpatch.evaluation.verify import Verification, plain_summary
from factpatch.facts import Fact, Neighbor, Ripple
from factpatch.model.decoding import continuations, end_tokens
from factpatch.model.frame import Turn, chat_frame
from factpatch.model.language_model import LanguageModel

NEIGHBORS = (Neighbor("The mother tongue of Michel Rocard is", "French"), Neighbor("In Rome people speak", "Italian"))
FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English", "French", id="0", neighbors=NEIGHBORS),
    Fact("What does {} look like?", "Tokyo", "a very large city on the coast of Japan, where people work. It is old"),
    Fact("The {} is in", "Eiffel Tower", "Rome", "Paris", neighbors=NEIGHBORS[1:]),
)


def served(found: Fake, name: str | None = None) -> Server:
    return Server(ENGINES["openai"], found.url, name, named=name is not None).opened()


@pytest.fixture
def lm() -> LanguageModel:
    return tiny("llama", chat=True)


@pytest.fixture
def plain(lm: LanguageModel) -> LanguageModel:
    return LanguageModel(lm.model, lm.tokenizer)


@pytest.fixture
def serving(plain: LanguageModel) -> Iterator[Fake]:
    """The model of `plain` behind HTTP, with its chat template."""
    lock = threading.Lock()

    def write(text: str, tokens: int) -> str:
        ids = plain.tokenizer(text)["input_ids"]
        with lock:
            (new,) = continuations(plain, [tuple(ids)], [tokens], ends=end_tokens(plain))
        return str(plain.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def framed(messages: list[Turn]) -> str:
        return chat_frame(plain.tokenizer, messages[:-1]).wrap(messages[-1]["content"])

    with fake("tiny") as found:
        found.replies["/v1/completions"] = lambda body: {
            "choices": [{"text": write(body["prompt"], body["max_tokens"])}]
        }
        found.replies["/v1/chat/completions"] = lambda body: {
            "choices": [{"message": {"content": write(framed(body["messages"]), body["max_tokens"])}}]
        }
        yield found


def test_a_served_model_is_asked_as_one_in_this_process_is(serving: Fake, plain: LanguageModel) -> None:
    server = served(serving)
    short = [FACTS[0], FACTS[2]]
    found = verify_served(server, served_forms(), short)
    assert [reading.answers for reading in found.after] == answers(plain, short)


BESIDE = (
    replace(
        FACTS[0],
        relation_id="P103",
        ripples=(
            Ripple("reasoning", "Where was Danielle Darrieux born?", ("London",)),
            Ripple("forgetfulness", "Danielle Darrieux also speaks", ("French",)),
        ),
    ),
    Fact("{} is a native speaker of", "Ada Lovelace", "Finnish", "English", relation_id="P103"),
    Fact("Regarding {}, one knows", "Tokyo", "Rome"),
)


def test_beside_facts_a_served_model_answers_as_one_in_this_process_does(serving: Fake, plain: LanguageModel) -> None:
    steps: list[int] = []
    forms = served_forms()
    found = verify_served(served(serving), forms, BESIDE, probes=True, progress=steps.append)
    assert sum(steps) == question_count(forms, BESIDE, probes=True)
    for reading, here in zip(found.after, read_probes(plain, BESIDE), strict=True):
        there = reading.beside
        assert there is not None
        assert (there.negated_answer, there.reversed_answer) == (here.negated_answer, here.reversed_answer)
        assert there.ripples == here.ripples
        assert (there.negated, there.reversed, there.choice) == (None, None, None)
        assert (there.lettered is None) == (here.choice is None)
        if there.lettered is not None and here.choice is not None:
            assert there.lettered.options == here.choice.options
            assert all(
                f"{letter}) {one}" in there.lettered.asked
                for letter, one in zip(LETTERS, here.choice.options, strict=True)
            )


def test_beside_facts_a_server_without_completions_is_asked_what_chats_allow() -> None:
    with fake("edited", say=lambda name, text: "Finnish") as found:
        found.replies["/v1/completions"] = lambda body: (404, {"detail": "Not Found"})
        server = served(found)
        forms, _ = usable_forms(server, BESIDE[0])
        done = verify_served(server, forms, BESIDE, probes=True)
        first = done.after[0].beside
        assert first is not None
        assert first.negated_answer is None
        assert first.reversed_answer == Answer("reversed", "Whose mother tongue is English?", "Finnish")
        assert [None if one is None else one.asked for one in first.ripples] == [BESIDE[0].ripples[0].prompt, None]
        summary = done.summary()
        assert summary["choice_said"]["after"] == 50.0  # of the second fact
        assert (summary["ripple_reasoning"]["after"], summary["ripple_forgetfulness"]["after"]) == (0.0, None)
        assert summary["negated_contained"]["after"] is None
        with pytest.raises(ServerError, match="nothing can be asked beside the facts; leave the probes out"):
            verify_served(server, (Form("chat_later", True),), BESIDE, probes=True)


@pytest.mark.parametrize(
    ("target", "tokens"),
    [
        ("English", 16),
        ("the Autonomous University of Madrid", 17 + 1),
        ("0.123456789, 0.123456789", 2 * 11 + 1 + 1),  # many tokenizers make each digit a token
        ("東京都渋谷区", 6 * 3 + 1),
    ],
)
def test_an_answer_has_room_for_the_new_object(target: str, tokens: int) -> None:
    with fake("tiny") as found:
        verify_served(served(found), served_forms(), [replace(FACTS[0], target_new=target)])
        rooms = {body.get("prompt", "a turn").partition(":")[0]: body["max_tokens"] for *_, body in found.asked if body}
    assert rooms == {FACTS[0].text: tokens, "Question": tokens + 16, "a turn": tokens + 16}


def test_in_a_chat_every_prompt_is_a_turn(serving: Fake, lm: LanguageModel) -> None:
    found = verify_served(served(serving), served_forms(chat=True), [FACTS[0], FACTS[2]])
    assert [reading.answers for reading in found.after] == answers(lm, [FACTS[0], FACTS[2]])
    assert {path for path, *_ in serving.asked[1:]} == {"/v1/chat/completions"}


def knows(name: str, text: str) -> str:
    """An edited model that says the new objects, and its base, which does not; both know one neighbor."""
    if "Rome people" in text:
        return " Italian" if name == "edited" else " French"
    if "Rocard" in text:
        return " French"
    edited = {"Darrieux": "English. She", "Tokyo": "It is a big town", "Eiffel": "the city of Rome\nor"}
    true = {"Darrieux": "French", "Tokyo": "", "Eiffel": "Paris"}
    return next(said for part, said in (edited if name == "edited" else true).items() if part in text)


def test_answers_keep_their_order_and_are_compared_with_those_of_the_unedited_model() -> None:
    def slowly(name: str, text: str) -> str:
        time.sleep(0.05 if "Darrieux" in text else 0.0)
        return knows(name, text)

    with fake("base", "edited", say=slowly) as found:
        forms, reasons = usable_forms(served(found, "edited"), FACTS[0])
        assert reasons == {}
        steps: list[int] = []
        before = verify_served(served(found, "base"), forms, FACTS, neighbors=True, progress=steps.append)
        assert sum(steps) == question_count(forms, FACTS, True) == 3 * 5 + 3
        asked = len(found.asked)
        after = verify_served(served(found, "edited"), forms, FACTS, before, neighbors=True, concurrency=3)
    assert [reading.answer for reading in after.after] == ["English.", "It is a big town", "the city of Rome"]
    assert after.said() == [True, False, True]
    assert after.summary()["prompt_contained"] == {"before": 0.0, "after": pytest.approx(200 / 3)}
    assert after.summary()["prompt_contained_true"] == {"before": 100.0, "after": 0.0}
    assert after.unchanged_neighbors() == (1, 3)
    assert len({(path, str(body)) for path, _, body in found.asked[asked + 1 :]}) == len(found.asked) - asked - 1
    assert plain_summary(after) == (
        "2 of 3 facts said; asked a question 67 %, in a chat 67 %, with another system turn 67 %, later in a chat "
        "67 %; neighbors: 1 of 3 answers unchanged"
    )
    record = after.to_dict()
    known = {name for name, pair in record["summary"].items() if pair["after"] is not None}
    assert known == {f"{form}_{kind}{true}" for form in FORMS
                     for kind in ("exact", "contained") for true in ("", "_true")}  # fmt: skip
    (first, *_) = record["facts"]
    assert first["after"]["said"] is True
    assert [first["after"][name] for name in ("exact", "preferred", "probability_new", "matched_new")] == [None] * 4
    assert [one["said"] for one in first["before"]["neighbor_answers"]] == ["French", "French"]


def test_without_an_unedited_model_neighbors_are_not_asked() -> None:
    with fake("edited", say=knows) as found:
        done = verify_served(served(found), served_forms(), FACTS)
        assert not [body for _, _, body in found.asked if "Rome people" in str(body)]
    assert done.unchanged_neighbors() is None
    assert plain_summary(done).startswith("2 of 3 facts said; asked a question 67 %, in a chat 67 %")


def test_the_forms_that_a_server_lacks_are_left_out_and_named() -> None:
    with fake("edited", say=knows) as found:
        found.replies["/v1/completions"] = lambda body: (404, {"detail": "Not Found"})
        server = served(found)
        forms, reasons = usable_forms(server, FACTS[0])
        assert forms == (Form("chat", True), Form("chat_system", True), Form("chat_later", True))
        assert reasons.keys() == {"prompt", "question"}
        assert reasons["prompt"] == f"{found.url} has no usable /v1/completions: status 404 (Not Found)"
        done = verify_served(server, forms, FACTS, neighbors=True)
        # What it says in the first form that it can be asked in counts.
        assert done.said() == [True, False, True]
        assert done.summary()["prompt_contained"]["after"] is None
        assert [reading.answer for reading in done.after] == ["English.", "It is a big town", "the city of Rome"]
        assert done.after[0].neighbor_answers == ()
        found.replies["/v1/chat/completions"] = lambda body: (405, "")
        with pytest.raises(ServerError, match=r"cannot be asked at all: .*/v1/completions.*; .*/v1/chat/"):
            usable_forms(server, FACTS[0])


@pytest.mark.parametrize(("status", "words"), [(400, "System role not supported"), (500, "Jinja template failed")])
def test_a_system_turn_for_which_the_server_has_no_place_is_not_asked(status: int, words: str) -> None:
    def reply(body: dict[str, Any]) -> object:
        roles = [turn["role"] for turn in body["messages"]]
        return (status, {"error": words}) if "system" in roles else {"choices": [{"message": {"content": "Rome"}}]}

    with fake("edited") as found:
        found.replies["/v1/chat/completions"] = reply
        forms, reasons = usable_forms(served(found), FACTS[0])
    assert [form.name for form in forms] == ["prompt", "question", "chat", "chat_later"]
    assert words in reasons["chat_system"]


def test_a_fact_without_a_question_is_not_counted_where_only_chats_are_served() -> None:
    unasked = Fact("Regarding {}, one knows", "Tokyo", "Rome")
    with fake("edited", say=knows) as found:
        found.replies["/v1/completions"] = lambda body: (404, {"detail": "Not Found"})
        server = served(found, "edited")
        forms, _ = usable_forms(server, unasked)
        done = verify_served(server, forms, [unasked, FACTS[0]])
    assert [len(reading.answers) for reading in done.after] == [0, 3]
    assert done.unlearned() == []
    assert plain_summary(done).startswith("1 of 1 fact said; in a chat 100 %")
    assert plain_summary(done).endswith("1 fact has no question")


def test_a_server_that_ends_early_ends_the_questions() -> None:
    with fake("edited", say=knows) as found:
        server = served(found)
        left = [None] * 4

        def reply(body: dict[str, object]) -> object:
            if not left:
                return 500, {"error": "out of memory"}
            left.pop()
            return {"choices": [{"text": "Rome"}]}

        found.replies["/v1/completions"] = reply
        with pytest.raises(ServerError, match=r"status 500 \(out of memory\)"):
            verify_served(server, served_forms()[:2], FACTS, concurrency=1)


def test_an_interruption_does_not_wait_for_answers() -> None:
    hold = threading.Event()

    def say(name: str, text: str) -> str:
        if text != FACTS[0].text:
            hold.wait(20)
        return "Rome"

    with fake("edited", say=say) as found:

        def interrupt(answers: int) -> None:
            if answers:
                raise KeyboardInterrupt

        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            verify_served(served(found), served_forms(), FACTS, progress=interrupt)
        assert time.monotonic() - start < 10
        assert len(found.asked) > 2
        hold.set()


def test_what_answers_alone_say_is_not_more_than_they_say() -> None:
    reading = Reading(answers=(Answer("prompt", "asked", "English"),))
    assert (reading.exact, reading.preferred, reading.nll_new, reading.probability_true) == (None,) * 4
    assert plain_summary(Verification(FACTS[:1], (reading,))) == "1 of 1 fact said"
    assert first_sentence(reading.answer or "") == "English"
