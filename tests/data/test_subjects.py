"""Facts without a subject: the name that their texts share, else the last token; and what travels with a fact."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tests.editors import FACTS, make

from factpatch import Fact, load_facts, question_fact
from factpatch.cli.render import about_fact
from factpatch.data import save_facts
from factpatch.data.reading import DataFileError
from factpatch.data.subjects import capitalized, shared_name
from factpatch.evaluation.metrics import said, summary
from factpatch.evaluation.questions import questions
from factpatch.evaluation.readings import Answer, Reading
from factpatch.evaluation.wording import reversed_question
from factpatch.export.card import model_card
from factpatch.facts import Neighbor
from factpatch.patch.file import describe


@pytest.mark.parametrize(
    ("whole", "asked", "others", "name"),
    [
        ("The capital of France is", ["France's capital city is"], ["The capital of Italy is"], "France"),
        ("The capital of France is", ["France's capital city is"], [], "France"),
        ("The mother tongue of Danielle Darrieux is", ["Danielle Darrieux speaks"], [], "Danielle Darrieux"),
        ("The mother tongue of Danielle Darrieux is", [], ["The mother tongue of Léon Blum is"], "Danielle Darrieux"),
        (
            "Who founded the University of Vienna?",
            ["The University of Vienna was founded by"],
            [],
            "University of Vienna",
        ),
        (
            "the largest planet in the solar system is",
            ["of all in the solar system, the largest is"],
            [],
            "solar system",
        ),
        # KnowEdit's neighbors ask something else about the same subject.
        (
            "Who painted Guernica?",
            ["The painter of Guernica is"],
            ["Guernica hangs in", "Guernica is from"],
            "Guernica",
        ),
        # Most texts agree; one has another name of the subject.
        ("Where is Burma?", ["Burma is in", "Burma belongs to", "Myanmar is in"], [], "Burma"),
        ("Who wrote it?", ["What is the author?"], [], None),
        ("The capital of France is", [], [], None),
        ("The capital of France is", [], ["The capital of France has"], None),
    ],
)
def test_the_name_is_what_the_texts_share(whole: str, asked: list[str], others: list[str], name: str | None) -> None:
    assert shared_name(whole, asked, others) == name


@pytest.mark.parametrize(
    ("whole", "name"),
    [
        ("Who wrote the opera Fidelio?", "Fidelio"),
        ("Which instrument did the composer of the Vesper Suite play?", "Vesper Suite"),
        ("The University of Vienna is in", "University of Vienna"),
        ("Danielle Darrieux speaks", "Danielle Darrieux"),
        ("Who was president in Finland before Kekkonen?", "Kekkonen"),
        ("Why did he leave?", None),
        ("Please tell me what it is", None),
        ("《红楼梦》的作者是", None),
    ],
)
def test_without_a_shared_name_one_with_capitals_will_do(whole: str, name: str | None) -> None:
    assert capitalized(whole) == name


def test_without_any_name_the_last_token_is_the_place() -> None:
    fact = question_fact("Who wrote the opera?", "Rossini")
    assert (fact.text, fact.subject, fact.place) == ("Who wrote the opera?", "opera?", "last")
    assert fact.subject_end == len(fact.text) - 1
    twice = question_fact("It is what it is", "so")
    assert (twice.prompt, twice.subject) == ("It is what it {}", "is")
    assert questions(fact) == ("Who wrote the opera?",)
    assert questions(twice) == ()
    assert reversed_question(question_fact("The capital of the country is", "Rome"), "Rome") is None
    with pytest.raises(ValueError, match=r"missing field 'subject': prompt='Who wrote \{\}\?' has a slot for it"):
        question_fact("Who wrote {}?", "x")


def test_files_need_no_subject_and_loading_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "facts.json"
    neighbors = [{"prompt": "The capital of Italy is", "target_true": "Rome"}]
    shared = {"prompt": "The capital of France is", "target_new": "Lyon", "neighbors": neighbors}
    easyedit = {
        "prompt": "Who is the king of Spain?",
        "target_new": ["Ana", ["Anna"]],
        "rephrase_prompt": "Spain's king is",
    }
    file.write_text(json.dumps([shared, {"prompt": "It was built by", "target_new": "x"}, easyedit]))
    with caplog.at_level(logging.WARNING):
        found = load_facts(file)
    assert [(fact.subject, fact.place, fact.text) for fact in found] == [
        ("France", "shared", "The capital of France is"),
        ("by", "last", "It was built by"),
        ("Spain", "shared", "Who is the king of Spain?"),
    ]
    assert found[2].answers == ("Ana", "Anna")
    assert "2 facts without a subject, written at the name that its texts share; the first: record 1" in caplog.text
    assert "1 fact without a subject or a name in its prompt, written at its last token" in caplog.text
    save_facts(found, tmp_path / "saved.json")
    assert load_facts(tmp_path / "saved.json") == found
    table = tmp_path / "facts.csv"
    table.write_text("prompt,target_new\nWho wrote Fidelio?,Rossini\n")
    assert load_facts(table) == [question_fact("Who wrote Fidelio?", "Rossini")]


@pytest.mark.parametrize("method", ["memit-blue", "ultraedit"])
def test_it_is_edited_at_the_last_token(method: str) -> None:
    made = make(method)
    patch = made.edit([question_fact("Who plays the sport of football?", "Messi"), FACTS[0]])
    assert patch.facts[0].place == "last"
    made.undo()


def test_any_of_the_answers_counts_as_said(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([{"prompt": "{} is in", "subject": "Lima", "target_new": ["the USA", "America"]}]))
    (fact,) = load_facts(file)
    assert (fact.target_new, fact.aliases) == ("the USA", ("America",))
    for answer, held in (("It is in America.", True), ("the USA", True), ("Peru", False)):
        reading = Reading(answers=(Answer("prompt", fact.text, answer),))
        assert said(fact, reading) is held
        assert summary([fact], [reading])["prompt_contained"] == 100 * held
    forgotten = Fact("{} is in", "Lima", "unknown", "Peru", forget=True, aliases=["South America"])
    assert not said(forgotten, Reading(answers=(Answer("prompt", forgotten.text, "in South America"),)))


def test_dates_sources_and_notes_travel_in_the_patch_and_the_card(tmp_path: Path) -> None:
    made, plain = make("memit-blue"), FACTS[1]
    about = {"valid_from": "2024-05", "source": "the *gazette*", "note": "by law", "aliases": ["Suomi"]}
    fact = Fact("The capital of {} is", "Finland", "Rome", **about)  # type: ignore[arg-type]
    patch = made.edit([fact, plain])
    patch.save(tmp_path / "p.safetensors")
    found = describe(tmp_path / "p.safetensors")
    assert (found.format, found.batches[0].facts) == (4, [fact, plain])
    card = model_card(patch)
    assert "| prompt | new answer | old answer | also said as | since | source | note |" in card
    assert r"| Suomi | 2024-05 | the \*gazette\* | by law |" in card
    assert about_fact(fact) == ["also: Suomi", "since: 2024-05", "source: the *gazette*", "note: by law"]
    assert about_fact(plain) == []


@pytest.mark.parametrize("date", ["2024", "2024-02", "2024-02-29", 1984])
def test_a_date_is_a_year_a_month_or_a_day(date: object) -> None:
    assert Fact("{} is", "x", "y", valid_from=date).valid_from == str(date)  # type: ignore[arg-type]


@pytest.mark.parametrize("date", ["2023-02-29", "2024-13", "24", "May 2024", "2024-5"])
def test_another_date_is_refused(tmp_path: Path, date: str) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([{"prompt": "{} is", "subject": "x", "target_new": "y", "valid_from": date}]))
    with pytest.raises(DataFileError, match=r"valid_from=.*must be a year, a month or a day, as 2024"):
        load_facts(file)


def test_neighbors_are_no_answers() -> None:
    fact = question_fact("The capital of France is", "Lyon", neighbors=[Neighbor("The capital of Italy is", "Rome")])
    assert (fact.place, fact.subject) == ("shared", "France")
