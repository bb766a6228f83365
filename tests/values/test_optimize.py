"""The batched value optimization against a plain one: one fact at a time, all layers, all tokens, PyTorch's Adam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, NUM_LAYERS, tiny
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from factpatch import Fact
from factpatch.model.hooks import first_tensor
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import packed_attention
from factpatch.model.precision import PRECISIONS, computing
from factpatch.strategies import AttentionAndMlp, HiddenState, Target
from factpatch.values import descent as module
from factpatch.values.descent import Descent, Loss
from factpatch.values.frozen import freeze
from factpatch.values.optimize import TargetValues, optimize_values
from factpatch.values.rows import optimization_rows

CONTEXTS = ("{}", "The tower in the city. {}", "Because of this. {}")
FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Fact("{} plays the sport of", "Messi", "basketball"),
    Fact("{}'s capital is", "Finland", "Rome, Italy"),
    Fact("In the large city called {}", "Tokyo", "they speak Finnish"),
    Fact("{}, the founder of Apple, works in", "Steve Jobs", "Vienna"),
)
TARGET = HiddenState(steps=6, learning_rate=0.3, clamp=0.8)
TWO_SITES = AttentionAndMlp(steps=6, learning_rate=0.3, clamp=0.8)
# Both have facts that stop at different evaluations.
EAGER = HiddenState(steps=12, learning_rate=0.5, clamp=8, stop_loss=6.0)
LEARNED = AttentionAndMlp(steps=12, learning_rate=0.5, clamp=8, stop_loss=6.0)


def plainly(lm: LanguageModel, fact: Fact, layer: int, target: Target, contexts: Sequence[str]) -> tuple[Tensor, int]:
    """The value and the number of evaluations for one fact, straight from the formula."""
    tokenizer, model, chat = lm.tokenizer, lm.model, lm.frame.chat
    wanted = tokenizer(fact.target_new if chat else " " + fact.target_new, add_special_tokens=False)["input_ids"]
    asked = [*(context.replace("{}", fact.text) for context in contexts), f"{fact.subject} is a"]
    ends = [*(context.index("{}") + fact.subject_end for context in contexts), len(fact.subject) - 1]
    texts = list(asked)
    if chat:
        turns = [[{"role": "user", "content": text}] for text in asked]
        texts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ends = [text.index(turn) + end for text, turn, end in zip(texts, asked, ends, strict=True)]
    texts[:-1] = [text + tokenizer.decode(wanted[:-1]) for text in texts[:-1]]

    def encode(text: str, **options: object) -> Any:
        return tokenizer(text, add_special_tokens=not chat, **options)

    def last_token(text: str, character: int) -> int:
        offsets = encode(text, return_offsets_mapping=True)["offset_mapping"]
        return max(i for i, (start, end) in enumerate(offsets) if start <= character < end)

    modules = [getattr(lm, site)(layer) for site in target.sites]
    deltas = [torch.zeros(lm.d_value, dtype=torch.float64, requires_grad=True) for _ in modules]
    optimizer = torch.optim.Adam(deltas, lr=target.learning_rate)
    original: dict[int, Tensor] = {}
    lengths: dict[int, list[Tensor]] = {index: [] for index in range(len(modules))}
    """Of the unshifted activation in one context after the other, and on the text of the KL."""
    reference: list[Tensor] = []

    def run(text: str, position: int) -> Tensor:
        def adder(index: int) -> Any:
            def add(module: object, args: object, output: object) -> object:
                hidden = first_tensor(output)
                rows = hidden.reshape(-1, hidden.shape[-1])
                original.setdefault(index, rows[position].detach().clone())
                if len(lengths[index]) <= len(contexts):
                    lengths[index].append(rows[position].detach().norm())
                changed = rows.clone()
                changed[position] = changed[position] + deltas[index]
                changed = changed.reshape(hidden.shape)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return add

        handles = [module.register_forward_hook(adder(index)) for index, module in enumerate(modules)]
        try:
            logits: Tensor = model(**encode(text, return_tensors="pt")).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits.log_softmax(-1)

    nll_weight, predictions = 1.0, 0
    for evaluation in range(1, target.steps + 1):
        losses, predicted = [], True
        for text, end in zip(texts[:-1], ends[:-1], strict=True):
            read = run(text, last_token(text, end))[-len(wanted) :]
            losses.append(-read[range(len(wanted)), wanted].mean())
            predicted = predicted and read.argmax(-1).tolist() == wanted
        position = last_token(texts[-1], ends[-1])
        present = run(texts[-1], position)[position]
        if not reference:
            reference.append(present.detach())
        kl = (present.exp() * (present - reference[0])).sum()
        usual = [min(found[: len(contexts) if target.shortest else 1]) for found in lengths.values()]
        decay = sum(delta.norm() / usual[index] ** 2 for index, delta in enumerate(deltas))
        loss = nll_weight * torch.stack(losses).mean() + target.kl_factor * kl + target.weight_decay * decay
        if loss < target.stop_loss or evaluation == target.steps:
            break
        if isinstance(target, AttentionAndMlp):
            nll_weight = target.learned_weight if predicted else 1.0
            if predicted and kl < target.stop_kl:
                break
        predictions += predicted
        if target.enough_predictions and predictions >= target.enough_predictions:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for index, delta in enumerate(deltas):
                largest = target.clamp * usual[index]
                if delta.norm() > largest:
                    delta.mul_(largest / delta.norm())
    return (original[len(deltas) - 1] + deltas[-1]).detach(), evaluation


def batched(
    lm: LanguageModel,
    target: Target = TARGET,
    facts: Sequence[Fact] = FACTS,
    tokens: int = 1024,
    layer: int = 1,
) -> TargetValues:
    return optimize_values(lm, facts, layer, target, CONTEXTS, tokens_at_once=tokens)


FLAGS = list(product((False, True), repeat=2))


# Every family with either target and with either value of both flags; every pair of flags with either target.
@pytest.mark.parametrize(
    ("target", "family", "bos", "chat"),
    [
        pytest.param(target, family, *FLAGS[place], id=f"{type(target).__name__}-{family}-{place}")
        for number, family in enumerate(FAMILIES)
        for target, place in ((TARGET, number % 4), (TWO_SITES, 3 - number % 4))
    ],
)
def test_batched_values_equal_one_fact_at_a_time(target: Target, family: str, bos: bool, chat: bool) -> None:
    lm = tiny(family, bos=bos, dtype=torch.float64, chat=chat)
    found = batched(lm, target)
    # Some families keep a float32 table or float32 attention scores inside a float64 model.
    tolerance = 1e-6
    for index, fact in enumerate(FACTS):
        expected, evaluations = plainly(lm, fact, 1, target, CONTEXTS)
        assert float((found.values[index] - expected).norm() / expected.norm()) < tolerance
        assert int(found.evaluations[index]) == evaluations


@pytest.mark.parametrize("layer", [0, NUM_LAYERS - 1])
@pytest.mark.parametrize("target", [TARGET, TWO_SITES], ids=lambda target: type(target).__name__)
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_the_first_and_the_last_layer_are_layers_like_others(family: str, target: Target, layer: int) -> None:
    lm = tiny(family, dtype=torch.float64)
    # At the last layer only a subject that ends the prompt has a gradient; Adam would blow up the rounding of others.
    facts = [FACTS[3], replace(FACTS[3], subject="Rome")]
    found = batched(lm, target, facts, layer=layer)
    for index, fact in enumerate(facts):
        expected, _ = plainly(lm, fact, layer, target, CONTEXTS)
        assert float((found.values[index] - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("target", [TARGET, TWO_SITES], ids=lambda target: type(target).__name__)
def test_the_shortest_activation_bounds_the_change_in_all_contexts(target: Target) -> None:
    lm = tiny("llama", dtype=torch.float64)
    bounded = replace(target, shortest=True, clamp=0.3)
    found, of_prompt = batched(lm, bounded), batched(lm, replace(bounded, shortest=False))
    for index, fact in enumerate(FACTS):
        expected, _ = plainly(lm, fact, 1, bounded, CONTEXTS)
        assert float((found.values[index] - expected).norm() / expected.norm()) < 1e-6
    assert bool((found.delta.norm(dim=1) < 0.99 * of_prompt.delta.norm(dim=1)).any())


@pytest.mark.parametrize("stop_kl", [0.5, 5.0])
def test_a_predicted_fact_leaves_the_lead_to_the_kl_and_stops_when_that_is_small(stop_kl: float) -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    lm.model.get_output_embeddings().weight.data.mul_(3)
    target = AttentionAndMlp(steps=40, learning_rate=0.2, clamp=10, stop_kl=stop_kl)
    pairs = (("Tokyo", "English"), ("Rome", "the"), ("Vienna", "Messi"), ("Paris", "was"))
    facts = [Fact("In the large city called {}", subject, new) for subject, new in pairs]
    found = batched(lm, target, facts)
    for index, fact in enumerate(facts):
        expected, evaluations = plainly(lm, fact, 1, target, CONTEXTS)
        assert int(found.evaluations[index]) == evaluations
        assert float((found.values[index] - expected).norm() / expected.norm()) < 1e-6
    early = found.evaluations < 40
    # Those that stop have a loss far above the stop: the KL decides.
    assert int(early.sum()) == (2 if stop_kl == 5.0 else 0)
    assert bool((found.loss[early] > 1.0).all())


def test_small_gradients_of_a_half_precision_model_are_not_lost() -> None:
    """Without scaling, most of a float16 gradient of this size is zero."""
    fine, coarse = tiny("llama"), tiny("llama", dtype=torch.float16)
    faint = HiddenState(steps=4, learning_rate=0.1, weight_decay=0.0, kl_factor=0.0)
    for lm in (fine, coarse):
        lm.model.get_output_embeddings().weight.data.mul_(3e-5)
    expected, found = batched(fine, faint), batched(coarse, faint)
    aligned = torch.nn.functional.cosine_similarity(found.delta, expected.delta)
    assert float(aligned.min()) > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_low_precision_models_are_near_those_in_float32(dtype: torch.dtype) -> None:
    expected, found = batched(tiny("llama")), batched(tiny("llama", dtype=dtype))
    assert found.values.dtype == torch.float32
    relative = (found.values - expected.values).norm(dim=1) / expected.values.norm(dim=1)
    assert float(relative.max()) < 0.25


def test_facts_that_stop_early_leave_the_others_unchanged() -> None:
    lm = tiny("llama", dtype=torch.float64)
    found = batched(lm, EAGER)
    counts = found.evaluations.tolist()
    assert len(set(counts)) > 2
    for index, fact in enumerate(FACTS):
        expected, evaluations = plainly(lm, fact, 1, EAGER, CONTEXTS)
        assert counts[index] == evaluations
        assert float((found.values[index] - expected).norm() / expected.norm()) < 1e-9
    assert found.updates.tolist() == [count - 1 for count in counts]
    stopped = found.evaluations < 12
    assert bool((found.loss[stopped] < 6.0).all())


def test_a_fact_stops_after_so_many_evaluations_in_which_all_tokens_lead_in_all_contexts() -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    lm.model.get_output_embeddings().weight.data.mul_(3)
    pairs = (("Rome", "the"), ("Vienna", "was"), ("Paris", "in the"))  # the last has a token that never leads
    facts = [Fact("In the large city called {}", subject, new) for subject, new in pairs]
    plain = HiddenState(steps=7, learning_rate=0.5, clamp=20, kl_factor=0.0, stop_loss=0.0)
    for count in (1, 2):
        target = replace(plain, enough_predictions=count)
        found = batched(lm, target, facts)
        expected = [plainly(lm, fact, 1, target, CONTEXTS) for fact in facts]
        assert found.evaluations.tolist() == [evaluations for _, evaluations in expected]
        torch.testing.assert_close(found.values, torch.stack([value for value, _ in expected]), rtol=1e-6, atol=1e-8)
        if count == 1:
            first = found.evaluations
            assert (first < 7).tolist() == [True, True, False]
    assert bool((found.evaluations[:2] > first[:2]).all())
    assert batched(lm, plain, facts).evaluations.tolist() == [7] * len(facts)


@pytest.mark.parametrize("every", [3, 100])
@pytest.mark.parametrize("target", [EAGER, LEARNED], ids=lambda target: type(target).__name__)
def test_how_often_one_looks_at_the_stops_changes_nothing_beyond_rounding(
    target: Target, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished fact stays in the batch until somebody looks, which changes the shapes of matrix products only."""
    lm = tiny("llama", dtype=torch.float64)
    expected = batched(lm, target)
    assert len(set(expected.evaluations.tolist())) > 1
    monkeypatch.setattr(module, "LOOK_EVERY", {"cpu": every})
    finished: list[int] = []
    found = optimize_values(lm, FACTS, 1, target, CONTEXTS, finished.append)
    assert sum(finished) == len(FACTS) * target.steps
    assert len(finished) <= target.steps // every + 1
    assert torch.equal(found.evaluations, expected.evaluations)
    for name in ("values", "delta", "loss"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "target", "precision"), [("llama", TARGET, "float32"), ("gptj", TWO_SITES, "fast")])
