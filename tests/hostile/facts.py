"""Files of facts, altered: every one gives facts, or an error that names the file.

What loads also goes where facts go next: saved and read again, identified, compared with one another.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.common import Place, Tally, one, places

from factpatch.data import DataFileError, load_facts, save_facts
from factpatch.facts import Fact, identity, near_duplicates

RECORDS: dict[str, dict[str, Any]] = {
    "own": {
        "id": "a", "prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris",
        "paraphrases": ["France's capital is"], "generation_prompts": ["France is"], "relation_id": "P36",
        "neighbors": [{"prompt": "The capital of Spain is", "target_true": "Madrid"}],
    },
    "counterfact": {
        "case_id": 3, "pararel_idx": 1,
        "requested_rewrite": {
            "prompt": "The capital of {} is", "relation_id": "P36", "subject": "France",
            "target_new": {"str": "Rome", "id": "Q220"}, "target_true": {"str": "Paris", "id": "Q90"},
        },
        "paraphrase_prompts": ["France's capital is"], "neighborhood_prompts": ["Gaul's capital was"],
        "attribute_prompts": [], "generation_prompts": ["France is"],
    },
    "zsre": {
        "subject": "France", "src": "What is the capital of France?", "pred": "Paris", "rephrase": "France's capital?",
        "alt": "Rome", "answers": ["Rome"], "loc": "nq question: who is", "loc_ans": "Ann", "cond": "x",
    },
    "easyedit": {
        "prompt": "The capital of France is", "subject": "France", "target_new": "Rome", "ground_truth": [["Paris"]],
        "rephrase_prompt": "France's capital is",
        "portability": {"Subject_Aliasing": [{"prompt": "Gaul's capital is", "ground_truth": [["Rome"]]}]},
        "locality": {"Relation": [{"prompt": "France speaks", "ground_truth": [["French"]]}]},
    },
    "wikibio": {
        "text": "This passage is about France. ", "concept": "France", "labels": "It is small.",
        "locality": {"x": [{"prompt": "Spain is", "ground_truth": [["large"]]}]},
    },
}  # fmt: skip
MEGABYTE = "a" * 1_000_000
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e400, float("nan"), 2**70, "", " ", "\t\n", "{}", "{} {}", "{", "x", [], [[]], {}, [None],
    [1], {"": ""}, "\u202ertl\u202c", "\u2066x\u2069", "\x1b[31mred", "a\x00b", "\u2028", "\ud800", "\udfff x", "é",
    "e\u0301",
    "\U0001f1eb\U0001f1f7", "\ufeffx", "\u00a0", "\u200b", "<script>alert(1)</script>", "| a | b |", "{{ 7*7 }}", "\\",
    '"', "a\r\nb", MEGABYTE, "{}" * 10_000, [["a"] * 1000] * 10, {"a": {"b": {"c": []}}}, ["a", None],
    ["a", {"prompt": "x"}], [{"prompt": "x"}], [{"prompt": "x", "target_true": 5}],
)  # fmt: skip
INSERTED = (
    b"\x00", b"\xff", b'"', b",", b"\n", b"\r", b"{", b"]", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"null",
    b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"//", b"\x1a", b"\x85",
)  # fmt: skip


@dataclass
class Bench:
    place: Place
    folder: Path
    chance: random.Random

    def try_one(self, tally: Tally, group: str, what: str, content: bytes, suffix: str, *names: str) -> None:
        """Load a file, with and without skipping what cannot be used; an error names it, and the given places."""
        path = self.folder / f"case{suffix}"
        path.write_bytes(content)
        what, refusals = f"{suffix}: {what}", (DataFileError,)

        def no_facts(found: Any) -> str | None:
            right = isinstance(found, list) and found and all(isinstance(fact, Fact) for fact in found)
            return None if right else "no facts"

        found = one(tally, group, what, lambda: load_facts(path), refusals, (str(path), *names), no_facts)
        skipping = f"{group}, skipping"
        one(tally, skipping, what, lambda: load_facts(path, skip_unusable=True), refusals, (str(path),), no_facts)
        if found is None:
            return

        saved = self.folder / "saved.json"
        one(tally, "saved", what, lambda: save_facts(found, saved), ())
        one(tally, "compared", what, lambda: (identity(found), near_duplicates(found)), ())
        one(
            tally, "read again", what, lambda: load_facts(saved), (), (),
            lambda read: None if read == found else "other facts",
        )  # fmt: skip
        one(tally, "texts", what, lambda: [fact.text[fact.subject_end] for fact in found], ())


@contextmanager
def bench(place: Place) -> Iterator[Bench]:
    yield Bench(place, place.folder("facts"), random.Random(place.seed))


def records(bench: Bench, tally: Tally) -> None:
    """A record with something else at one place, among others that are right."""
    for name, record in RECORDS.items():
        for _ in range(bench.place.many(450)):
            altered, what = _altered(record, bench.chance)
            rows = [record] * 3
            rows[bench.chance.randrange(3)] = altered
            if bench.chance.random() < 0.5:
                text, suffix = json.dumps(rows, ensure_ascii=bench.chance.random() < 0.5), ".json"
            else:
                text, suffix = "\n".join(map(json.dumps, rows)), ".jsonl"
            bench.try_one(tally, "altered records", f"{name}: {what}", _encoded(text), suffix)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _altered(record: dict[str, Any], chance: random.Random) -> tuple[Any, str]:
    made: Any = copy.deepcopy(record)
    path = chance.choice(list(places(made)))
    if not path:
        return copy.deepcopy(chance.choice(ODD)), "something else for a record"
    holder, last, where, kind = made, path[-1], ".".join(map(str, path)), chance.random()
    for name in path[:-1]:
        holder = holder[name]
    if kind < 0.15:
        del holder[last]
        return made, f"{where} left out"
    if kind < 0.25 and isinstance(holder, dict):
        other = chance.choice(("x", "", "\x00", last.upper(), f"{last}s", "\u202e", "\ud800", MEGABYTE))
        holder[other] = holder.pop(last)
        return made, f"{where} called {other[:10]!r}"
    holder[last] = copy.deepcopy(chance.choice(ODD))
    return made, f"{where} = {str(holder[last])[:60]!r}"


def whole_files(bench: Bench, tally: Tally) -> None:
    """Files whose bytes were altered, that are in another encoding or format, or that are large."""
    for suffix, intact in _intact().items():
        for _ in range(bench.place.many(220)):
            what, content = _altered_bytes(intact, bench.chance)
            bench.try_one(tally, "altered bytes", what, content, suffix)
        for what, content in bench.place.some(_encodings(intact)):
            bench.try_one(tally, "whole files", what, content, suffix)
    for what, text, suffix in bench.place.some([*_values(), *_large(), *_tables()]):
        bench.try_one(tally, "whole files", what, _encoded(text), suffix)
    for suffix in ("", ".txt", ".JSON", ".json.gz", ".tsv", ".parquet", ".pkl", ".jsonl.bak"):
        bench.try_one(tally, "whole files", "suffix", _intact()[".json"], suffix)


def _intact() -> dict[str, bytes]:
    own = RECORDS["own"]
    two = [own, {**own, "id": "b", "subject": "Spain"}]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["prompt", "subject", "target_new", "target_true", "id", "paraphrases", "neighbors"])
    for subject in ("France", 'Spa"in, old', "Ita\nly"):
        neighbors = '[{"prompt": "a", "target_true": "b"}]'
        writer.writerow(["The capital of {} is", subject, "Rome", "Paris", "1", '["x y"]', neighbors])
    return {
        ".json": json.dumps(two, indent=1, ensure_ascii=False).encode(),
        ".jsonl": "".join(json.dumps(record) + "\n" for record in two).encode(),
        ".csv": out.getvalue().encode(),
    }


def _altered_bytes(intact: bytes, chance: random.Random) -> tuple[str, bytes]:
    content, kind = bytearray(intact), chance.choice(("flip", "cut", "insert", "drop", "swap"))
    at, other = chance.randrange(len(content)), chance.randrange(len(content))
    if kind == "flip":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = chance.choice(INSERTED)
    elif kind == "drop":
        del content[at : at + chance.randrange(1, 40)]
    else:
        content[at], content[other] = content[other], content[at]
    return f"{kind} at {at}", bytes(content)


def _encodings(intact: bytes) -> list[tuple[str, bytes]]:
    mark = b"\xef\xbb\xbf"
    return [
        ("empty", b""), ("spaces", b" \n\t"), ("byte order mark alone", mark), ("byte order mark", mark + intact),
        ("two marks", mark * 2 + intact), ("UTF-16", intact.decode().encode("utf-16")), ("NUL first", b"\x00" + intact),
        ("UTF-32", intact.decode().encode("utf-32")), ("latin-1", b"\xe9" + intact), ("NUL bytes", b"\x00" * 1000),
        ("NUL last", intact + b"\x00"), ("gzip", b"\x1f\x8b\x08\x00" + intact), ("png", b"\x89PNG\r\n\x1a\n"),
        ("CR", intact.replace(b"\n", b"\r")), ("CRLF", intact.replace(b"\n", b"\r\n")), ("twice", intact + intact),
        ("line separators", intact.replace(b"\n", b"\xe2\x80\xa8")), ("a megabyte of brackets", b"[" * 1_000_000),
        ("a megabyte of objects", b'{"a":' * 200_000), ("a megabyte of quotes", b'"' * 1_000_000),
        ("a megabyte of commas", b"," * 1_000_000), ("a megabyte of lines", b"\n" * 1_000_000),
    ]  # fmt: skip


def _values() -> Iterator[tuple[str, str, str]]:
    for text in (
        "null", "1", '"a"', "true", "[]", "{}", '{"facts": null}', '{"facts": {}}', '{"facts": []}', '{"facts": [[]]}',
        "[null]", "[1]", "[[[[]]]]", "NaN", "[NaN]", "[Infinity]", '{"facts": "counterfact"}',
    ):  # fmt: skip
        yield text, text, ".json"
        yield text, text, ".jsonl"


def _large() -> Iterator[tuple[str, str, str]]:
    own = RECORDS["own"]
    for what, extra in {
        "a number of 5,000 digits": '"id": ' + "9" * 5000, "a number of 4,000 digits": '"id": ' + "9" * 4000,
        "a list 2,000 deep": '"paraphrases": ' + "[" * 2000 + "]" * 2000,
        "a list 100,000 deep": '"paraphrases": ' + "[" * 100_000 + "]" * 100_000,
        "an object 100,000 deep": '"neighbors": ' + '{"a":' * 100_000 + "1" + "}" * 100_000,
        "ground_truth 900 deep": '"ground_truth": ' + "[" * 900 + '"x"' + "]" * 900,
        "twice the subject": '"subject": "Spain"', "twice the target": '"target_new": "Madrid"',
        "100,000 paraphrases": '"paraphrases": ' + json.dumps(["x y"] * 100_000),
        "100,000 neighbors": '"neighbors": ' + json.dumps(["x y"] * 100_000),
        "100,000 unknown fields": ", ".join(f'"f{n}": 1' for n in range(100_000)),
        "a field of a megabyte": f'"{MEGABYTE}": 1', "a subject of a megabyte": f'"subject": "{MEGABYTE}"',
        "a target of a megabyte": f'"target_new": "{MEGABYTE}"',
        "a prompt of a megabyte": f'"prompt": "{MEGABYTE} {{}}"', "a prompt without a slot": f'"prompt": "{MEGABYTE}"',
        "a megabyte of slots": '"prompt": "' + "{}" * 500_000 + '"',
    }.items():  # fmt: skip
        record = f"{json.dumps(own)[:-1]}, {extra}}}"
        yield what, f"[{record}]", ".json"
        yield what, f"{record}\n", ".jsonl"
    zsre = RECORDS["zsre"]
    for what, rows in {
        "100,000 records": [{**own, "subject": f"s{n}"} for n in range(100_000)],
        "3,000 records of one subject": [{**own, "prompt": f"p{n} {{}}", "paraphrases": []} for n in range(3_000)],
        "a long text and subject": [{**zsre, "src": "a" * 60_000, "subject": "a" * 30_000 + "b"}],
        "a long text of words": [{**zsre, "src": "a b " * 30_000, "subject": "a b " * 10_000 + "c"}],
    }.items():
        yield what, json.dumps(rows), ".json"


def _tables() -> Iterator[tuple[str, str, str]]:
    head = "prompt,subject,target_new,paraphrases"
    for what, row in {
        "a cell of a megabyte": f"The {{}} is,{MEGABYTE},x,", "a cell of 140 kB": f"The {{}} is,{'a' * 140_000},x,",
        "a list 100,000 deep": 'The {} is,a,x,"' + "[" * 100_000 + "]" * 100_000 + '"', "null": "The {} is,a,x,null",
        "a number of 5,000 digits": f'The {{}} is,a,x,"[{"9" * 5000}]"', "a number": "The {} is,a,x,5",
        "100 kB that are no JSON": f"The {{}} is,a,x,{MEGABYTE[:100_000]}", "an open quote": 'The {} is,"a,x,',
        "a stray quote": 'The {} is,a"b,x,', "NUL": "The {} is,a\x00b,x,", "too few": "The {} is,a",
        "too many": "The {} is,a,b,,,,", "a formula": "The {} is,=cmd|' /C calc'!A0,x,",
        "ESC": "The {} is,\x1b[31mred,x,",
        "half a character": "The {} is,\ud800,x,", "turned": "The {} is,\u202eevil,x,",
    }.items():  # fmt: skip
        yield f"CSV: {what}", f"{head}\n{row}\n", ".csv"
    for what, heads in {
        "a long column": f"{head},{MEGABYTE[:100_000]}", "100,000 columns": head + ",prompt" * 100_000,
        "no header": "a,b,c",
        "twice": f"{head}\n{head}", "an empty column": f"{head},", "tabs": head.replace(",", "\t"),
        "formula": "=cmd,prompt",
        "semicolons": head.replace(",", ";"), "quoted": '"prompt","subject","target_new","paraphrases"',
    }.items():  # fmt: skip
        yield f"CSV header: {what}", f"{heads}\nThe {{}} is,a,x,\n", ".csv"


def named(bench: Bench, tally: Tally) -> None:
    """One record that is wrong among seven that are right: the message says which."""
    for what, text, suffix, name in bench.place.some(_named()):
        bench.try_one(tally, "records are named", what, text.encode(), suffix, name)


def _named() -> Iterator[tuple[str, str, str, str]]:
    good, row = RECORDS["own"], "The {} is,a,b"
    wrong: tuple[Any, ...] = (
        {}, 5, None, [], {"prompt": "x"}, {**good, "subject": ""}, {**good, "x": 1}, {**good, "neighbors": [5]},
        {**good, "target_new": 5},
    )  # fmt: skip
    for where in (0, 1, 7):
        for record in wrong:
            rows = [record if index == where else good for index in range(8)]
            yield f"record {where + 1}: {str(record)[:30]}", json.dumps(rows), ".json", f"record {where + 1}"
            yield (
                f"line {where + 1}: {str(record)[:30]}",
                "\n".join(map(json.dumps, rows)),
                ".jsonl",
                f"line {where + 1}",
            )
        for cells in (
            "no slot,a,b",
            "The {} is,,b",
            "The {} is,a,",
            "The {} is,a",
            'The {} is,a"b,c',
            "The {} is,a,b,c",
        ):
            lines = ["prompt,subject,target_new", *(cells if index == where else row for index in range(8))]
            yield f"line {where + 2}: {cells}", "\n".join(lines), ".csv", f"line {where + 2}"
        for text in ('{"id": ' + "9" * 5000 + "}", "[" * 100_000, "{", '{"a": "\x01"}'):
            lines = [text if index == where else json.dumps(good) for index in range(8)]
            yield f"line {where + 1}: {text[:20]}", "\n".join(lines), ".jsonl", f"line {where + 1}"
