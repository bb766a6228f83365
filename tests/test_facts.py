from __future__ import annotations

import dataclasses
import json
import random
import re
import time
from typing import Any

import pytest

from factpatch.data.subjects import question_fact
from factpatch.facts import (
    Fact,
    Neighbor,
    RepeatedQuestionsError,
    Ripple,
    check_batch,
    find_facts,
    latest,
    near_duplicates,
    without_repeats,
)


def fact(**changes: Any) -> Fact:
    fields: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo", **changes}
    return Fact(**fields)


def test_text_is_the_prompt_with_the_subject_in_its_slot() -> None:
    assert fact().text == "The capital of Peru is"


@pytest.mark.parametrize("prompt", ["{} lies in", "The capital of {} is", "Nobody has heard of {}"])
@pytest.mark.parametrize("subject", ["Peru", "X", "the {old} town", "São Tomé"])
def test_subject_end_points_at_the_last_character_of_the_subject(prompt: str, subject: str) -> None:
    one = fact(prompt=prompt, subject=subject)
    end = one.subject_end + 1
    assert one.text[end - len(subject) : end] == subject
    assert one.text[:end] == prompt[: prompt.index("{}")] + subject


def test_subject_end_skips_the_same_words_elsewhere_in_the_prompt() -> None:
    one = fact(prompt="Peru is said like {} in", subject="Peru")
    assert one.subject_end == len("Peru is said like Peru") - 1


@pytest.mark.parametrize("prompt", ["{} wrote {0", "a } b {} c {", "{{}}", "{x} and {} and {0!r}"])
def test_braces_other_than_the_slot_are_plain_text(prompt: str) -> None:
    assert fact(prompt=prompt).text == prompt.replace("{}", "Peru")


def test_a_slot_inside_the_subject_is_plain_text() -> None:
    one = fact(subject="the {} operator")
    assert one.text == "The capital of the {} operator is"
    assert one.text[: one.subject_end + 1].endswith("the {} operator")


@pytest.mark.parametrize(
    ("prompt", "subject", "kept", "text"),
    [
        ("The capital of France is", "France", "The capital of {} is", "The capital of France is"),
        ("The capital of {subject} is", "France", "The capital of {} is", "The capital of France is"),
        ("The capital of france is", "France", "The capital of {} is", "The capital of france is"),
        ("Is Limabean from LIMA or Lima", "Lima", "Is Limabean from LIMA or {}", "Is Limabean from LIMA or Lima"),
        ('{"capital of {subject}": "', "France", '{"capital of {}": "', '{"capital of France": "'),
        ('{"a": {}, "of {subject}": "', "France", '{"a": {}, "of {subject}": "', '{"a": {}, "of France": "'),
        ('{"a": {}, "b": {}, "of France": "', "France", '{"a": {}, "b": {}, "of {subject}": "', None),
        ("f'{x}' in {} prints", "Python", "f'{x}' in {} prints", "f'{x}' in Python prints"),
        ("print('{}'.format(x)) in {subject} prints", "Python", "print('{}'.format(x)) in {subject} prints", None),
        ("print('{} {}') in Python prints", "Python", "print('{} {}') in {subject} prints", None),
        ("{France}", "France", "{{}}", "{France}"),
        ("{{subject}}", "France", "{{}}", "{France}"),
        ("{subject}{}", "France", "{subject}{}", "France{}"),
        ("{{{subject}}, {}} is", "France", "{{{subject}}, {}} is", "{{France}, {}} is"),
        ("中国的首都是", "中国", "{}的首都是", "中国的首都是"),
        ("Cafe or Cafe\u0301 is", "Caf\u00e9", "Cafe or {} is", "Cafe or Cafe\u0301 is"),
        ("Caf\u00e9s or Caf\u00e9 is", "Cafe\u0301", "Caf\u00e9s or {} is", "Caf\u00e9s or Caf\u00e9 is"),
        ("Cafe\u0301 or Cafe is", "Cafe", "Cafe\u0301 or {} is", "Cafe\u0301 or Cafe is"),
    ],
)
def test_the_slot_is_the_named_one_or_the_only_one_or_where_the_subject_stands(
    prompt: str, subject: str, kept: str, text: str | None
) -> None:
    one = fact(prompt=prompt, subject=subject)
    assert one.prompt == kept
    assert one.text == (prompt.replace("{subject}", subject) if text is None else text)
    assert one.text[one.subject_start : one.subject_end + 1] == one.subject
    assert Fact.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    other = dataclasses.replace(one, subject="Chile")
    assert other.text == one.text[: one.subject_start] + "Chile" + one.text[one.subject_end + 1 :]


