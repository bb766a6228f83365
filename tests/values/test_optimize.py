"""The batched value optimization against a plain one: one fact at a time, all layers, all tokens, PyTorch's Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, tiny
from torch import Tensor

from factpatch import Fact
from factpatch.model.hooks import first_tensor
from factpatch.model.language_model import LanguageModel
from factpatch.strategies import HiddenState
from factpatch.values.optimize import TargetValues, optimize_values

CONTEXTS = ("{}", "The tower in the city. {}", "Because of this. {}")
FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Fact("{} plays the sport of", "Messi", "basketball"),
    Fact("{}'s capital is", "Finland", "Rome, Italy"),
    Fact("In the large city called {}", "Tokyo", "they speak Finnish"),
    Fact("{}, the founder of Apple, works in", "Steve Jobs", "Vienna"),
)
TARGET = HiddenState(steps=6, learning_rate=0.3, clamp=0.8)


def plainly(
    lm: LanguageModel, fact: Fact, layer: int, target: HiddenState, contexts: Sequence[str]
) -> tuple[Tensor, int]:
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

    delta = torch.zeros(lm.d_value, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=target.learning_rate)
    original: list[Tensor] = []
    reference: list[Tensor] = []

    def run(text: str, position: int) -> Tensor:
        def add(module: object, args: object, output: object) -> object:
            hidden = first_tensor(output)
            if not original:
                original.append(hidden[0, position].detach().clone())
            changed = hidden.clone()
            changed[0, position] = changed[0, position] + delta
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = lm.block(layer).register_forward_hook(add)
        try:
            logits: Tensor = model(**encode(text, return_tensors="pt")).logits[0]
        finally:
            handle.remove()
        return logits.log_softmax(-1)

    for evaluation in range(1, target.steps + 1):
        losses = []
        for text, end in zip(texts[:-1], ends[:-1], strict=True):
            read = run(text, last_token(text, end))[-len(wanted) :]
            losses.append(-read[range(len(wanted)), wanted].mean())
        position = last_token(texts[-1], ends[-1])
        present = run(texts[-1], position)[position]
        if not reference:
            reference.append(present.detach())
        kl = (present.exp() * (present - reference[0])).sum()
        start = original[0]
        loss = (
            torch.stack(losses).mean() + target.kl_factor * kl + target.weight_decay * delta.norm() / start.norm() ** 2
        )
        if loss < target.stop_loss or evaluation == target.steps:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            largest = target.clamp * start.norm()
            if delta.norm() > largest:
                delta.mul_(largest / delta.norm())
    return (original[0] + delta).detach(), evaluation


def batched(
    lm: LanguageModel, target: HiddenState = TARGET, facts: Sequence[Fact] = FACTS, tokens: int = 1024
) -> TargetValues:
    return optimize_values(lm, facts, 1, target, CONTEXTS, tokens_at_once=tokens)


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("bos", [False, True], ids=["bare", "bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_values_equal_one_fact_at_a_time(family: str, bos: bool, chat: bool) -> None:
    lm = tiny(family, bos=bos, dtype=torch.float64, chat=chat)
    found = batched(lm)
    # Some families keep a float32 table or float32 attention scores inside a float64 model.
    tolerance = 1e-6
    for index, fact in enumerate(FACTS):
        expected, evaluations = plainly(lm, fact, 1, TARGET, CONTEXTS)
        assert float((found.values[index] - expected).norm() / expected.norm()) < tolerance
        assert int(found.evaluations[index]) == evaluations


def test_facts_that_stop_early_leave_the_others_unchanged() -> None:
    lm = tiny("llama", dtype=torch.float64)
    eager = HiddenState(steps=12, learning_rate=0.5, clamp=8, stop_loss=6.0)
    found = batched(lm, eager)
    counts = found.evaluations.tolist()
    assert len(set(counts)) > 2
    for index, fact in enumerate(FACTS):
        expected, evaluations = plainly(lm, fact, 1, eager, CONTEXTS)
        assert counts[index] == evaluations
        assert float((found.values[index] - expected).norm() / expected.norm()) < 1e-9
    assert found.updates.tolist() == [count - 1 for count in counts]
    stopped = found.evaluations < 12
    assert bool((found.loss[stopped] < 6.0).all())


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


def test_a_loss_that_is_not_finite_stops_with_the_layer() -> None:
    lm = tiny("llama")
    lm.weight(3)[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="layer 1"):
        batched(lm)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": -0.1}, {"clamp": 0.0}, {"kl_factor": -1.0}])
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HiddenState(**wrong)  # type: ignore[arg-type]
