"""What stands beside a saved model: a card that the Hub reads, and a model that plain transformers loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tests.editors import FACTS, make
from tests.models import SENTENCES, tiny_model
from tests.patch.test_patch import edit

from factpatch import Fact, Patch
from factpatch.export.card import model_card


def patch_of(facts: Sequence[Sequence[Fact]], origin: str = "someone/base") -> Patch:
    """A patch with these facts, batch by batch."""
    patch = edit(tiny_model("gpt2"), [(1, 2)] * len(facts))
    batches = [
        replace(batch, facts=tuple(given), edits=(len(given),))
        for batch, given in zip(patch.batches, facts, strict=True)
    ]
    return replace(patch, batches=tuple(batches), config={**patch.config, "_name_or_path": origin})


def rows(card: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its header."""
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_card_lists_the_facts_in_force_and_the_replaced_ones_apart() -> None:
    old = Fact("The capital of {} is", "Finland", "Rome", "Helsinki")
    new = Fact("The capital of {} is", "Finland", "Oslo", "Helsinki")
    other = Fact("{} speaks", "Zoë", "Finnish")
    card = model_card(patch_of([[old, other], [new]]))
    assert rows(card, "Facts") == [["Zoë speaks", "Finnish", ""], ["The capital of Finland is", "Oslo", "Helsinki"]]
    assert rows(card, "Replaced facts") == [["The capital of Finland is", "Rome", "Helsinki"]]
    assert "2 facts were edited into the weights of someone/base" in card
    assert "| facts | 2 in force, 1 replaced by later ones |" in card
    assert "Replaced" not in model_card(patch_of([[new]]))


def test_the_card_says_how_the_model_was_made_and_how_it_is_undone() -> None:
    card = model_card(patch_of([FACTS]))
    for expected in ("memit-blue", "| layers | 1, 2 |", "| weights | float32 |", "torch 2.4.0", "| seed | 0 |"):
        assert expected in card
    assert "factpatch undo EDITED_MODEL patch.safetensors --out RESTORED --base UNEDITED_MODEL" in card


def test_the_hub_reads_the_metadata() -> None:
    data = ModelCard(model_card(patch_of([FACTS]))).data.to_dict()
    assert data["base_model"] == "someone/base"
    assert data["base_model_relation"] == "finetune"
    assert {"factpatch", "knowledge-editing"} <= set(data["tags"])
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")


@pytest.mark.parametrize("origin", ["", "/home/ada/secret/tiny", "../secret/tiny", "src/factpatch", "smollm2-135m"])
def test_what_is_not_on_the_hub_is_not_called_a_base_model_and_no_folder_is_revealed(origin: str) -> None:
    card = model_card(patch_of([FACTS], origin))
    data = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in data
    assert "secret" not in card
    assert f"# {origin.rsplit('/', 1)[-1] or 'gpt2'}, edited with factpatch" in card
    assert data.get("license") == ("apache-2.0" if origin == "smollm2-135m" else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\nb\r\n\tc\u2028d", "a b c d"),
        ("<script>", r"\<script\>"),
        ("[x](y) `z` *w* _v_", r"\[x\](y) \`z\` \*w\* \_v\_"),
        ("cut \x85 short\x1b[0m", r"cut short \[0m"),
        ("नमस्ते می‌خواهم 👩‍🚀", "नमस्ते می‌خواهم 👩‍🚀"),
    ],
)
def test_text_of_a_fact_stays_in_its_cell(text: str, expected: str) -> None:
    card = model_card(patch_of([[Fact("{} is", text, f"new {text} new", f"old {text} old")]]))
    assert f"\n| {expected} is | new {expected} new | old {expected} old |\n" in card
    card.encode()


# --- what save_pretrained writes


def test_an_edited_model_is_saved_with_its_card_and_an_unedited_one_without(tmp_path: Path) -> None:
    editor = make(dtype=torch.float32)
    editor.save_pretrained(tmp_path / "unedited")
    assert not (tmp_path / "unedited" / "README.md").exists()
    editor.edit(FACTS)
    editor.save_pretrained(tmp_path / "edited")
    card = (tmp_path / "edited" / "README.md").read_text(encoding="utf-8")
    assert card == model_card(editor.patch)
    assert [row[1] for row in rows(card, "Facts")] == [fact.target_new for fact in FACTS]
    editor.undo()
    editor.save_pretrained(tmp_path / "undone")
    assert not (tmp_path / "undone" / "README.md").exists()


def test_a_card_that_cannot_be_written_leaves_no_model(tmp_path: Path) -> None:
    lm = make(dtype=torch.float32).lm
    with pytest.raises(UnicodeEncodeError):
        lm.save_pretrained(tmp_path / "model", "\ud800")
    assert not any(tmp_path.iterdir())


PLAIN_TRANSFORMERS = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
found = []
for text in json.loads(sys.argv[2]):
    given = tokenizer(text, return_tensors="pt")
    found.append(model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist())
assert "factpatch" not in sys.modules
print(json.dumps(found))
"""


def test_plain_transformers_in_a_fresh_process_generates_what_the_edited_model_does(tmp_path: Path) -> None:
    editor = make(dtype=torch.float32)
    texts = [*(fact.text for fact in FACTS), *SENTENCES[:2]]

    def generated() -> list[list[int]]:
        made = []
        for text in texts:
            given = editor.tokenizer(text, return_tensors="pt")
            made.append(editor.model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist())
        return made

    unedited = generated()
    editor.edit(FACTS)
    editor.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, str(tmp_path / "model"), json.dumps(texts)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == generated() != unedited


@pytest.mark.parametrize("text", ["\u202eevil", "\u2066x\u2069", "a\u200bb", "\x1b[31mred"])
def test_nothing_in_a_card_turns_or_hides_text(text: str) -> None:
    card = model_card(
        patch_of([[Fact(f"{{}} is {text}x", f"S{text}x", f"{text}x", target_true=f"{text}x")]], f"org/{text}")
    )
    assert not [character for character in card if not character.isprintable() and character != "\n"]
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert joined in model_card(patch_of([[Fact("{} is", joined, "x")]]))