def test_prompts_lose_white_space_at_their_end_only() -> None:
    one = fact(
        prompt=" The capital of {} is \n", paraphrases=[" Peru is run from\t"], neighbors=[Neighbor("a \u3000", "b")]
    )
    assert (one.prompt, one.paraphrases, one.neighbors[0].prompt) == (
        " The capital of {} is",
        (" Peru is run from",),
        "a",
    )


def test_subject_and_targets_lose_surrounding_white_space() -> None:
    one = fact(subject=" Peru\n", target_new="\tOslo ", target_true=" Lima")
    assert (one.subject, one.target_new, one.target_true) == ("Peru", "Oslo", "Lima")
    assert Neighbor("The capital of Chile is", " Santiago ").target_true == "Santiago"


def test_lists_become_tuples_and_number_ids_become_text() -> None:
    lists: dict[str, Any] = {"paraphrases": ["Peru is run from"], "neighbors": [Neighbor("a", "b")], "id": 7}
    one = fact(**lists)
    assert (one.paraphrases, one.neighbors, one.id) == (("Peru is run from",), (Neighbor("a", "b"),), "7")
    assert hash(one) == hash(fact(paraphrases=("Peru is run from",), neighbors=(Neighbor("a", "b"),), id="7"))


def test_a_fact_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        fact().subject = "Chile"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"prompt": "The capital is"},
            ValueError,
            "prompt='The capital is': does not contain the subject 'Peru', in any case; write {subject} where the",
        ),
        ({"prompt": "{} or {} is"}, ValueError, "holds {} 2 times, and does not contain the subject 'Peru'"),
        ({"prompt": "{subject} or {subject} is"}, ValueError, "write {subject} where the subject goes, once"),
        ({"prompt": "{} {} {subject} Peru {subject}"}, ValueError, "which cannot be told apart; reword the prompt"),
        ({"prompt": ""}, ValueError, "prompt='': must not be blank."),
        ({"subject": " \n"}, ValueError, r"subject=' \n': must not be blank."),
        ({"target_new": ""}, ValueError, "target_new='': must"),
        ({"target_true": "  "}, ValueError, "target_true='  ': must"),
        ({"id": " "}, ValueError, "id=' ': must not"),
        ({"paraphrases": ["fine", " "]}, ValueError, "paraphrases[1]=' ': must not"),
        ({"generation_prompts": [""]}, ValueError, "generation_prompts[0]='': must not"),
        ({"relation_id": " "}, ValueError, "relation_id=' ': must not"),
        ({"prompt": 3}, TypeError, "prompt=3: must be a valid string."),
        ({"subject": None}, TypeError, "subject=None: must be"),
        ({"target_new": ["Oslo"]}, TypeError, "target_new=['Oslo']: must be"),
        ({"target_true": 1.5}, TypeError, "target_true=1.5: must be"),
        ({"id": True}, TypeError, "id=True: must be"),
        ({"id": 1.5}, TypeError, "id=1.5: must be a valid string."),
        ({"paraphrases": "Peru is run from"}, TypeError, "'Peru is run from': must be a list or tuple."),
        ({"paraphrases": {"Peru is"}}, TypeError, "must be a list or tuple."),
        ({"paraphrases": [2]}, TypeError, "paraphrases[0]=2: must be"),
        ({"generation_prompts": "Peru is"}, TypeError, "generation_prompts='Peru is': must be a list or tuple."),
        ({"target_new_id": 585}, TypeError, "target_new_id=585: must be"),
        ({"space": "no"}, TypeError, "space='no': must be a valid boolean"),
        ({"space": 1}, TypeError, "space=1: must be a valid boolean"),
        ({"neighbors": "x"}, TypeError, "neighbors='x': must be a list or tuple."),
        ({"neighbors": ["x"]}, TypeError, "neighbors[0]='x': must be a dictionary or an instance of Neighbor."),
        (
            {"neighbors": [{"prompt": " ", "target_true": "x"}]},
            ValueError,
            "neighbors[0].prompt=' ': must not be blank.",
        ),
    ],
)
def test_a_bad_field_is_refused_by_name_and_value(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fact(**changes)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ((" ", "Santiago"), ValueError, "prompt=' ': must not be blank"),
        (("The capital of Chile is", ""), ValueError, "target_true='': must not be blank"),
        (("The capital of Chile is", None), TypeError, "target_true=None: must be"),
    ],
)
def test_a_bad_neighbor_is_refused(fields: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Neighbor(*fields)


def test_key_ignores_everything_but_the_question() -> None:
    assert fact(id="a").key == fact(target_new="Rome", target_true="Lima").key
    assert fact().key != fact(subject="Chile").key
    assert fact().key != fact(prompt="{} is run from").key


def test_a_question_is_the_same_whatever_its_subject_is_found_to_be() -> None:
    whole = "Who wrote the opera Orfeo in Mantua?"
    alone = question_fact(whole, "Bach")
    others = question_fact(whole, "Verdi", paraphrases=("Orfeo is an opera by", "The composer of Orfeo is"))
    assert alone.subject != others.subject
    assert alone.key == others.key
    assert latest([[alone], [others]]) == ([others], [alone])


def test_from_dict_reads_back_what_to_dict_wrote() -> None:
    full = fact(
        target_true="Lima",
        id="7",
        paraphrases=("Peru is run from",),
        neighbors=(Neighbor("a", "b"),),
        generation_prompts=("Peru is", "Peru is"),
        relation_id="P36",
        target_new_id="Q585",
        space=False,
        questions=("Where is Peru run from?",),
        ripples=(Ripple("multi_hop", "Its president lives in", ("Lima", "the city of Lima")),),
        trained=("What is Peru's capital?",),
        forget="refuse",
        place="shared",
        aliases=("The king's city",),
        valid_from="2024-05",
        source="the gazette",
        note="by law",
    )
    assert full.to_dict().keys() == {field.name for field in dataclasses.fields(full)}
    for one in (fact(), full):
        assert Fact.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert Neighbor.from_dict(Neighbor("a", "b").to_dict()) == Neighbor("a", "b")


def test_to_dict_omits_empty_fields() -> None:
    assert fact().to_dict() == {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"}


def test_from_dict_takes_none_for_an_absent_optional_field() -> None:
    nothing = {field.name: None for field in dataclasses.fields(Fact) if field.default is not dataclasses.MISSING}
    assert {"target_true", "paraphrases", "relation_id"} < nothing.keys()
    assert Fact.from_dict({**fact().to_dict(), **nothing}) == fact()


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ({"prompt": "{} is", "subject": "x"}, ValueError, "missing field 'target_new'"),
        ({"prompt": "{} is", "subject": "x", "target_true": "y"}, ValueError, 'forget target_true, add "forget": true'),
        ({**fact().to_dict(), "target": "x"}, ValueError, "unknown field 'target'. Did you mean 'target_"),
        ({**fact().to_dict(), "qqq": 1}, ValueError, "unknown field 'qqq'. Known: prompt, subject"),
        ({**fact().to_dict(), "subject": None}, TypeError, "subject=None: must be"),
        ({**fact().to_dict(), "neighbors": {}}, TypeError, "neighbors={}: must be a list"),
        ({**fact().to_dict(), "neighbors": ["x"]}, TypeError, r"neighbors\[0\]='x': must be a dictionary"),
        (
            {**fact().to_dict(), "neighbors": [{"prompt": "a"}]},
            ValueError,
            r"neighbors\[0\]: missing field 'target_true'",
        ),
        ([], TypeError, r"record=\[\]: must be a mapping"),
    ],
)
def test_from_dict_refuses_a_malformed_record(record: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Fact.from_dict(record)


def test_a_batch_may_ask_about_one_subject_or_with_one_prompt_twice() -> None:
    check_batch([fact(), fact(subject="Chile"), fact(prompt="{} is run from")])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one fact"):
        check_batch([])


def test_two_answers_to_one_question_in_a_batch_are_refused_with_both_targets_and_places() -> None:
    with pytest.raises(ValueError, match=r"facts\[0\] and facts\[2\] \(id 'b'\) conflict: .*'Oslo' and 'Rome'"):
        check_batch([fact(), fact(subject="Chile"), fact(target_new="Rome", id="b")])


def test_a_duplicate_in_a_batch_is_refused_even_where_other_fields_differ() -> None:
    with pytest.raises(ValueError, match=r"facts\[0\] \(id '3'\) and facts\[1\] are duplicates.*--repeats first"):
        check_batch([fact(id="3"), fact(target_new=" Oslo", target_true="Lima")])


def test_a_later_fact_replaces_the_earlier_answer_to_its_question() -> None:
    first, other, second, third = fact(), fact(subject="Chile"), fact(target_new="Rome"), fact(target_new="Bonn")
    assert latest([[first, other], [second], [third]]) == ([other, third], [first, second])


def test_a_fact_edited_again_with_the_same_target_counts_once() -> None:
    assert latest([[fact(id="1")], [fact(id="2")]]) == ([fact(id="2")], [fact(id="1")])


def test_no_batches_leave_nothing_in_force() -> None:
    assert latest([]) == ([], [])


SPAIN = fact(prompt="The capital of {} is", subject="Spain")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (fact(), fact(prompt="The capital city of {} is")),
        (fact(), fact(prompt="{}, whose capital is the city of", paraphrases=["The capital of Peru is"])),
        (fact(paraphrases=["Peru is governed from"]), fact(prompt="{} is governed from")),
        (fact(), fact(prompt="THE CAPITAL of {} is:", subject="PERU")),
    ],
    ids=["most words", "paraphrase", "paraphrase of the first", "case"],
)
def test_facts_that_ask_the_same_in_other_words_are_near_duplicates(one: Fact, other: Fact) -> None:
    assert near_duplicates([one, SPAIN, other]) == [(one, other)]
    assert near_duplicates([other, one]) == [(other, one)]


