"""Batched scores against a plain reading: one full forward pass for each prompt and target."""

import math

import pytest
import torch
from tests.models import FAMILIES, tiny, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from factpatch.evaluation.probabilities import Score, score
from factpatch.model import batching, tree
from factpatch.model.language_model import LanguageModel

REQUESTS = [
    ("The capital of France is", "Paris"),
    ("The capital of France is", "Rome"),
    ("The capital of France is", "the city of Rome in Italy"),
    # The beginning of the prompts above, and with its target the beginning of others.
    ("The capital of", "France"),
    ("The capital of", "France is Paris"),
    ("The", "capital"),
    # Of different lengths, with a character of several tokens, and a target in white space.
    ("What does the city of Zürich look like? In 1998, the twin city of Vienna was", "Köln"),
    ("Messi plays the sport of", "  basketball "),
    # Twice the same.
    ("The capital of France is", "Paris"),
]


def naive(lm, prompt, target):
    """One row, no padding, the head at every position; the target is what the prompt alone does not have."""
    alone = lm.tokenizer(prompt)["input_ids"]
    ids = lm.tokenizer(prompt + " " + target.strip())["input_ids"]
    assert ids[: len(alone)] == alone
    with torch.no_grad():
        logs = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
    rows = range(len(alone) - 1, len(ids) - 1)
    each = [logs[row, ids[row + 1]].item() for row in rows]
    matched = tuple(logs[row].argmax().item() == ids[row + 1] for row in rows)
    return Score(-sum(each) / len(each), math.exp(sum(each)), matched)


def naive_in_a_chat(lm, prompt, target):
    """One row: the tokens of the template, and the target alone after them."""
    turn = [{"role": "user", "content": prompt}]
    asked = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    said = lm.tokenizer(target.strip(), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logs = torch.log_softmax(lm.model(input_ids=torch.tensor([asked + said])).logits[0], dim=-1)[len(asked) - 1 :]
    each = [logs[row, token].item() for row, token in enumerate(said)]
    matched = tuple(logs[row].argmax().item() == token for row, token in enumerate(said))
    return Score(-sum(each) / len(each), math.exp(sum(each)), matched)


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=tolerance, rel=tolerance)
        assert one.probability == pytest.approx(other.probability, rel=max(tolerance, 1e-7))
        assert one.matched == other.matched


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_scores_equal_one_full_forward_each(family, bos):
    lm = tiny(family, bos=bos, dtype=torch.float64)
    # transformers keeps GPT-J's attention scores in float32.
    tolerance = 1e-5 if family == "gptj" else 1e-9
    assert_same(score(lm, REQUESTS), [naive(lm, *request) for request in REQUESTS], tolerance)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_scores_in_a_chat_equal_one_full_forward_of_the_template_each(family, bos):
    lm = tiny(family, bos=bos, dtype=torch.float64, chat=True)
    assert_same(score(lm, REQUESTS), [naive_in_a_chat(lm, *request) for request in REQUESTS], 1e-9)


@pytest.mark.parametrize("budget", [1, 12, 40])
def test_scores_do_not_depend_on_the_batches(budget, monkeypatch):
    lm = tiny("llama", dtype=torch.float64)
    expected = score(lm, REQUESTS)
    monkeypatch.setattr(tree, "TOKEN_BUDGET", budget)
    monkeypatch.setattr(batching, "HEAD_ENTRIES", 1)
    assert_same(score(lm, REQUESTS), expected, 1e-9)


def test_the_order_of_requests_does_not_matter():
    lm = tiny("gpt2", dtype=torch.float64)
    assert_same(score(lm, REQUESTS[::-1])[::-1], score(lm, REQUESTS), 1e-12)


def test_matched_tells_of_each_token_whether_it_is_the_most_probable():
    lm = tiny("llama", dtype=torch.float64)
    prompt, target = "The capital of France is", "Paris"
    ids = lm.tokenizer(f"{prompt} {target}")["input_ids"]
    count = len(ids) - len(lm.tokenizer(prompt)["input_ids"])
    assert count == len(set(ids[-count:])) == 3
    with torch.no_grad():
        head = lm.model.get_output_embeddings().weight.zero_()
        hidden = lm.body(input_ids=torch.tensor([ids]))[0, -count - 1 : -1]
        # By Cauchy-Schwarz each token now wins at its own position.
        head[ids[-count:]] = 10 * hidden / hidden.norm(dim=-1, keepdim=True)
        all_three = score(lm, [(prompt, target)])[0]
        head[ids[-1]] *= -1
        but_the_last = score(lm, [(prompt, target)])[0]
    assert (all_three.greedy, all_three.matched) == (True, (True, True, True))
    assert (but_the_last.greedy, but_the_last.matched) == (False, (True, True, False))