def test_a_step_reads_nothing_back_from_the_device(family: str, target: Target, precision: str) -> None:
    """Fake tensors have shapes and no contents: whatever asks for one fails, here as soon as one looks at the stops."""
    lm = tiny(family)
    rows = optimization_rows(lm, FACTS[:2], CONTEXTS)
    fake, precise = FakeTensorMode(allow_non_fake_inputs=True), computing(lm, PRECISIONS[precision])
    with fake, lm.quiet(), packed_attention(lm), precise as lm:
        present = torch.ones(2, len(target.sites), lm.d_value)
        descent = Descent(Loss(lm, freeze(lm, rows, 0, tokens=30), 1, target, present, present.norm(dim=-1), tokens=30))
        assert len(descent.loss.parts[0].groups) == 2
        descent.step()
        assert isinstance(descent.state.loss, FakeTensor)
        with pytest.raises(DataDependentOutputException):
            descent._look()


@pytest.mark.parametrize("tokens", [1, 7, 50])
def test_micro_batches_change_nothing_beyond_rounding(tokens: int) -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    torch.testing.assert_close(batched(lm, tokens=tokens).values, batched(lm).values, rtol=1e-10, atol=1e-12)


def test_the_order_of_facts_does_not_matter() -> None:
    lm = tiny("qwen3", dtype=torch.float64)
    reverse = batched(lm, facts=FACTS[::-1]).values.flip(0)
    torch.testing.assert_close(reverse, batched(lm).values, rtol=1e-10, atol=1e-12)