@pytest.mark.parametrize(
    "other",
    [
        fact(subject="Chile"),
        fact(prompt="The president of {} was"),
        fact(prompt="{} exports"),
        fact(target_new="Rome"),
    ],
    ids=["another subject", "half of the words", "another question", "the same question"],
)
def test_other_questions_and_exact_repetitions_are_no_near_duplicates(other: Fact) -> None:
    assert near_duplicates([fact(), other]) == []


def test_every_pair_of_near_duplicates_is_listed_once_in_order() -> None:
    one, two, three = fact(), fact(prompt="The capital city of {} is"), fact(prompt="The big capital city of {} is")
    assert near_duplicates([one, two, three]) == [(one, two), (one, three), (two, three)]
    assert near_duplicates([]) == []


def test_many_facts_of_one_subject_are_compared_in_seconds() -> None:
    words = [f"w{i}" for i in range(100)]
    facts = [fact(prompt=f"{{}} {' '.join(words[i % 90 : i % 90 + 5])} {i} a{i} b{i} c{i}") for i in range(6_000)]
    start = time.perf_counter()
    assert near_duplicates(facts) == []
    assert time.perf_counter() - start < 20


def test_near_duplicates_are_those_that_comparing_every_two_facts_finds() -> None:
    chance = random.Random(3)
    facts = []
    for _ in range(150):
        prompt = " ".join(chance.choices("abcdefgh", k=chance.randint(1, 7))) + " {}"
        paraphrases = [prompt.format("Peru")] if chance.random() < 0.1 else [f"{chance.choice('abc')} Peru"]
        facts.append(fact(prompt=prompt if chance.random() < 0.9 else "{}", paraphrases=paraphrases))

    def alike(one: Fact, other: Fact) -> bool:
        words, others = (set(re.findall(r"\w+", it.prompt)) for it in (one, other))
        same = 2 * len(words & others) > len(words | others)
        return one.key != other.key and (same or one.text in other.paraphrases or other.text in one.paraphrases)

    expected = [(facts[j], facts[i]) for i in range(150) for j in range(i) if alike(facts[i], facts[j])]
    assert len(expected) > 100
    assert near_duplicates(facts) == expected


