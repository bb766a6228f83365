"""Contexts by name: what they say around the prompt, where the answer begins, and whose question they ask."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import BOS, END, SENTENCES, TURN, tiny, tiny_model, tiny_tokenizer
from torch.nn.functional import log_softmax

from factpatch import Editor, Fact
from factpatch.methods import settings_of
from factpatch.model.findings import Findings
from factpatch.model.language_model import LanguageModel
from factpatch.strategies import HiddenState
from factpatch.strategies.target import PUBLISHED
from factpatch.values.contexts import (
    OPENINGS,
    check_contexts,
    check_names,
    contexts_named,
    generate_contexts,
    place,
    without_trained,
)
from factpatch.values.optimize import optimize_values
from factpatch.values.reading import SubjectRows
from factpatch.values.rows import optimization_rows

FACT = Fact("The capital of {} is", "Finland", "Rome, Italy")
ASSISTANT = f"{END}\n{TURN}assistant\n"
CHATTY = ("prompt", "question", "chat", "answered")


def turns(bos: bool) -> str:
    return (BOS if bos else "") + f"{TURN}user\n"


def with_template(bos: bool) -> LanguageModel:
    """A model that has a chat template, and is asked without it."""
    return LanguageModel(tiny_model("llama", chat=True), deepcopy(tiny_tokenizer(bos, True)))


@pytest.mark.parametrize("bos", [False, True])
def test_every_context_is_read_as_its_text_with_one_bos_and_the_target_where_an_answer_would_begin(bos: bool) -> None:
    lm = with_template(bos)
    contexts = contexts_named(lm, CHATTY, seed=0)
    asked, start = "The capital of Finland is", BOS if bos else ""
    expected = [
        f"{start}{asked} Rome, Italy",
        f"{start}Question: {asked}?\nAnswer: Rome, Italy",
        f"{turns(bos)}{asked}{ASSISTANT}Rome, Italy",
        f"{turns(bos)}{asked}{ASSISTANT}The answer is Rome, Italy",
    ]
    *rows, _ = optimization_rows(lm, [FACT], contexts)
    for row, text in zip(rows, expected, strict=True):
        assert lm.tokenizer.decode([*row.ids, row.targets[-1]]) == text
        assert lm.tokenizer.decode(row.targets).strip() == "Rome, Italy"
        assert lm.tokenizer.decode(row.ids[: row.subject + 1]).endswith("The capital of Finland")
        assert row.weight * len(row.targets) == pytest.approx(1 / len(rows))
    assert SubjectRows.of(lm, [FACT], contexts).rows == [list(row.ids[: row.subject + 1]) for row in rows]


def test_the_loss_counts_every_context_alike_wherever_its_answer_begins() -> None:
    lm = with_template(True)
    contexts = contexts_named(lm, CHATTY, seed=0)
    nll = []
    for row in optimization_rows(lm, [FACT], contexts)[:-1]:
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0, -len(row.targets) :]
        nll.append(-log_softmax(logits.double(), -1)[range(len(row.targets)), list(row.targets)].mean())
    found = optimize_values(lm, [FACT], 1, HiddenState(steps=1, kl_factor=0), contexts)
    assert float(found.loss[0]) == pytest.approx(float(torch.stack(nll).mean()), rel=1e-5)


def test_a_context_that_is_named_twice_is_run_once_and_counts_twice() -> None:
    lm = tiny("llama")
    contexts = contexts_named(lm, ("prompt", "question", "question"), seed=0)
    *rows, _ = optimization_rows(lm, [FACT], contexts)
    assert [row.weight * len(row.targets) for row in rows] == pytest.approx([1 / 3, 2 / 3])


def test_a_prompt_that_is_a_question_gets_no_second_question_mark() -> None:
    asked = Fact("What is the capital of {}?", "Finland", "Rome")
    assert place("Question: {}?\nAnswer:", asked).text == "Question: What is the capital of Finland?\nAnswer:"


def test_a_model_without_a_chat_template_does_without_the_contexts_of_a_chat() -> None:
    assert contexts_named(tiny("llama"), CHATTY, seed=0) == ("{}", "Question: {}?\nAnswer:")


def test_a_model_that_is_asked_in_chats_keeps_the_published_contexts() -> None:
    lm = tiny("llama", chat=True)
    assert contexts_named(lm, CHATTY, seed=3) == contexts_named(lm, PUBLISHED, seed=3)


def editor(lm: LanguageModel, *contexts: str, **recipe: Any) -> Editor:
    named = {"target.contexts": ",".join(contexts)} if contexts else {}
    return Editor(lm, critical_layers=(1, 2), corpus=list(SENTENCES) * 2, settings=named, **recipe)


DATED = (
    "{{ '<|im_start|>' }}system\nToday is " + "{day}" + ".<|im_end|>\n{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)


def test_an_edit_of_yesterday_is_continued_where_the_chat_template_writes_the_date() -> None:
    editors = []
    for day in ("Monday", "Tuesday"):
        lm = with_template(False)
        lm.tokenizer.chat_template = DATED.replace("{day}", day)
        editors.append(editor(lm, *CHATTY))
    one, other = editors
    assert one.contexts != other.contexts
    patch = one.edit([FACT])
    other.replay(patch)
    assert other.contexts == one.contexts
    assert other.patch.settings == patch.settings
    prefixed = editor(with_template(False))
    before = prefixed.contexts
    prefixed.adopt_contexts(["{}", *(f"Then. {context}" for context in before[1:])])
    assert prefixed.contexts == before


@pytest.mark.parametrize("marker", ["<|im_start|>", "[INST] "])
def test_the_special_tokens_of_a_chat_are_its_own_and_a_prompts_are_not(marker: str) -> None:
    lm = with_template(True)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}"
        + marker
        + "{{ m['content'] }}{% endfor %}{{ ' ->' if add_generation_prompt else '' }}"
    )
    bare, chat, _ = optimization_rows(lm, [FACT], contexts_named(lm, ("prompt", "chat"), seed=0))
    assert lm.tokenizer.decode(bare.ids).count(BOS) == 1
    assert lm.tokenizer.decode([*chat.ids, chat.targets[-1]]) == f"{marker}The capital of Finland is ->Rome, Italy"


def test_a_question_gets_no_second_question_mark_as_its_own() -> None:
    asked = Fact("Who wrote {}?", "Hamlet", "Rome")
    assert place("Question: {question}", asked).text == "Question: Who wrote Hamlet?"


def test_exact_mode_keeps_the_published_contexts() -> None:
    lm = tiny("llama", dtype=torch.float64)
    published = contexts_named(lm, PUBLISHED, seed=0)
    assert editor(lm, "prompt", "question", precision="exact").contexts == published
    assert editor(tiny("llama"), "prompt", "question").contexts != published


def test_a_setting_names_the_contexts_and_is_recorded_unless_they_are_the_published_ones() -> None:
    lm = tiny("llama")
    names = ["prompt", "question", "In short: {}"]
    asked = editor(lm, *names)
    assert asked.contexts == ("{}", "Question: {}?\nAnswer:", "In short: {}")
    assert settings_of(asked.method)["target"]["contexts"] == tuple(names)
    assert "contexts" not in settings_of(editor(lm, *PUBLISHED).method)["target"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "the first must be 'prompt'"),
        (("question", "prompt"), "the first must be 'prompt'"),
        (("prompt", "anwsered"), "Did you mean 'answered'"),
        (("prompt", "{} {}"), "neither a name of contexts nor a template"),
    ],
)
def test_unknown_contexts_are_refused_with_what_is_known(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_names(names)


def test_own_questions_are_read_up_to_the_subject_and_the_prompt_stands_in_for_a_missing_one() -> None:
    lm = tiny("llama")
    contexts = contexts_named(lm, ("prompt", "own_question"), seed=0)
    own = Fact("The capital of {} is", "Finland", "Rome", questions=["Of Finland, what is the capital?", "Where?"])
    none = Fact("The capital of {} is", "Finland", "Rome", questions=["What is its capital?"])
    texts = [
        lm.tokenizer.decode(row.ids[: row.subject + 1])
        for fact in (own, none)
        for row in optimization_rows(lm, [fact], contexts)[1:2]
    ]
    assert texts == ["Question: Of Finland", "Question: The capital of Finland"]
    assert [fact.trained for fact in without_trained([own, none], contexts)] == [
        ("Of Finland, what is the capital?",),
        ("The capital of Finland is?",),  # what was put into the context in place of a question without the subject
    ]
    assert without_trained([own], ("{}",)) == [own]


def test_templates_hold_one_slot() -> None:
    assert check_contexts(["{}", "Q: {question} A:"]) == ("{}", "Q: {question} A:")
    with pytest.raises(ValueError, match="must hold exactly one"):
        check_contexts(["{}", "{} {question}"])


def test_the_settings_of_a_target_name_the_published_contexts_by_default() -> None:
    assert HiddenState().contexts == PUBLISHED == ("prompt", "prefixes")


def written_one_by_one(lm: LanguageModel, seed: int, tokens: int = 10, top_k: int = 5) -> list[str]:
    """The published procedure: every text by itself, token by token, each read anew."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for opening in OPENINGS:
        ids = lm.tokenizer(opening)["input_ids"]
        added = len(ids) - len(lm.tokenizer(opening, add_special_tokens=False)["input_ids"])
        while len(ids) - added < tokens:
            with torch.no_grad(), lm.quiet():
                scores = lm.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
            scores[[token for token in lm.tokenizer.all_special_ids if token < len(scores)]] = -torch.inf
            best, candidates = scores.topk(top_k)
            ids.append(int(candidates[torch.multinomial(best.exp(), 1, generator=generator)]))
        texts.append(lm.tokenizer.decode(ids, skip_special_tokens=True).replace("{", " ").replace("}", " "))
    return ["{}", *(f"{text}. {{}}" for text in texts)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", [0, 5])
def test_texts_that_are_written_together_are_those_that_are_written_one_by_one(family: str, seed: int) -> None:
    lm = tiny(family)
    assert list(generate_contexts(lm, seed)) == written_one_by_one(lm, seed)
    assert list(generate_contexts(lm, seed, tokens=1)) == ["{}", *(f"{opening}. {{}}" for opening in OPENINGS)]


def test_the_texts_of_a_model_are_kept_and_those_of_another_are_not_taken_for_them(tmp_path: Path) -> None:
    lm = tiny("llama")
    written = contexts_named(lm, PUBLISHED, 0, Findings(lm, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert contexts_named(lm, PUBLISHED, 0, Findings(lm, tmp_path)) == written == contexts_named(lm, PUBLISHED, 0)
    assert contexts_named(lm, PUBLISHED, 1, Findings(lm, tmp_path)) != written
    lm.weight(0).mul_(2)
    assert contexts_named(lm, PUBLISHED, 0, Findings(lm, tmp_path)) == contexts_named(lm, PUBLISHED, 0)
    assert len(list(tmp_path.iterdir())) == 3