def test_one_row_serves_a_prompt_with_two_targets_of_one_token(monkeypatch):
    lm = tiny("gpt2")
    seen = []
    body = LanguageModel.body
    monkeypatch.setattr(
        LanguageModel, "body", lambda self, **inputs: seen.append(inputs["input_ids"].shape) or body(self, **inputs)
    )
    prompt = "The Eiffel Tower is a tower in the"
    score(lm, [(prompt, "city"), (prompt, "of"), ("The", "Eiffel")])
    assert seen == [(1, len(lm.tokenizer(prompt)["input_ids"]))]


def test_what_prompts_begin_with_is_run_once(monkeypatch):
    lm = tiny("gpt2")
    seen = []
    body = LanguageModel.body
    monkeypatch.setattr(
        LanguageModel, "body", lambda self, **inputs: seen.append(inputs["input_ids"].shape[1]) or body(self, **inputs)
    )
    shared, rest = "The Eiffel Tower is a tower in the", (" city of", " capital of", " large city of")
    score(lm, [(shared + end, "Paris") for end in rest] + [(shared, "city")])
    whole = [len(lm.tokenizer(f"{shared}{end} Paris")["input_ids"]) - 1 for end in rest]
    assert seen == [sum(whole) - 2 * len(lm.tokenizer(shared)["input_ids"])]


@pytest.mark.parametrize("budget", [1, 5, 7, 100])
def test_batches_hold_every_row_and_no_more_new_tokens_than_allowed(budget):
    rows = sorted({(1,), (1, 2), (1, 2, 3), (1, 3), (2,), (1, 2, 4), (1, 2, 4, 5, 6, 7)})
    found = list(tree.tree_batches(rows, budget))
    assert [row for batch in found for row in batch] == rows
    for batch in found:
        assert len(batch) == 1 or len({row[:end] for row in batch for end in range(1, len(row) + 1)}) <= budget


def crossing_tokenizer():
    """A tokenizer without pre-tokenization, whose token "w Y" reaches over the space between two words."""
    characters = sorted(set("New York is big"))
    vocabulary = {character: index for index, character in enumerate([*characters, "w ", "w Y"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("w", " "), ("w ", "Y")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="N")


def test_a_token_over_the_boundary_belongs_to_the_target():
    tokenizer = crossing_tokenizer()
    lm = LanguageModel(tiny_model("gpt2", dtype=torch.float64), tokenizer)
    ids = tokenizer("New York")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["N", "e", "w Y", "o", "r", "k"]
    found = score(lm, [("New", "York")])[0]
    logs = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0], -1)
    each = [logs[row, ids[row + 1]].item() for row in range(1, 5)]
    assert found.nll == pytest.approx(-sum(each) / 4, abs=1e-9)
    assert len(found.matched) == 4


def test_the_model_is_left_as_it_was():
    lm = tiny("llama")
    lm.model.train()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    score(lm, REQUESTS[:2])
    assert lm.model.training
    assert all(parameter.requires_grad for parameter in lm.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_progress_adds_up_to_the_number_of_requests():
    steps = []
    score(tiny("gpt2"), REQUESTS, steps.append)
    assert sum(steps) == len(REQUESTS)


def test_no_requests_give_no_scores():
    assert score(tiny("gpt2"), []) == []


def test_a_target_without_tokens_is_refused():
    with pytest.raises(ValueError, match="target='  ' has no tokens"):
        score(tiny("gpt2"), [("The", "  ")])


def test_a_target_that_nothing_precedes_is_refused():
    lm = LanguageModel(tiny_model("gpt2"), crossing_tokenizer())
    with pytest.raises(ValueError, match="nothing precedes the first token"):
        score(lm, [("w", "York")])
    # A begin token precedes everything.
    assert score(tiny("gpt2", bos=True), [("", "The")])[0].nll > 0


@pytest.mark.parametrize("target", ["東京", "Rome"])
def test_a_target_without_a_space_is_scored_after_the_tokens_of_the_prompt_alone(target):
    lm = tiny("gpt2", dtype=torch.float64)
    prompt = "日本的首都是"
    (found,) = score(lm, [(prompt, target)])
    asked, answer = (lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, target))
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*asked, *answer]])).logits[0].log_softmax(-1)
    nll = [-float(logits[len(asked) - 1 + place, token]) for place, token in enumerate(answer)]
    assert found.nll == pytest.approx(sum(nll) / len(nll), abs=1e-9)


def test_white_space_at_the_end_of_a_prompt_does_not_count():
    lm = tiny("gpt2", dtype=torch.float64)
    assert score(lm, [("The capital is ", "Rome")]) == score(lm, [("The capital is", " Rome")])