def test_every_repeated_question_of_a_batch_is_listed_as_far_as_that_is_of_use() -> None:
    facts = [fact(subject=f"Land {i // 2}", target_new=f"Town {i % 3}") for i in range(100)]
    with pytest.raises(RepeatedQuestionsError) as caught:
        check_batch(facts)
    lines = str(caught.value).split("\n")
    assert lines[0] == "0 exact duplicates and 50 conflicting answers:"
    assert (
        lines[1]
        == "  facts[0] and facts[1] conflict: they answer 'The capital of Land 0 is' with 'Town 0' and 'Town 1'."
    )
    assert lines[20].startswith("  facts[38] and facts[39] conflict:")
    assert lines[21] == "  and 30 more."
    assert [one.target_new for one in without_repeats(facts, "first")] == [f"Town {2 * i % 3}" for i in range(50)]
    assert [one.target_new for one in without_repeats(facts, "last")] == [f"Town {(2 * i + 1) % 3}" for i in range(50)]
    assert without_repeats(facts[::2]) == facts[::2]


@pytest.mark.parametrize("half", ["\ud800", "x\udfff", "\udc00\ud800"])
@pytest.mark.parametrize("field", ["prompt", "subject", "target_new", "target_true", "id", "paraphrases"])
def test_half_of_a_character_is_refused(field: str, half: str) -> None:
    value: Any = [half] if field == "paraphrases" else half + "{}" if field == "prompt" else half
    with pytest.raises(ValueError, match=f"{field}.*holds half of a character"):
        fact(**{field: value})


def test_a_long_subject_is_found_as_it_is_spelled() -> None:
    long = "a" * 500_000 + "b"
    assert fact(prompt=f"In {long} lies", subject=long).prompt == "In {} lies"
    with pytest.raises(ValueError, match="does not contain the subject"):
        fact(prompt="a" * 1_000_000, subject=long)


def test_a_fact_that_is_edited_again_unchanged_replaces_nothing() -> None:
    old, new = Fact("The capital of {} is", "Finland", "Rome"), Fact("The capital of {} is", "Finland", "Paris")
    assert latest([[old], [old]]) == ([old], [])
    assert latest([[old], [new], [new]]) == ([new], [old])
    assert find_facts([[old], [new], [new]], ["3.1"]) == [(1, 0), (2, 0)]
