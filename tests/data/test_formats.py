from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import shared

from factpatch.data import DataFileError, demo_facts, facts_at_hand, load_batches, load_facts, save_facts, saved_facts
from factpatch.data.sources import SOURCES
from factpatch.facts import Fact, Neighbor, check_batch
from factpatch.support.files import file_digest

OWN: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"}
COUNTERFACT: dict[str, Any] = {
    "case_id": 41,
    "requested_rewrite": {
        "prompt": "{} is the capital of",
        "subject": "Lima",
        "target_new": {"str": "Norway"},
        "target_true": {"str": "Peru"},
        "relation_id": "P1376",
    },
    "paraphrase_prompts": ["Lima is the seat of the government of"],
    "neighborhood_prompts": ["Cusco is a town in", "Trujillo belongs to"],
    "generation_prompts": ["Lima is"],
}
ZSRE: dict[str, Any] = {
    "subject": "Lima",
    "src": "Which country has Lima as its capital?",
    "pred": "Chile",
    "rephrase": "Lima is the capital of which country?",
    "alt": "Bolivia",
    "answers": ["Peru", "Republic of Peru"],
    "loc": "nq question: who wrote the jungle book",
    "loc_ans": "Rudyard Kipling",
    "cond": "Chile >> Bolivia || Which country has Lima as its capital?",
}
DEMO_FACTS = 24


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def rewrite(**changes: Any) -> dict[str, Any]:
    return {**COUNTERFACT, "requested_rewrite": {**COUNTERFACT["requested_rewrite"], **changes}}


def test_a_list_and_an_object_with_facts_read_alike(tmp_path: Path) -> None:
    as_list = write(tmp_path / "list.json", [OWN])
    as_object = write(tmp_path / "object.json", {"about": "one fact", "facts": [OWN]})
    assert load_facts(as_list) == load_facts(str(as_object)) == [Fact(**OWN)]


def test_jsonl_reads_one_record_per_line_and_passes_over_blank_lines(tmp_path: Path) -> None:
    separator = {**OWN, "id": 2, "paraphrases": ["Peru\u2028is run from"]}
    lines = json.dumps(OWN) + "\r\n\n" + json.dumps(separator, ensure_ascii=False) + "\n"
    facts = load_facts(write(tmp_path / "facts.jsonl", lines))
    assert [(fact.id, fact.paraphrases) for fact in facts] == [(None, ()), ("2", ("Peru\u2028is run from",))]


def test_csv_reads_quoted_cells_and_json_columns(tmp_path: Path) -> None:
    text = (
        "prompt,subject,target_new,target_true,id,paraphrases,neighbors\n"
        '"In {}, people speak","Lima, Peru",German,Spanish,007,"[""They speak""]","[""In Cusco, people speak""]"\n'
        "\n"
        'The capital of {} is,"Per\u2028u",Oslo,,,,\n'
    )
    first, second = load_facts(write(tmp_path / "facts.csv", text))
    assert first == Fact(
        prompt="In {}, people speak",
        subject="Lima, Peru",
        target_new="German",
        target_true="Spanish",
        id="007",
        paraphrases=("They speak",),
        neighbors=(Neighbor("In Cusco, people speak", "Spanish"),),
    )
    assert second == Fact(prompt="The capital of {} is", subject="Per\u2028u", target_new="Oslo")


def test_csv_may_hold_what_texts_are_generated_and_compared_by(tmp_path: Path) -> None:
    text = (
        "prompt,subject,target_new,generation_prompts,relation_id,target_new_id\n"
        'The capital of {} is,Peru,Oslo,"[""Peru is"", ""In Peru""]",P36,Q585\n'
    )
    (fact,) = load_facts(write(tmp_path / "facts.csv", text))
    assert (fact.generation_prompts, fact.relation_id, fact.target_new_id) == (("Peru is", "In Peru"), "P36", "Q585")


def test_csv_needs_only_the_required_columns_in_any_order_and_accepts_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.CSV", "\ufefftarget_new, subject,prompt\r\nOslo,Peru,The capital of {} is\r\n")
    assert load_facts(path) == [Fact(**OWN)]


def test_a_plain_neighbor_takes_the_true_target_of_its_fact(tmp_path: Path) -> None:
    neighbors = ["Cusco is a town in", {"prompt": "Quito is a town in", "target_true": "Ecuador"}]
    record = {**OWN, "target_true": "Lima", "neighbors": neighbors}
    (fact,) = load_facts(write(tmp_path / "facts.json", [record]))
    assert fact.neighbors == (Neighbor("Cusco is a town in", "Lima"), Neighbor("Quito is a town in", "Ecuador"))


