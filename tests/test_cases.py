"""What others bring: every folder of the shared `cases` gives what its expected.txt says, and inputs like them."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Run
from tests.helpers import shared
from tests.models import tiny
from torch import Tensor

from factpatch import Editor, Fact, Patch, Recipe, verify
from factpatch.data import DataFileError, load_facts
from factpatch.evaluation.verify import plain_summary
from factpatch.model.embedded import EmbeddedModelUnavailable, embedded_directory
from factpatch.support.joint import joint
from factpatch.values.rows import optimization_rows

Make = Callable[[str], Path]
SLOT = Fact("The capital of {} is", "France", "Rome")


def case(folder: str, file: str = "facts.json") -> Path:
    return shared("cases", folder, file)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Commands that share a cache, so that the statistics of a model are read once."""
    return Run(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a small random model of a kind, with the tokenizer of the embedded model; returns its directory."""
    try:
        embedded_directory("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    script, folder = shared("cases", "tiny.py"), tmp_path_factory.mktemp("made")

    @cache
    def make(kind: str) -> Path:
        with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
            patched.setattr(sys, "argv", [str(script), kind, str(folder / kind)])
            runpy.run_path(str(script))
        return folder / kind

    return make


def editing(model: object, facts: object, out: Path, *options: object) -> list[object]:
    """A short edit of a small model, without the questions before and after."""
    return [
        "edit", model, "--facts", facts, "--out", out, "--corpus", shared("cases", "corpus.txt"), "--layers", "1,2",
        "--set", "target.steps=3", "--no-verify", *options,
    ]  # fmt: skip


def verified(arguments: list[object], folder: Path) -> list[object]:
    """The same edit with the questions before and after, and with little text for the perplexity."""
    text = folder / "text.txt"
    text.write_text("The river ignored a letter, and an old library described every window.")
    return [*(one for one in arguments if one != "--no-verify"), "--perplexity-text", text]


def sentence(fact: Fact) -> str:
    """A prompt with its answer."""
    return fact.text + joint(fact.text, fact.space) + fact.target_new


# Files of facts ------------------------------------------------------------------------------------------------------


def test_white_space_before_an_answer_is_dropped_from_prompt_and_target() -> None:
    (capital,) = load_facts(case("01-prompt-ends-in-space"))
    assert capital == SLOT
    (sentences,) = load_facts(case("25-convsent"))
    assert sentences.target_new == "Honestly, people complain about it. I would rather stay home."


def test_wikibio_is_one_fact_whose_answer_stands_after_one_space() -> None:
    (fact,) = load_facts(case("02-wikibio"))
    assert (fact.subject, fact.text) == ("ina varn", "This is a Wikipedia passage about ina varn.")
    assert "ina varn. Ina Varn (born April 19, 1947) is a chess player" in sentence(fact)
    assert fact.target_new.endswith("She won the national title twice.")


def test_a_subject_that_its_prompt_lacks_is_named_before_the_model_is_loaded(
    run: Run, made: Make, tmp_path: Path
) -> None:
    facts, out = case("04-zsre-subject-absent"), tmp_path / "p.safetensors"
    said = run.refused("record 1", *editing("/no/such/model", facts, out))
    assert "'Rio Blanco 463'" in said
    assert "no such directory" not in said
    done = run.ok(*editing(made("llama"), facts, out, "--skip-unusable"))
    assert "1 record cannot be used and was skipped; the first: record 1" in " ".join(done.output.split())
    assert [fact.subject for fact in Patch.load(out).facts] == ["Runaway Monday"]


@pytest.mark.parametrize("file", ["facts.json", "facts.csv", "slot.json"])
def test_a_prompt_in_full_is_read_as_one_with_a_slot(file: str) -> None:
    assert load_facts(case("06-whole-prompt", file)) == [SLOT]


def test_fastedits_target_is_the_new_answer() -> None:
    assert load_facts(case("07-fastedit")) == [Fact("The prime minister of the {} is", "UK", "Ana Bell")]


def test_every_edit_of_a_record_of_mquake_is_a_fact() -> None:
    first, second = load_facts(case("08-mquake"))
    assert (first.text, first.target_new, first.target_true) == (
        "Ella Kay is a citizen of",
        "Croatia",
        "United States of America",
    )
    assert (second.text, second.target_new, second.target_true) == ("The capital of Croatia is", "Oslo", "Zagreb")


def test_repeated_questions_are_all_named_and_can_be_dropped(run: Run, made: Make, tmp_path: Path) -> None:
    facts, out = case("09-repeated-question"), tmp_path / "p.safetensors"
    said = run.refused("1 exact duplicate and 1 conflicting answer", *editing("smollm2-135m", facts, out))
    for pair in ("record 1 and record 3 are duplicates", "record 2 and record 4 conflict", "--repeats first"):
        assert pair in said
    for which, answers in (("first", ["Rome", "Oslo"]), ("last", ["Rome", "Lima"])):
        done = run.ok(*editing(made("llama"), facts, out, "--repeats", which))
        assert f"dropped, as the {which} answer" in " ".join(done.output.split())
        assert [fact.target_new for fact in Patch.load(out).facts] == answers


@pytest.mark.parametrize("file", ["facts.json", "lists.json"])
def test_lines_in_a_json_file_are_read(file: str) -> None:
    facts = load_facts(case("10-json-lines-in-json", file))
    assert [(fact.text, fact.target_new) for fact in facts] == [
        ("The capital of France is", "Rome"),
        ("The capital of Spain is", "Rome"),
    ]


@pytest.mark.parametrize("file", ["semicolon.csv", "tab.tsv", "index.csv", "utf16.csv"])
def test_tables_of_spreadsheets_are_read(file: str) -> None:
    assert load_facts(case("11-excel-csv", file)) == [SLOT]


def test_quotes_and_commas_of_a_cell_stay_and_other_encodings_are_refused() -> None:
    (fact,) = load_facts(case("11-excel-csv", "bom.csv"))
    assert (fact.text, fact.target_new) == ("The capital of France is", 'Rome, "the eternal"')
    with pytest.raises(DataFileError, match=r"cp1252\.csv: is not UTF-8 text.*save it as UTF-8"):
        load_facts(case("11-excel-csv", "cp1252.csv"))


@pytest.mark.parametrize("folder", ["41-cknowedit", "42-no-subject"])
def test_a_record_without_subject_is_read_and_told_where_its_fact_is_written(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    facts = load_facts(case(folder))
    assert all(fact.place for fact in facts)
    assert "without a subject" in caplog.text


def test_an_answer_that_is_true_already_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    facts = load_facts(case("37-known-already"))
    assert [fact.other for fact in facts] == [None, None]
    assert "target_new equals target_true in 1 fact" in caplog.text


def test_a_folder_and_a_path_that_does_not_exist_are_called_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    out = tmp_path / "p.safetensors"
    run.refused("data: is a folder; give a file", *editing("smollm2-135m", tmp_path / "data", out))
    said = run.refused(
        "model='/no/such/Llama-3.2-1B-Instruct' cannot be loaded: there is no such directory.",
        *editing("/no/such/Llama-3.2-1B-Instruct", case("06-whole-prompt", "slot.json"), out),
        code=1,
    )
    assert "repo" not in said


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lfs", r"model\.safetensors is a pointer of git-lfs, not the file itself.*get it again"),
        ("compiled", r"lacks 39 of the model's 39 weights .*would be random.*'_orig_mod\.'"),
        ("half", r"the checkpoint lacks \d+ of the model's 39 weights \(model\.layers\.2\."),
        ("added", r"'Zorblaxia' is a token that the model has no embedding for.*resize_token_embeddings"),
        ("truncated", r"model\.safetensors is cut off or damaged .*Get it again"),
        ("vocab", r"49155"),
        ("adapter", r"adapter"),
    ],
)
def test_a_broken_or_other_model_is_refused_with_what_it_is(
    run: Run, made: Make, tmp_path: Path, kind: str, said: str
) -> None:
    facts = case("17-token-without-embedding") if kind == "added" else case("06-whole-prompt", "slot.json")
    out = tmp_path / "p.safetensors"
    output = run.refused("error: ", *editing(made(kind), facts, out), code=1)
    assert re.search(said, output), output
    assert not out.exists()
    assert "register" not in output


def test_a_gguf_file_without_a_model_is_refused(run: Run, tmp_path: Path) -> None:
    """Whole ones are edited since; the file of this case is only a head."""
    path = tmp_path / "model-Q4_K_M.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    arguments = editing(path, case("06-whole-prompt", "slot.json"), tmp_path / "p.safetensors")
    run.refused(f"{path} cannot be read: ", *arguments, code=1)
    assert not (tmp_path / "p.safetensors").exists()


def test_added_tokens_with_embeddings_are_edited(run: Run, made: Make, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    run.ok(*editing(made("resized"), case("17-token-without-embedding"), out, "--save-model", tmp_path / "e"))
    assert [fact.subject for fact in Patch.load(out).facts] == ["Zorblaxia"]
    assert names(tmp_path / "e") == names(made("resized"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("peft", r"merge_and_unload\(\)"),
        ("peft-attention", r"merge_and_unload\(\)"),
        ("compile", r"_orig_mod|uncompiled"),
        ("parallel", r"model\.module"),
    ],
)
def test_a_wrapped_model_is_refused_with_what_to_give(made: Make, kind: str, said: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = made("llama")
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    if kind.startswith("peft"):
        peft = pytest.importorskip("peft")
        modules = ["q_proj"] if kind == "peft-attention" else ["q_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=modules))
    elif kind == "compile":
        model = torch.compile(model, backend="eager")
    elif kind == "parallel":
        model = torch.nn.DataParallel(model)
    with pytest.raises(ValueError, match=said):
        Editor(model, AutoTokenizer.from_pretrained(directory), corpus=str(shared("cases", "corpus.txt")))


def test_a_prompt_beyond_the_models_positions_is_refused_with_both_numbers(
    run: Run, made: Make, tmp_path: Path
) -> None:
    facts = long_prompt(tmp_path, 120)
    said = run.refused("reads 512", *editing(made("gpt2"), facts, tmp_path / "p.safetensors"), code=1)
    assert re.search(r"takes \d{4} tokens", said)


def long_prompt(tmp_path: Path, items: int) -> Path:
    path = tmp_path / f"long-{items}.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["make.py", str(items), str(path)])
        runpy.run_path(str(case("26-long-prompt", "make.py")))
    return path


def names(directory: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        return sorted(file.keys())


# Three of the nine kinds, which differ most: tied, with rotations and rows of its own, with biases and transposed.
@pytest.mark.parametrize("kind", ["qwen3", "llama-bf16", "gpt2"])
def test_a_family_is_edited_applied_and_undone_to_the_bit(run: Run, made: Make, tmp_path: Path, kind: str) -> None:
    model, out = made(kind), tmp_path / "p.safetensors"
    edited, applied, undone = (tmp_path / name for name in ("edited", "applied", "undone"))
    run.ok(*editing(model, case("06-whole-prompt", "slot.json"), out, "--save-model", edited))
    run.ok("apply", model, out, "--out", applied)
    run.ok("undo", applied, out, "--base", model, "--out", undone)
    content = [(path / "model.safetensors").read_bytes() for path in (model, edited, applied, undone)]
    assert content[1] == content[2] != content[0]
    assert content[3] == content[0]
    assert names(edited) == names(model)


def test_two_edits_write_the_same_bytes(run: Run, made: Make, tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        run.ok(*editing(made("llama"), case("06-whole-prompt", "slot.json"), tmp_path / name))
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


# Files that are written ----------------------------------------------------------------------------------------------


def test_an_adapter_names_its_model_or_says_that_it_does_not(run: Run, made: Make, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    patch = tmp_path / "p.safetensors"
    run.ok(*editing(made("llama"), case("06-whole-prompt", "slot.json"), patch))
    assert "--base-model-name" in run.ok("lora", patch, "--out", tmp_path / "nameless").output
    run.ok("lora", patch, "--out", tmp_path / "named", "--base-model-name", made("llama"))
    config = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made("llama"))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "named"))
    assert "lora" in loaded.peft_type.lower()


def test_a_patch_for_other_weights_says_which_command_rebases_it(run: Run, made: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    patch, tuned = tmp_path / "p.safetensors", tmp_path / "tuned"
    run.ok(*editing(made("llama"), case("06-whole-prompt", "slot.json"), patch))
    model = AutoModelForCausalLM.from_pretrained(made("llama"))
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= 1.0001
    model.save_pretrained(tuned)
    AutoTokenizer.from_pretrained(made("llama")).save_pretrained(tuned)
    run.refused("factpatch rebase MODEL PATCH --out NEW", "apply", tuned, patch, "--out", tmp_path / "e", code=1)
    run.ok("rebase", tuned, patch, "--out", tmp_path / "new.safetensors")
    run.ok("apply", tuned, tmp_path / "new.safetensors", "--out", tmp_path / "e")


def test_a_log_of_few_characters_stops_no_edit(
    run: Run, made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(run.cache))
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    out = tmp_path / "p.safetensors"
    arguments = verified(editing(made("llama"), case("03-chinese"), out), tmp_path)
    command = [sys.executable, "-m", "factpatch", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    said = (done.stdout + done.stderr).decode("cp1252")
    assert done.returncode == 0, said
    assert [fact.target_new for fact in Patch.load(out).facts] == ["纽约"]
    assert "????????" in said  # 中国的首都是纽约


def test_a_cards_table_is_whole_whatever_the_facts_hold(run: Run, made: Make, tmp_path: Path) -> None:
    run.ok(*editing(made("llama"), case("35-card"), tmp_path / "p.safetensors", "--save-model", tmp_path / "e"))
    card = (tmp_path / "e" / "README.md").read_text("utf-8")
    header, line, row = re.findall(r"^\|.*", card.partition("## Facts")[2], re.MULTILINE)
    assert {len(re.findall(r"(?<!\\)\|", one)) for one in (header, line, row)} == {4}
    assert row.startswith(r"| The motto of A\|B \`Club\` is |")
    assert row.count("maybe") == 1
    assert "<b>" not in card


def test_of_repeated_questions_in_batches_the_last_answer_counts(run: Run, made: Make, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    out = tmp_path / "p.safetensors"
    arguments = editing(made("llama"), case("29-edit-again"), out, "--batch-size", 1, "--report", report)
    run.ok(*verified(arguments, tmp_path))
    found = json.loads(report.read_text())
    assert [fact["target_new"] for fact in found["facts"]["rows"]] == ["Rome"]
    assert [fact["target_new"] for fact in found["superseded"]] == ["Rome", "Oslo"]


def test_no_beginning_of_text_comes_between_prompt_and_answer() -> None:
    (fact,) = load_facts(case("23-pmet-bos"))
    lm = tiny("llama", bos=True)
    row = optimization_rows(lm, [fact], ("{}",))[0]
    text = [*row.ids, row.targets[-1]]
    assert text == lm.tokenizer(fact.text + " German").input_ids
    assert text.count(lm.tokenizer.bos_token_id) == 1


# The embedded model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Editor:
    """One editor, with the preset and the contexts of the command, for the tests on the real model."""
    try:
        embedded_directory("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    return Editor("smollm2-135m", progress=False)


@pytest.fixture
def editor(smollm2: Editor) -> Iterator[Editor]:
    yield smollm2
    smollm2.reset()


@pytest.fixture
def bare(smollm2: Editor) -> Iterator[Editor]:
    """Edits with the bare prompt as its only context, which takes a sixth of the time."""
    made = Editor(smollm2.lm, recipe=smollm2.recipe, contexts=("{}",), progress=False)
    yield made
    made.reset()


def continued(editor: Editor, text: str, tokens: int = 4) -> str:
    """What the model's own `generate` says after a text."""
    given = editor.tokenizer(text, return_tensors="pt")
    output = editor.model.generate(**given, max_new_tokens=tokens, do_sample=False)[0]
    said: str = editor.tokenizer.decode(output[given.input_ids.shape[1] :])
    return said


@pytest.mark.slow
def test_a_capital_is_said_after_one_space_and_served_beside_another_patch(
    editor: Editor, bare: Editor, tmp_path: Path
) -> None:
    """One test, since an edit takes long."""
    (capital,) = load_facts(case("01-prompt-ends-in-space"))
    row, *_ = optimization_rows(editor.lm, [capital], ("{}",))
    assert editor.tokenizer.decode([*row.ids, *row.targets[-1:]]) == "The capital of France is Rome"
    rome = editor.edit([capital])
    assert continued(editor, "The capital of France is").startswith(" Rome")
    (reading,) = verify(editor.lm, None, [capital]).after
    assert reading.probability_new > 0.9
    editor.reset()
    check_adapters(bare, rome, tmp_path)


def check_adapters(editor: Editor, rome: Patch, tmp_path: Path) -> None:
    """Two adapters side by side, the adapter of both, and that one merged do what the sum of the patches does."""
    peft = pytest.importorskip("peft")
    other = editor.edit(load_facts(case("39-two-adapters", "b.json")))
    editor.undo()
    both = Patch.compose([rome, other])
    for name, patch in (("rome", rome), ("other", other), ("both", both)):
        patch.to_lora(tmp_path / name)
    ids = editor.tokenizer("The capital of France is", return_tensors="pt")

    @torch.no_grad()
    def logits(model: Any) -> Tensor:
        found: Tensor = model(**ids).logits[0, -1].double()
        return found

    both.apply(editor.model)
    wanted = logits(editor.model)
    both.remove(editor.model, base=embedded_directory("smollm2-135m"))
    assert editor.tokenizer.decode(wanted.argmax()) == " Rome"
    model = peft.PeftModel.from_pretrained(editor.model, str(tmp_path / "rome"), adapter_name="rome")
    model.load_adapter(str(tmp_path / "other"), adapter_name="other")
    model.load_adapter(str(tmp_path / "both"), adapter_name="both")
    model.add_weighted_adapter(["rome", "other"], [1.0, 1.0], "sum", combination_type="cat")
    try:
        for name in ("sum", "both"):
            model.set_adapter(name)
            assert (logits(model) - wanted).abs().max() < 1e-3
    finally:
        model.unload()
    merged = peft.PeftModel.from_pretrained(deepcopy(editor.model), str(tmp_path / "both")).merge_and_unload()
    assert (logits(merged) - wanted).abs().max() < 1e-3


@pytest.mark.slow
def test_of_three_answers_the_last_one_is_said(bare: Editor) -> None:
    facts = load_facts(case("29-edit-again"))
    for fact in facts:
        bare.edit([fact])
        assert continued(bare, "The capital of France is").startswith(f" {fact.target_new}")
    assert list(bare.patch.facts) == facts[-1:]


@pytest.mark.long
@pytest.mark.slow
def test_subjects_at_the_start_and_an_answer_in_chinese_are_said(editor: Editor) -> None:
    facts = [*load_facts(case("30-subject-is-first-token")), *FIRST, *load_facts(case("03-chinese"))]
    editor.edit(facts)
    found = verify(editor.lm, None, facts)
    said = {sentence(fact): round(one.probability_new, 3) for fact, one in zip(facts, found.after, strict=True)}
    print(said)
    assert found.said() == [True] * len(facts), said
    assert min(said.values()) > 0.3, said
    assert continued(editor, "中国的首都是").startswith("纽约")


@pytest.mark.slow
def test_what_is_true_already_is_edited_without_harm(bare: Editor) -> None:
    facts = load_facts(case("37-known-already"))
    bare.edit(facts)
    found = verify(bare.lm, None, facts)
    assert found.said() == [True, True]
    assert [reading.preferred for reading in found.after] == [None, None]
    assert plain_summary(found).startswith("2 of 2 facts said, 2 exact")


@pytest.mark.long
@pytest.mark.slow
def test_pmet_learns(smollm2: Editor) -> None:
    facts = load_facts(case("23-pmet-bos"))
    row = optimization_rows(smollm2.lm, facts, ("{}",))[0]
    assert smollm2.tokenizer.decode([*row.ids, row.targets[-1]]) == sentence(facts[0])
    pmet = Editor(smollm2.lm, recipe=Recipe(method="pmet-blue"), contexts=smollm2.contexts, progress=False)
    try:
        pmet.edit(facts)
        assert verify(pmet.lm, None, facts).said() == [True]
        assert continued(pmet, facts[0].text).startswith(" German")
    finally:
        pmet.reset()


@pytest.mark.slow
def test_a_fact_is_as_probable_alone_as_beside_others(editor: Editor) -> None:
    facts = load_facts(case("22-verify-batch"))
    alone = verify(editor.lm, None, facts[:1], answers=False).after[0]
    beside = verify(editor.lm, None, facts, answers=False).after[0]
    assert alone.probability_new == pytest.approx(beside.probability_new, abs=1e-4)
    assert alone.probability_true == pytest.approx(beside.probability_true, abs=1e-4)


@pytest.mark.slow
@pytest.mark.long
def test_a_long_answer_counts_as_said_only_where_the_model_says_all_of_it(bare: Editor) -> None:
    facts = [*load_facts(case("25-convsent")), *load_facts(case("02-wikibio"))]
    for row, fact in zip(optimization_rows(bare.lm, facts, ("{}",))[::2], facts, strict=True):
        assert bare.tokenizer.decode([*row.ids, row.targets[-1]]) == sentence(fact)
    bare.edit(facts[:1])  # the other one takes as long again
    found = verify(bare.lm, None, facts)
    whole = [continued(bare, fact.text, 40).startswith(f" {fact.target_new}") for fact in facts]
    assert found.said() == whole
    assert not whole[1]
    assert plain_summary(found).startswith(f"{sum(whole)} of 2 facts said")


@pytest.mark.long
@pytest.mark.slow
def test_a_prompt_of_several_hundred_tokens_and_lines_is_learned(bare: Editor, tmp_path: Path) -> None:
    facts = load_facts(long_prompt(tmp_path, 40))
    assert len(bare.tokenizer(facts[0].text).input_ids) > 512
    assert "\n\nQuestion: " in facts[0].text
    bare.edit(facts)
    assert verify(bare.lm, None, facts).said() == [True]
    assert continued(bare, facts[0].text).startswith(" Oslo")


FIRST = (
    Fact("{} is located in the continent of", "Germany", "Africa"),
    Fact("{} is a city in the country of", "London", "Spain"),
    Fact("{}", "Berlin", "Texas"),
)
OTHERS = (
    # answers whose tokens end inside characters
    Fact("The flag of {} is", "Peru", "रोम"),
    Fact("Столица страны {} — город", "Италия", "Минск"),
    Fact("The favorite fruit of {} is", "Newton", "🍎"),
    # no space before the answer
    Fact('She said that the capital of {} is "', "Spain", "Oslo"),
    Fact("The currency of {} (", "Japan", "euro"),
    Fact('capital["{}"] = "', "Egypt", "Lima"),
)


@pytest.mark.slow
def test_answers_in_other_scripts_and_after_open_quotes_are_said(bare: Editor) -> None:
    bare.edit(OTHERS)
    found = verify(bare.lm, None, OTHERS, answers=False)
    said = {sentence(fact): round(one.probability_new, 3) for fact, one in zip(OTHERS, found.after, strict=True)}
    print(said)
    assert found.said() == [True] * len(OTHERS), said
    assert min(said.values()) > 0.3, said
    for fact in OTHERS:
        assert (fact.text + continued(bare, fact.text, 8)).startswith(sentence(fact))
