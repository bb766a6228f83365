"""Prompts from files, where their subjects are, and which of them a model knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import shared
from tests.models import tiny

from factpatch import Fact
from factpatch.data import DataFileError, KnownFact
from factpatch.evaluation.generation import greedy_answers
from factpatch.lab.tracing import Prompt, load_prompts
from factpatch.lab.tracing.noise import Noise, embedding_spread
from factpatch.lab.tracing.prompts import known_prompts, tokenize_prompts
from factpatch.model.decoding import continuations

KNOWN = {
    "subject": "Cusco",
    "attribute": "Peru",
    "template": "{} is a town in",
    "prompt": "Cusco is a town in the south of",
}
FACT = {"prompt": "In Rome, {subject} is", "subject": "Rome", "target_new": "x", "target_true": "Italian", "id": "r"}


def test_both_formats_are_read_also_from_one_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([KNOWN, FACT, {**FACT, "target_true": None}]))
    found = load_prompts(path)
    assert found == [
        Prompt("Cusco is a town in the south of", "Cusco", "Peru", 0),
        Prompt("In Rome, Rome is", "Rome", "Italian", 9, "r"),
        Prompt("In Rome, Rome is", "Rome", None, 9, "r"),
    ]
    assert load_prompts(path, 1) == found[:1]


def test_all_published_known_facts_can_be_asked() -> None:
    path = shared("data", "known_1000.json")
    for prompt in load_prompts(path):
        assert prompt.text[prompt.start :].startswith(prompt.subject)
        assert prompt.answer


def test_a_record_without_its_subject_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([{**KNOWN, "subject": "Lima"}]))
    with pytest.raises(DataFileError, match=r"record 1: .*Lima"):
        load_prompts(path)


def test_a_subject_is_found_or_refused() -> None:
    assert Prompt("The town of Rome", "Rome").start == 12
    with pytest.raises(ValueError, match="subject='Roma' is not in the prompt 'The town of Rome'; write it"):
        Prompt("The town of Rome", "Roma")
    with pytest.raises(ValueError, match="at character 3"):
        Prompt("The town of Rome", "Rome", start=3)
    with pytest.raises(ValueError, match="is blank"):
        Prompt("The town of Rome", " ")


def test_facts_become_prompts() -> None:
    assert Prompt.of(Fact("{} is in", "Rome", "Peru", target_true="Italy")) == Prompt("Rome is in", "Rome", "Italy")
    known = KnownFact("Rome is in the", "Rome", "south", "{} is in")
    assert Prompt.of(known) == Prompt("Rome is in the", "Rome", "south")


@pytest.mark.parametrize("chat", [False, True])
def test_the_tokens_of_a_subject_hold_it_and_no_more(chat: bool) -> None:
    lm = tiny("llama", bos=True, chat=chat)
    prompts = [Prompt("In Rome, Danielle Darrieux is", "Danielle Darrieux"), Prompt("Messi plays", "Messi")]
    for row in tokenize_prompts(lm, prompts):
        held = lm.tokenizer.decode([row.ids[index] for index in row.subject])
        assert held.strip() == row.prompt.subject
        assert list(row.reached) == list(range(row.subject.start, len(row.ids)))


def test_unusable_prompts_are_refused() -> None:
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match=r"prompts=\[\]"):
        tokenize_prompts(lm, [])
    with pytest.raises(ValueError, match="reads 256"):
        tokenize_prompts(lm, [Prompt("Rome is " * 200, "Rome")])


def test_a_prompt_is_known_if_the_model_gives_its_whole_answer() -> None:
    lm = tiny("llama")
    texts = ["The mother tongue of Danielle Darrieux is", "Rome is"]
    said = []
    for text in texts:
        (new,) = continuations(lm, [tuple(lm.tokenizer(text)["input_ids"])], [3])
        said.append(new)
    rows = tokenize_prompts(lm, [Prompt(texts[0], "Danielle Darrieux"), Prompt(texts[1], "Rome", "there")])
    whole, wrong_end = tuple(said[0][:2]), (said[0][0], said[0][1] + 1)
    answers = (whole, wrong_end, ())
    rows = [replace(rows[place > 1], index=place, answer=answer) for place, answer in enumerate(answers)]
    found = known_prompts(lm, rows)
    assert [(one.index, one.answer) for one in found] == [(0, (said[0][0],)), (2, (said[1][0],))]


def test_an_error_quotes_the_answers_of_a_model_that_knows_nothing() -> None:
    lm = tiny("llama")
    prompts = [Prompt("Rome is", "Rome", "a city in Italy"), Prompt("Messi plays", "Messi", "football in Rome")]
    said = greedy_answers(lm, [prompt.text for prompt in prompts])
    with pytest.raises(ValueError, match="knows none of the 2 facts") as caught:
        known_prompts(lm, tokenize_prompts(lm, prompts))
    for prompt, answer in zip(prompts, said, strict=True):
        assert f"{prompt.text!r} is answered {answer!r}, not {prompt.answer!r}" in str(caught.value)


def test_noise_follows_from_the_text_and_the_seed() -> None:
    lm = tiny("llama")
    one, other = tokenize_prompts(lm, [Prompt("Rome is", "Rome"), Prompt("Rome was", "Rome")])
    noise = Noise(2.0, samples=400, seed=3)
    drawn = noise.draw(one, 50)
    assert drawn.shape == (400, len(one.subject), 50)
    assert torch.equal(drawn, noise.draw(one, 50))
    assert float(drawn.std()) == pytest.approx(2.0, rel=0.05)
    assert abs(float(drawn.mean())) < 0.1
    for different in (noise.draw(other, 50), Noise(2.0, 400, 4).draw(one, 50)):
        assert not torch.equal(drawn, different)
    torch.testing.assert_close(Noise(4.0, 400, 3).draw(one, 50), 2 * drawn)


def test_the_spread_is_that_of_the_subjects_embeddings() -> None:
    lm = tiny("gpt2", bos=True)
    rows = tokenize_prompts(lm, [Prompt("In Rome", "Rome"), Prompt("The capital of France is", "France")])
    subjects = [row.ids[index] for row in rows for index in row.subject]
    table = lm.model.get_input_embeddings().weight[subjects].detach().double()
    assert embedding_spread(lm, rows) == pytest.approx(float(table.flatten().std()), rel=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [((0.0,), "corrupts nothing"), ((1.0, 0), "samples=0"), ((1.0, 1, -1), "seed=-1"), ((float("nan"),), "> 0")],
)
def test_noise_that_makes_no_sense_is_refused(given: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Noise(*given)  # type: ignore[arg-type]
