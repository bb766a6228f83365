"""Files as other programs write them: encodings, lines and lists, separators, folders, and odd JSON."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from factpatch.data import DataFileError, load_facts
from factpatch.facts import Fact

OWN: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"}
SPAIN = {**OWN, "subject": "Spain"}
FACTS = [Fact(**OWN), Fact(**SPAIN)]
LINES = "".join(json.dumps(record) + "\n" for record in (OWN, SPAIN))
HEADER = "prompt,subject,target_new"
ROWS = f"{HEADER}\nThe capital of {{}} is,Peru,Oslo\nThe capital of {{}} is,Spain,Oslo\n"


def load(tmp_path: Path, name: str, content: str | bytes, **options: Any) -> list[Fact]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_facts(path, **options)


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n\n"),
        json.dumps([OWN, SPAIN]),
        json.dumps([OWN, SPAIN], indent=2),
        "\ufeff" + json.dumps({"facts": [OWN, SPAIN]}, indent=2),
        f"[{json.dumps(OWN)},\n{json.dumps(SPAIN)}]\n",
        f"[{json.dumps(OWN)}]\n[{json.dumps(SPAIN)}]\n",
    ],
    ids=[
        "lines",
        "marked lines",
        "blank lines",
        "list",
        "indented",
        "marked object",
        "list over lines",
        "lists in lines",
    ],
)
def test_lists_and_lines_are_read_whatever_the_file_is_called(tmp_path: Path, name: str, content: str) -> None:
    assert load(tmp_path, name, content) == FACTS


def test_a_single_record_is_a_file_of_one(tmp_path: Path) -> None:
    counterfact = {
        "case_id": 1,
        "requested_rewrite": {**OWN, "target_new": {"str": "Oslo"}, "target_true": {"str": "Lima"}},
        "paraphrase_prompts": [],
        "neighborhood_prompts": [],
    }
    for name in ("facts.json", "facts.jsonl"):
        assert load(tmp_path, name, json.dumps(OWN)) == FACTS[:1]
        assert load(tmp_path, name, json.dumps(counterfact))[0].target_true == "Lima"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"), [("f.csv", ROWS), ("f.json", json.dumps([OWN, SPAIN])), ("f.jsonl", LINES)]
)
def test_encodings_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str, name: str, content: str) -> None:
    text = content.replace("Peru", "Perú") if name == "f.csv" else content
    assert load(tmp_path, name, text.encode(encoding))[0].subject == ("Perú" if name == "f.csv" else "Peru")


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("cp1252", 'is not UTF-8 text: .* at byte 51; save it as UTF-8 .*"CSV UTF-8"'),
        ("utf-16-le", "looks like UTF-16 without a byte order mark; save it as UTF-8"),
        ("utf-16-be", "looks like UTF-16 without a byte order mark; save it as UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_what_to_do(tmp_path: Path, encoding: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        load(tmp_path, "f.csv", ROWS.replace("Peru", "Curaçao").encode(encoding))
    with pytest.raises(DataFileError, match=r"is a pointer of git-lfs, .* git lfs pull"):
        load(tmp_path, "f.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataFileError, match=r"is not UTF-16 text: .*; save it as UTF-8"):
        load(tmp_path, "f.csv", b"\xff\xfea")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.csv", ROWS.replace(",", ";")),
        ("f.csv", ROWS.replace(",", "\t")),
        ("f.tsv", ROWS.replace(",", "\t")),
        ("f.TSV", ROWS),
        ("f.csv", ROWS.replace(",", "|")),
        ("f.csv", "sep=;\r\n" + ROWS.replace(",", ";").replace("\n", "\r\n")),
        ("f.csv", '\n \n"prompt";"subject";"target_new"\n' + ROWS.replace(",", ";").partition("\n")[2]),
        ("f.csv", ROWS.replace("\n", ",\n")),
    ],
    ids=["semicolons", "tabs", "tsv", "tsv of commas", "bars", "said", "quoted", "an empty last column"],
)
def test_the_header_shows_what_separates_cells(tmp_path: Path, name: str, content: str) -> None:
    assert load(tmp_path, name, content) == FACTS


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_the_index_of_a_table_is_passed_over(tmp_path: Path, name: str, separator: str) -> None:
    header, *rows = ROWS.strip().replace(",", separator).split("\n")
    lines = [f"{name}{separator}{header}", *(f"{i}{separator}{row}" for i, row in enumerate(rows))]
    assert load(tmp_path, "f.csv", "\n".join(lines)) == FACTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER},\n{{}} is,Peru,x,left\n", "line 2: the cell 'left' is in a column without a name"),
        ("prompt;subject\n{} is;Peru\n", "line 1: unknown column 'prompt;subject'"),
        (f"sep=;\n{HEADER.replace(',', ';')}\n{{}} is,Peru,x\n", "line 3: the row has 1 cell, .* separated by ';'"),
    ],
)
def test_cells_that_belong_nowhere_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        load(tmp_path, "f.csv", content)


@pytest.mark.parametrize("nothing", ["", "nan", "NaN", "<NA>"])
def test_an_optional_cell_of_nan_is_missing_and_a_required_one_is_text(tmp_path: Path, nothing: str) -> None:
    (found,) = load(tmp_path, "f.csv", f"{HEADER},target_true,paraphrases,id\n{{}} is,NaN,nan,{nothing},{nothing},\n")
    assert found == Fact("{} is", "NaN", "nan")


def test_numbers_are_text_and_nan_is_missing(tmp_path: Path) -> None:
    text = (
        '[{"prompt": "The year after 1984 is", "subject": 1984, "target_new": 42, "target_true": NaN, "id": 7.0, '
        '"paraphrases": NaN}, {"prompt": "{} is", "subject": 1984.0, "target_new": 2.5, "neighbors": '
        '[{"prompt": "x", "target_true": 3}], "space": null}]'
    )
    first, second = load(tmp_path, "f.json", text)
    assert (first.text, first.subject, first.target_new, first.target_true, first.id, first.paraphrases) == (
        "The year after 1984 is",
        "1984",
        "42",
        None,
        "7",
        (),
    )
    assert (second.text, second.target_new, second.neighbors[0].target_true) == ("1984 is", "2.5", "3")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("subject", "true", "subject=True: must be a valid string"),
        ("target_new", "false", "target_new=False: must be a valid string"),
        ("target_new", "NaN", "target_new=None: must be a valid string"),
        ("subject", "NaN", "missing field 'subject'"),
    ],
)
def test_neither_true_nor_a_missing_required_field_is_text(
    tmp_path: Path, field: str, value: str, message: str
) -> None:
    cells = {name: json.dumps(text) for name, text in OWN.items()} | {field: value}
    with pytest.raises(DataFileError, match=f"record 1: {message}"):
        load(tmp_path, "f.json", "[{" + ", ".join(f'"{name}": {text}' for name, text in cells.items()) + "}]")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            '{"prompt": "{} is", "subject": "a", "subject": "b", "target_new": "c"}',
            "the field 'subject' is given 2 times",
        ),
        ('{"requested_rewrite": {"prompt": "a", "prompt": "b"}}', "the field 'prompt' is given 2 times in one object"),
        ('{"prompt": "{} is", "subject": "a", "target_new": ' + "1" * 5000 + "}", "a number has 5000 digits; write it"),
        ('{"prompt": "{} is", "subject": "a", "target_new": "\\ud800"}', "target_new='.ud800': holds half of a char"),
        ('{"prompt": "{} is", "subject": "\\udfff x", "target_new": "b"}', "subject=.*: holds half of a character"),
        ('{"prompt": "{} is", "subject": "a", "target_new": "b", "id": "\\ud83c"}', "id=.*: holds half of a character"),
    ],
    ids=["twice", "twice within", "digits", "high half", "low half", "half an id"],
)
@pytest.mark.parametrize("lines", [False, True])
def test_what_json_allows_and_no_record_may_hold_is_named_and_can_be_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str, message: str, lines: bool
) -> None:
    records = [json.dumps(OWN), bad, json.dumps(SPAIN)]
    name, text = ("f.jsonl", "\n".join(records)) if lines else ("f.json", f"[{', '.join(records)}]")
    with pytest.raises(DataFileError, match=f"{name}: {'line' if lines else 'record'} 2: {message}"):
        load(tmp_path, name, text)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, name, text, skip_unusable=True) == FACTS
    assert "1 record cannot be used" in caplog.text


@pytest.mark.parametrize("depth", [300, 990, 2_000, 100_000])
@pytest.mark.parametrize("bracket", ["[]", ['{"a":', "}"]])
@pytest.mark.parametrize("lines", [False, True])
def test_deep_nesting_is_refused_by_record(tmp_path: Path, depth: int, bracket: Any, lines: bool) -> None:
    nested = bracket[0] * depth + ("1" if len(bracket[0]) > 1 else "") + bracket[1] * depth
    bad = json.dumps({**OWN, "id": 0}).replace('"id": 0', f'"id": {nested}')
    name, text = ("f.jsonl", f"{json.dumps(OWN)}\n{bad}\n") if lines else ("f.json", f"[{json.dumps(OWN)}, {bad}]")
    with pytest.raises(DataFileError, match=f"{name}: {'line' if lines else 'record'} 2: ") as caught:
        load(tmp_path, name, text)
    assert len(str(caught.value)) < 700 + len(str(tmp_path))


MEGABYTE = "a" * 1_000_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.json", json.dumps([OWN, MEGABYTE])),
        ("f.json", json.dumps([{MEGABYTE: 1}])),
        ("f.json", json.dumps([{**OWN, MEGABYTE: 1}])),
        ("f.json", json.dumps([{**OWN, "prompt": MEGABYTE}])),
        ("f.json", json.dumps([{**OWN, "prompt": "{} Peru " + MEGABYTE}])),
        ("f.json", json.dumps([{**OWN, "target_new": {MEGABYTE: 1}}])),
        ("f.json", json.dumps([{"src": MEGABYTE, "subject": MEGABYTE + "b"}])),
        ("f.json", json.dumps([{**OWN, "neighbors": [MEGABYTE]}])),
        ("f.json", json.dumps([{"requested_rewrite": [MEGABYTE] * 2}])),
        ("f.json", json.dumps([{**OWN, "ground_truth": {"a": MEGABYTE}}])),
        ("f.json", json.dumps([{**OWN, "locality": {MEGABYTE: {"prompt": [MEGABYTE], "ground_truth": []}}}])),
        ("f.csv", f"{HEADER},{MEGABYTE[:100_000]}\n"),
        ("f.csv", f"{HEADER},\n{{}} is,Peru,x,{MEGABYTE[:100_000]}\n"),
    ],
    ids=range(13),
)
def test_no_message_quotes_a_megabyte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    with pytest.raises(DataFileError) as caught:
        load(tmp_path, name, content)
    assert len(str(caught.value)) < 1_700 + len(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        if name == "f.json":
            records = [OWN, *json.loads(content)]
            load(tmp_path, name, json.dumps(records), skip_unusable=True)
            assert 50 < len(caplog.text) < 2_000 + len(str(tmp_path))


def test_a_folder_says_which_files_it_holds(tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / f"{i}.json").write_text("[]")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(DataFileError, match=r"is a folder; give a file\. It holds 0\.json, 1\.json, .* and 2 more"):
        load_facts(tmp_path)


def test_a_folder_without_a_dot_in_its_name_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    with pytest.raises(DataFileError, match=r"^data: is a folder; give a file"):
        load_facts("data")
    Path("counterfact").mkdir()
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataFileError, match=r"^counterfact: .* Download it"):
        load_facts("counterfact")


def test_what_datasets_and_spreadsheets_save_names_the_way_to_a_file(tmp_path: Path) -> None:
    saved, parts = tmp_path / "saved", tmp_path / "parts"
    for folder in (saved, parts / "data"):
        folder.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    (saved / "data-00000-of-00001.arrow").write_bytes(b"x")
    (parts / "data" / "train.parquet").write_bytes(b"PAR1")
    for path, message in (
        (saved, r"`save_to_disk` wrote; make a file of it with datasets\.load_from_disk\(.*\)\.to_json"),
        (parts, r"It holds train\.parquet\. Make one of it: pandas\.read_parquet\(.*train\.parquet.*lines=True"),
        (parts / "data" / "train.parquet", r"unknown extension '\.parquet'; .* Make one of it: pandas\.read_parquet"),
        (tmp_path / "facts.xlsx", r"unknown extension '\.xlsx'; .* save it as CSV UTF-8 in the spreadsheet"),
    ):
        with pytest.raises(DataFileError, match=message):
            load_facts(path)