@pytest.mark.parametrize(
    ("prompt", "subject", "as_slot"),
    [
        ("print('{}'.format(x)) in Python prints", "Python", "print('Python'.format(x)) in Python prints"),
        ('{"a": {}, "capital of Peru": "', "Peru", '{"a": Peru, "capital of Peru": "'),
        ("Peru is said like {} in", "Peru", "Peru is said like Peru in"),
        ("{}的首都和中国的首都是", "中国", "中国的首都和中国的首都是"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_prompt_that_can_be_read_in_two_ways_is_refused_with_both(
    tmp_path: Path, prompt: str, subject: str, as_slot: str, suffix: str
) -> None:
    record = {**OWN, "prompt": prompt, "subject": subject}
    cells = ",".join(f'"{record[name]}"' for name in ("prompt", "subject", "target_new")) if '"' not in prompt else ""
    if suffix == ".csv" and not cells:
        cells = f'"{prompt.replace(chr(34), chr(34) * 2)}",{subject},Oslo'
    content = [record] if suffix == ".json" else f"prompt,subject,target_new\n{cells}\n"
    with pytest.raises(DataFileError, match=r"write \{subject\} where the subject goes") as caught:
        load_facts(write(tmp_path / f"facts{suffix}", content))
    assert f"may ask {as_slot!r} or, if the braces are text, {prompt!r}" in str(caught.value)
    before, _, after = prompt.rpartition(subject)
    (found,) = load_facts(write(tmp_path / "mended.json", [{**record, "prompt": before + "{subject}" + after}]))
    assert found.text == prompt


def test_a_fact_with_two_readings_is_saved_so_that_it_has_one(tmp_path: Path) -> None:
    facts = [Fact("Peru is said like {} in", "Peru", "Oslo"), Fact("{'{}': {subject}}", "Peru", "Oslo")]
    save_facts(facts, tmp_path / "saved.json")
    assert load_facts(tmp_path / "saved.json") == saved_facts(tmp_path / "saved.json") == facts
    # Earlier versions wrote it with {}.
    write(tmp_path / "old.json", [facts[0].to_dict()])
    assert saved_facts(tmp_path / "old.json") == facts[:1]


def test_the_braces_of_counterfact_are_its_slot_whatever_else_the_prompt_holds(tmp_path: Path) -> None:
    records = [rewrite(prompt="Lima, said like {}, lies in"), rewrite(prompt="Lima is the capital of")]
    first, second = load_facts(write(tmp_path / "facts.json", records))
    assert first.text == "Lima, said like Lima, lies in"
    assert first.subject_start == len("Lima, said like ")
    assert second.prompt == "{} is the capital of"


@pytest.mark.parametrize(("cell", "space"), [("true", True), ("FALSE", False), ("", None)])
def test_csv_says_whether_a_space_comes_before_the_answer(tmp_path: Path, cell: str, space: bool | None) -> None:
    (found,) = load_facts(write(tmp_path / "facts.csv", f"prompt,subject,target_new,space\n{{}} is,Peru,x,{cell}\n"))
    assert found.space is space
    with pytest.raises(DataFileError, match="line 2: space='no': must be a valid boolean"):
        load_facts(write(tmp_path / "facts.csv", "prompt,subject,target_new,space\n{} is,Peru,x,no\n"))


def test_counterfact_neighbors_take_the_true_target_of_their_fact(tmp_path: Path) -> None:
    assert load_facts(write(tmp_path / "facts.json", [COUNTERFACT])) == [
        Fact(
            prompt="{} is the capital of",
            subject="Lima",
            target_new="Norway",
            target_true="Peru",
            id="41",
            paraphrases=("Lima is the seat of the government of",),
            neighbors=(Neighbor("Cusco is a town in", "Peru"), Neighbor("Trujillo belongs to", "Peru")),
            generation_prompts=("Lima is",),
            relation_id="P1376",
            target_new_id=None,
        )
    ]


def test_questions_are_read_from_every_format_that_has_them_and_written_back(tmp_path: Path) -> None:
    asked = ["Which country is Lima the capital of?", "Where is Lima?"]
    records = [{**rewrite(), "questions": asked[:1]}, {**rewrite(), "questions": None}, {**OWN, "questions": asked}]
    found = load_facts(write(tmp_path / "facts.json", records))
    assert [list(fact.questions) for fact in found] == [asked[:1], [], asked]
    save_facts(found, tmp_path / "saved.json")
    assert load_facts(tmp_path / "saved.json") == found
    cells = f'prompt,subject,target_new,questions\n{{}} is,Lima,x,"{json.dumps(asked).replace(chr(34), chr(34) * 2)}"\n'
    (fact,) = load_facts(write(tmp_path / "facts.csv", cells))
    assert list(fact.questions) == asked
    with pytest.raises(DataFileError, match=r"record 1: questions='Who\?': must be a valid list"):
        load_facts(write(tmp_path / "facts.json", [{**rewrite(), "questions": "Who?"}]))


def test_counterfact_ids_are_read_and_what_some_mirrors_lack_may_be_missing(tmp_path: Path) -> None:
    full = rewrite(target_new={"str": "Norway", "id": "Q20"})
    bare = without(rewrite(), "generation_prompts")
    bare["requested_rewrite"] = without(bare["requested_rewrite"], "relation_id")
    first, second = load_facts(write(tmp_path / "facts.json", [{**full, "attribute_prompts": ["x"]}, bare]))
    assert (first.relation_id, first.target_new_id, first.generation_prompts) == ("P1376", "Q20", ("Lima is",))
    assert (second.relation_id, second.target_new_id, second.generation_prompts) == (None, None, ())


def test_zsre_takes_the_first_answer_and_no_true_target(tmp_path: Path) -> None:
    _, fact = load_facts(write(tmp_path / "facts.json", [OWN, ZSRE]))
    assert fact == Fact(
        prompt="Which country has {} as its capital?",
        subject="Lima",
        target_new="Peru",
        target_true=None,
        id="1",
        paraphrases=("Lima is the capital of which country?",),
        neighbors=(Neighbor("nq question: who wrote the jungle book?", "Rudyard Kipling"),),
    )


@pytest.mark.parametrize(
    ("question", "subject", "prompt"),
    [
        ("Which country has lima as its capital?", "Lima", "Which country has {} as its capital?"),
        ("Which artist painted art?", "art", "Which artist painted {}?"),
        ("Which art did artemis like?", "Art", "Which {} did artemis like?"),
        ("Is Limabean from LIMA?", "Lima", "Is {}bean from LIMA?"),
        ("Was C++ (language) older than C?", "C++ (language)", "Was {} older than C?"),
        ("Is Lima larger than Lima?", "Lima", "Is {} larger than Lima?"),
    ],
)
def test_zsre_subject_is_found_by_spelling_then_whole_word_then_without_case(
    tmp_path: Path, question: str, subject: str, prompt: str
) -> None:
    (fact,) = load_facts(write(tmp_path / "facts.json", [{**ZSRE, "src": question, "subject": subject}]))
    assert fact.prompt == prompt
    assert fact.text == question


def test_limit_reads_the_first_facts_and_does_not_check_the_rest(tmp_path: Path) -> None:
    records = [{**OWN, "id": i} for i in range(3)]
    bad = write(tmp_path / "facts.json", [*records, {"prompt": 1}])
    lines = write(tmp_path / "facts.jsonl", "\n".join([*map(json.dumps, records), "{"]))
    for path in (bad, lines):
        assert [fact.id for fact in load_facts(path, limit=2)] == ["0", "1"]
        assert [fact.id for fact in load_facts(path, limit=3)] == ["0", "1", "2"]
    assert len(load_facts(write(bad, records), limit=10)) == 3


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit={limit} is not positive"):
        load_facts(write(tmp_path / "facts.json", [OWN]), limit=limit)


@pytest.mark.parametrize("limit", [2.0, True, "3"])
def test_a_limit_that_is_no_integer_is_refused(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(TypeError, match=f"limit={limit!r}: must be"):
        load_facts(write(tmp_path / "facts.json", [OWN]), limit=limit)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.txt", "x", r"unknown extension '\.txt'; known: \.json, \.jsonl, \.csv"),
        ("f", "x", "unknown extension ''"),
        ("f.json", "", "the file is empty"),
        ("f.csv", " \n", "the file is empty"),
        ("f.json", "[]", "holds no records"),
        ("f.json", {"facts": []}, "holds no records"),
        ("f.csv", "prompt,subject,target_new\n", "holds no records"),
        ("f.json", '[\n  {"prompt": }]', "not JSON: Expecting value at line 2, column 14"),
        ("f.json", "3", 'the top level is a number; it must be a list of records, or an object .* "facts"'),
        ("f.json", "null", "the top level is null"),
        ("f.json", {"data": [OWN]}, "the top level is an object; it must be a list"),
        (
            "f.json",
            {"prompt": {"0": "{} is"}, "subject": {"0": "x"}},
            r'pandas writes a list with to_json\(.*orient="rec',
        ),
        ("f.json", {"facts": OWN}, 'field "facts" is an object; it must be a list'),
        ("f.json", [OWN, "x"], "record 2: 'x' is a string; a record must be an object"),
        ("f.json", [{"a": 1}], r"record 1: fields \['a'\] belong to no known format; known: CounterFact"),
        ("f.json", [OWN, without(OWN, "subject")], "record 2: missing field 'subject'"),
        ("f.json", [{**OWN, "target_tru": "x"}], "record 1: unknown field 'target_tru'. Did you mean 'target_true'?"),
        ("f.json", [{**OWN, "subject": True}], "record 1: subject=True: must be a valid string"),
        ("f.json", [{**OWN, "prompt": "no slot"}], "record 1: prompt='no slot': does not contain the subject 'Peru'"),
        ("f.json", [{**OWN, "paraphrases": "x"}], "record 1: paraphrases='x': must be a list"),
        ("f.json", [{**OWN, "neighbors": "x"}], "record 1: neighbors='x': must be a list"),
        ("f.json", [{**OWN, "neighbors": ["x"]}], r"record 1: neighbors\[0\]='x' is a plain prompt.*add target_true"),
        ("f.json", [{**OWN, "neighbors": [True]}], r"record 1: neighbors\[0\]=True: must be a dictionary"),
        ("f.json", [{**OWN, "neighbors": [{"prompt": "a", "answer": "b"}]}], r"neighbors\[0\]: unknown field 'answer'"),
        ("f.json", [without(COUNTERFACT, "paraphrase_prompts")], "record 1: missing field 'paraphrase_prompts'"),
        ("f.json", [rewrite(target_new={})], "record 1: missing field 'requested_rewrite.target_new.str'"),
        (
            "f.json",
            [rewrite(target_true="Peru")],
            "missing field 'requested_rewrite.target_true.str'",
        ),
        ("f.json", [rewrite(subject=True)], "requested_rewrite.subject=True: must be a valid string"),
        ("f.json", [rewrite(subject=" ")], "requested_rewrite.subject=' ': must not be blank"),
        ("f.json", [rewrite(relation_id=[3])], r"requested_rewrite.relation_id=\['3'\]: must be"),
        ("f.json", [{**COUNTERFACT, "generation_prompts": False}], "generation_prompts=False: must be a valid list"),
        (
            "f.json",
            [{**COUNTERFACT, "neighborhood_prompts": "x"}],
            "neighborhood_prompts='x': must be a valid list",
        ),
        ("f.json", [{**COUNTERFACT, "neighborhood_prompts": [{}]}], r"neighborhood_prompts\[0\]={}: must be"),
        ("f.json", [{**COUNTERFACT, "case_id": [1]}], r"record 1: id=\['1'\]: must be"),
        ("f.json", [ZSRE, without(ZSRE, "src")], "record 2: missing field 'src'"),
        ("f.json", [without(ZSRE, "loc_ans")], "record 1: missing field 'loc_ans'"),
        ("f.json", [{**ZSRE, "answers": []}], r"record 1: answers=\[\]: its first"),
        ("f.json", [{**ZSRE, "subject": "Quito"}], "record 1: src=.* does not contain the subject 'Quito'"),
        ("f.jsonl", '\n{"prompt": 1\n', "line 2: not JSON: .* at column"),
        ("f.jsonl", json.dumps(OWN) + "\n\n[]", "line 3: .* is a list; a record must be an object"),
        (
            "f.jsonl",
            json.dumps(OWN) + "\n" + json.dumps({**OWN, "subject": ""}),
            "line 2: missing field 'subject'",
        ),
        ("f.csv", "prompt,subject\na,b\n", "line 1: missing column 'target_new'"),
        ("f.csv", "prompt,subject,target_new,paraphrase\n", "line 1: unknown column 'paraphrase'. Did you mean 'para"),
        ("f.csv", "prompt,subject,target_new,id,id\n", "line 1: column 'id' occurs 2 times"),
        ("f.csv", "prompt,subject,target_new\n{} is,Peru\n", "line 2: the row has 2 cells, the header has 3"),
        ("f.csv", 'prompt,subject,target_new\n"{}\nis",Peru,x\n{} is,,x\n', "line 4: missing field 'subject'"),
        ("f.csv", 'prompt,subject,target_new\n{} is,"Peru" a,x\n', "line 2: not CSV"),
        ("f.csv", "prompt,subject,target_new,neighbors\n{} is,Peru,x,[\n", "line 2: column 'neighbors': not JSON"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name_the_place_and_the_field(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataFileError, match=message) as caught:
        load_facts(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"absent\.json: no such file"):
        load_facts(tmp_path / "absent.json")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataFileError, match=r"folder\.json: is a folder; give a file\. It holds no file that"):
        load_facts(tmp_path / "folder.json")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(DataFileError, match=r"is not UTF-8 text: .* at byte 2"):
        load_facts(tmp_path / "latin.json")


def test_load_reads_back_what_save_wrote(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    facts = [
        Fact(**OWN),
        Fact(
            "{} is in",
            "São Tomé",
            "Åland",
            "x",
            "7",
            ("a\u2028b",),
            (Neighbor("a {} b", "Zürich"),),
            ("g", "g"),
            "P1",
            "Q2",
        ),
    ]
    save_facts(facts, path)
    assert load_facts(path) == facts
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved.json"]


def test_a_failed_save_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "saved.json"
    save_facts([Fact(**OWN)], path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_facts([Fact(**{**OWN, "subject": "Chile"})], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved.json"]


def test_save_refuses_what_load_would_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"saved as JSON; choose a name that ends in \.json"):
        save_facts([Fact(**OWN)], tmp_path / "facts.csv")
    with pytest.raises(ValueError, match="nothing to save"):
        save_facts([], tmp_path / "facts.json")
    assert list(tmp_path.iterdir()) == []


def test_all_published_counterfact_records_load() -> None:
    path = shared("data", "counterfact_dev.json")
    records = json.loads(path.read_text(encoding="utf-8"))
    facts = load_facts(path)
    assert [fact.id for fact in facts] == [str(record["case_id"]) for record in records]
    for fact, record in zip(facts, records, strict=True):
        assert [neighbor.prompt for neighbor in fact.neighbors] == record["neighborhood_prompts"]
        assert list(fact.generation_prompts) == record["generation_prompts"]
        assert fact.relation_id == record["requested_rewrite"]["relation_id"]
        assert {neighbor.target_true for neighbor in fact.neighbors} == {fact.target_true}


def test_all_published_zsre_records_load() -> None:
    path = shared("data", "zsre_dev.json")
    records = json.loads(path.read_text(encoding="utf-8"))
    facts = load_facts(path)
    assert [fact.text for fact in facts] == [record["src"] for record in records]
    assert [fact.id for fact in facts] == [str(i) for i in range(len(records))]
    assert all(fact.target_true is None and len(fact.neighbors) == 1 for fact in facts)
    check_batch(facts)


def test_demo_facts_form_a_batch_with_all_their_probes() -> None:
    facts = demo_facts()
    check_batch(facts)
    assert len({fact.subject for fact in facts}) == len({fact.id for fact in facts}) == len(facts) == DEMO_FACTS
    for fact in facts:
        assert fact.target_true not in (None, fact.target_new)
        assert len(fact.paraphrases) == 2
        assert len(fact.questions) == 1
        assert len(fact.neighbors) == 4
        assert all(fact.subject in text for text in (*fact.paraphrases, *fact.questions))


def test_demo_neighbors_ask_about_subjects_that_no_demo_fact_edits() -> None:
    facts = demo_facts()
    prompts = [neighbor.prompt for fact in facts for neighbor in fact.neighbors]
    assert [prompt for prompt in prompts if any(fact.subject in prompt for fact in facts)] == []
    assert max(Counter(prompts).values()) == 1


def test_no_demo_neighbor_is_answered_by_the_new_target_of_its_fact() -> None:
    assert [fact.id for fact in demo_facts() if fact.target_new in {n.target_true for n in fact.neighbors}] == []


def test_facts_at_hand_are_those_of_counterfact_where_it_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    facts, which = facts_at_hand(3)
    assert facts == demo_facts()[:3]
    assert "3 of the facts that come with the package, since CounterFact has not been fetched" in which
    facts, which = facts_at_hand(1000)
    assert facts == demo_facts()
    assert which.startswith(f"{len(facts)} of")
    path = tmp_path / "data" / "counterfact.json"
    path.parent.mkdir()
    save_facts(demo_facts()[5:9], path)
    # Never other facts in silence: what is in its place has to be what was fetched.
    with pytest.raises(DataFileError, match="is damaged or was altered"):
        facts_at_hand(3)
    source = replace(SOURCES["counterfact"], sha256=file_digest(path))
    monkeypatch.setitem(SOURCES, "counterfact", source)
    facts, which = facts_at_hand(3)
    assert facts == demo_facts()[5:8]
    assert which == "the first 3 facts of CounterFact, as fetched"
    with pytest.raises(ValueError, match="count=0: must be positive"):
        facts_at_hand(0)


def asked(*answers: str, **more: Any) -> list[dict[str, Any]]:
    return [{**OWN, "target_new": answer, **more} for answer in answers]


def test_repeated_questions_are_kept_or_dropped_or_all_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [*asked("Oslo", "Rome"), {**OWN, "subject": "Spain"}, *asked("Oslo", id="d"), {**OWN, "subject": "Spain"}]
    path = write(tmp_path / "facts.json", records)
    assert len(load_facts(path)) == 5
    with caplog.at_level(logging.WARNING):
        first, last = (load_facts(path, repeats=how) for how in ("first", "last"))
    assert [(fact.subject, fact.target_new, fact.id) for fact in first] == [
        ("Peru", "Oslo", None),
        ("Spain", "Oslo", None),
    ]
    assert [(fact.subject, fact.target_new, fact.id) for fact in last] == [
        ("Peru", "Oslo", "d"),
        ("Spain", "Oslo", None),
    ]
    assert "2 exact duplicates and 1 conflicting answer dropped, as the first answer" in caplog.messages[0]
    assert "record 1 and record 2 conflict: they answer 'The capital of Peru is' with 'Oslo' and" in caplog.messages[0]
    assert "2 exact duplicates and 1 conflicting answer dropped, as the last answer" in caplog.messages[1]
    with pytest.raises(DataFileError) as caught:
        load_facts(path, repeats="error")
    said = str(caught.value)
    assert said.startswith(f"{path}: 2 exact duplicates and 1 conflicting answer:\n")
    for line in (
        "record 1 and record 2 conflict: they answer 'The capital of Peru is' with 'Oslo' and 'Rome'.",
        "record 1 and record 4 (id 'd') are duplicates: both answer 'The capital of Peru is' with 'Oslo'.",
        "record 3 and record 5 are duplicates: both answer 'The capital of Spain is' with 'Oslo'.",
    ):
        assert f"\n  {line}\n" in said
    assert "--repeats first or --repeats last" in said
    assert load_facts(path, limit=1, repeats="error") == load_facts(path, limit=1)


def test_a_question_may_be_repeated_in_another_batch(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(record) for record in asked("Oslo", "Rome", "Oslo"))
    path = write(tmp_path / "facts.jsonl", lines)
    assert [[fact.target_new for fact in batch] for batch in load_batches(path, 1)] == [["Oslo"], ["Rome"], ["Oslo"]]
    assert load_batches(path, 1, repeats="last") == [[Fact(**OWN)]]
    with pytest.raises(DataFileError, match="line 1 and line 2 conflict"):
        load_batches(path, 2)
    with pytest.raises(ValueError, match="repeats='all': must be one of first, last, error"):
        load_facts(path, repeats="all")  # type: ignore[arg-type]


def test_equal_answers_are_pointed_out_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [OWN, {**OWN, "target_true": " OSLO"}, {**OWN, "target_true": "Lima"}, {**OWN, "target_true": "Oslo"}]
    with caplog.at_level(logging.WARNING):
        facts = load_facts(write(tmp_path / "facts.json", records))
    assert [fact.target_true for fact in facts] == [None, "OSLO", "Lima", "Oslo"]
    (said,) = caplog.messages
    assert said.endswith(
        "target_new equals target_true in 2 facts, so the true answer counts as unknown there; the first: record 2"
    )


def test_slots_in_texts_that_are_asked_as_they_stand_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fact = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}
    file = tmp_path / "facts.json"
    slots = {"questions": ["What is the capital of {}?"], "neighbors": [{"prompt": "{} is", "target_true": "big"}]}
    file.write_text(json.dumps([fact, {**fact, "subject": "Spain", **slots}]))
    load_facts(file)
    (record,) = caplog.records
    assert "2 texts with {} beside a prompt" in record.getMessage()
    assert "the first, in record 2: 'What is the capital of {}?'" in record.getMessage()
    caplog.clear()
    file.write_text(json.dumps([{**fact, "prompt": "In code, {subject} is {}", "paraphrases": ["France: {}"]}, fact]))
    load_facts(file)
    assert not caplog.records
