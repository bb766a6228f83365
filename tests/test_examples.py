"""The examples do what they say."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.editors import EXACT, FACTS, LAYERS, make, second_moments
from tests.models import INNER, save_corpus, save_tiny

from factpatch.data import load_facts, save_facts
from factpatch.evaluation.reproduction import is_long
from factpatch.model.embedded import EmbeddedModelUnavailable, embedded_directory

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.long
@pytest.mark.slow
def test_a_lora_adapter_of_an_edit_is_served_on_the_unedited_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    try:
        embedded_directory("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    main = runpy.run_path(str(EXAMPLES / "edit_and_serve_lora.py"))["main"]
    assert main(tmp_path / "adapter") == ("Paris.", "Rome.")


def test_an_added_method_solves_as_its_paper_says_and_edits() -> None:
    example = runpy.run_path(str(EXAMPLES / "add_a_method.py"))
    solver = example["Equality"](weight=3.0)
    moment = second_moments()[LAYERS[0]]
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(2, 3, INNER, generator=generator, dtype=EXACT) for _ in range(2)]
    memory, earlier = solver.memory(moment), torch.empty(0, INNER, dtype=EXACT)
    for keys, residual in batches:
        shift = memory.solve(keys, residual).matrix()
        torch.testing.assert_close(shift, example["dense"](solver, moment, keys, residual, earlier))
        torch.testing.assert_close(keys @ shift.T, residual)  # every fact is met exactly
        memory.remember(memory.trace(keys, residual))
        earlier = torch.cat([earlier, keys])
    row = example["emmet_blue"]
    editor = make(row)
    before = editor.lm.weight(LAYERS[0]).clone()
    editor.edit(FACTS)
    assert not torch.equal(editor.lm.weight(LAYERS[0]), before)
    editor.undo()
    assert torch.equal(editor.lm.weight(LAYERS[0]), before)
    assert row.source.endswith("BLUE, arXiv:2502.03748")


def test_a_table_of_the_paper_is_reproduced_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pandas", "pyarrow", "sklearn"):
        pytest.importorskip(package)
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    model, facts, corpus = tmp_path / "tiny", tmp_path / "facts.json", tmp_path / "corpus.txt"
    save_tiny(model, "llama")
    save_facts([replace(fact, target_true="Paris") for fact in FACTS], facts)
    save_corpus(corpus)
    example = runpy.run_path(str(EXAMPLES / "reproduce_a_table.py"))
    options = {"methods": ["memit", "memit-blue"], "edits": 4, "batch_size": 4, "text": {"facts": 1, "tokens": 4}}
    for _ in range(2):
        results = example["main"](
            tmp_path / "run", str(facts), str(model), **options, critical_layers=[1, 2], corpus=str(corpus)
        )
    table = results.table("Table 2", example["blue_pairs"]())
    assert [label for label, _ in table.lines] == ["unedited", "memit", "memit-blue"]
    assert {"label", "metric", "value", "when"} <= set(results.rows.columns)


def test_the_facts_to_forget_have_all_ways_to_ask() -> None:
    facts = load_facts(EXAMPLES / "forget.json")
    assert len(facts) == 10
    assert all(fact.forget == "silence" and fact.target_true and fact.questions and fact.paraphrases for fact in facts)


def test_the_long_answers_are_twenty_long_answers() -> None:
    facts = load_facts(EXAMPLES / "long_answers.json")
    assert len({fact.key for fact in facts}) == 20
    assert all(is_long(fact.target_new) and len(fact.neighbors) == 2 for fact in facts)