def test_values_stay_within_the_clamp() -> None:
    lm = tiny("llama", dtype=torch.float64)
    found = batched(lm, HiddenState(steps=8, learning_rate=5.0, clamp=0.3))
    start = found.values - found.delta
    ratio = found.delta.norm(dim=1) / start.norm(dim=1)
    assert float(ratio.max()) <= 0.3 * (1 + 1e-12)
    assert float(ratio.max()) > 0.299


def test_one_step_evaluates_and_does_not_move() -> None:
    found = batched(tiny("gpt2"), HiddenState(steps=1))
    assert not found.delta.any()
    assert found.evaluations.tolist() == [1] * len(FACTS)
    assert found.updates.tolist() == [0] * len(FACTS)


@pytest.mark.parametrize("target", [EAGER, LEARNED], ids=lambda target: type(target).__name__)
@pytest.mark.parametrize("turns", [1, 2])
def test_without_the_last_look_a_fact_ends_where_it_would_have_ended(target: Target, turns: int) -> None:
    lm = tiny("llama", dtype=torch.float64)
    target = replace(target, turns=turns)
    whole, short = batched(lm, target), batched(lm, replace(target, last_look=False))
    assert torch.equal(short.delta, whole.delta)
    assert torch.equal(short.values, whole.values)
    assert torch.equal(short.updates, whole.updates)
    ended = whole.evaluations == target.steps
    assert ended.any()
    assert torch.equal(short.evaluations, whole.evaluations - ended.long())


def test_the_model_is_left_as_it_was() -> None:
    lm = tiny("gptj")
    lm.model.train()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    batched(lm)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert lm.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())
    assert not any("forward" in block.__dict__ for block in lm.blocks)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in lm.blocks)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_that_is_not_finite_stops_with_the_layer(steps: int) -> None:
    lm = tiny("llama")
    lm.weight(3)[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="layer 1"):
        batched(lm, HiddenState(steps=steps))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": 1, "last_look": False}, {"learning_rate": -0.1}, {"clamp": 0.0}, {"kl_factor": -1.0}],
)
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HiddenState(**wrong)  # type: ignore[arg-type]
