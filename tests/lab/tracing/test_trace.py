"""Traces against one forward pass of the whole model for each token and layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from benchmarks.plain_tracing import restored
from tests.lab.tracing.made import PROMPTS, known
from tests.models import NUM_LAYERS, tiny

from factpatch.lab.tracing import restoring
from factpatch.lab.tracing import trace as trace_module
from factpatch.lab.tracing.noise import Noise
from factpatch.lab.tracing.prompts import Prompt
from factpatch.lab.tracing.restoring import KINDS, Group, Restoration
from factpatch.lab.tracing.trace import Trace, positions, trace
from factpatch.model.hooks import first_tensor
from factpatch.model.language_model import LanguageModel

NOISE = Noise(0.6, samples=3, seed=1)
WINDOW = 3


def traced(lm: LanguageModel, kinds: Any = tuple(KINDS), noise: Noise = NOISE, **options: Any) -> list[Trace]:
    return list(trace(lm, known(lm), noise, kinds, WINDOW, **options))


# All three places of a subject on one family; where it begins the prompt and where it ends it on the others.
@pytest.mark.parametrize(
    ("family", "prompts", "window"),
    [
        ("llama", PROMPTS, WINDOW),
        ("gpt2", PROMPTS[::2], 1),
        ("gptj", PROMPTS[::2], NUM_LAYERS),
        ("gpt_neox", PROMPTS[::2], 1),
        ("opt", PROMPTS[::2], WINDOW),
    ],
)
def test_traces_equal_one_forward_pass_for_each_token_and_layer(
    family: str, prompts: Sequence[Prompt], window: int
) -> None:
    lm = tiny(family, bos=True, dtype=torch.float64)
    close = 1e-6 if family == "gptj" else 1e-9  # transformers keeps GPT-J's attention scores in float32
    width = lm.model.get_input_embeddings().weight.shape[1]
    asked_all = known(lm, prompts)
    for one, asked in zip(trace(lm, asked_all, NOISE, tuple(KINDS), window), asked_all, strict=True):
        given = lm, torch.tensor(asked.ids), asked.subject, NOISE.draw(asked, width), asked.answer[0]
        for kind in KINDS:
            expected = restored(*given, kind, window)
            torch.testing.assert_close(one.restored[kind], expected, rtol=close, atol=close)
            assert one.indirect_effect(kind).abs().max() > 100 * close


def test_in_a_chat_the_template_is_part_of_the_prompt() -> None:
    lm = tiny("llama", dtype=torch.float64, chat=True)
    for one, asked in zip(traced(lm, ("states",)), known(lm), strict=True):
        noise = NOISE.draw(asked, lm.d_value)
        expected = restored(lm, torch.tensor(asked.ids), asked.subject, noise, asked.answer[0], "states", WINDOW)
        torch.testing.assert_close(one.restored["states"], expected, rtol=1e-9, atol=1e-9)
        subject = "".join(one.tokens[one.subject.start : one.subject.stop])
        assert subject.strip() == one.prompt.subject


def test_restoring_the_last_state_gives_the_clean_probability_and_tokens_before_the_subject_change_nothing() -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    for one in traced(lm):
        assert float(one.restored["states"][-1, -1]) == pytest.approx(one.clean, rel=1e-9)
        assert one.total_effect == one.clean - one.corrupted
        for kind in KINDS:
            assert not one.indirect_effect(kind)[: one.subject.start].any()
        # After the last layer only the last token is read.
        assert one.indirect_effect("states")[:-1, -1].abs().max() < 1e-12


def test_without_layers_above_there_is_nothing_to_sever() -> None:
    lm = tiny("llama", dtype=torch.float64)
    for one in traced(lm):
        for kind in ("severed-mlp", "severed-attention"):
            torch.testing.assert_close(one.restored[kind][:, -1], one.restored["states"][:, -1])


def test_a_trace_does_not_depend_on_what_is_traced_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama", dtype=torch.float64)
    together = traced(lm)
    monkeypatch.setitem(trace_module.MOST_TOKENS, "cpu", 16)
    monkeypatch.setattr(restoring, "BUNDLE_TOKENS", 5)
    for one, other in zip(together, traced(lm), strict=True):
        same(one, other)


def test_a_group_that_does_not_fit_into_memory_runs_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama", dtype=torch.float64)
    together = traced(lm)
    probabilities, most = Group.probabilities, 10

    def limited(self: Group, *given: Any) -> Any:
        if len(self.runs) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return probabilities(self, *given)

    monkeypatch.setattr(Group, "probabilities", limited)
    for one, other in zip(together, traced(lm), strict=True):
        same(one, other)
    most = 0
    with pytest.raises(torch.cuda.OutOfMemoryError, match="a single fact"):
        traced(lm)


def same(one: Trace, other: Trace) -> None:
    assert replace(one, clean=0, corrupted=0, restored={}) == replace(other, clean=0, corrupted=0, restored={})
    assert (one.clean, one.corrupted) == pytest.approx((other.clean, other.corrupted), rel=1e-9)
    torch.testing.assert_close(one.restored, other.restored, rtol=1e-9, atol=1e-12)


def test_the_model_is_as_it_was_between_two_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trace_module.MOST_TOKENS, "cpu", 1)  # a batch for each prompt
    lm = tiny("llama")
    ids = torch.tensor([lm.tokenizer(PROMPTS[0].text)["input_ids"]])
    before = lm.model(input_ids=ids).logits
    traces = trace(lm, known(lm), NOISE)
    next(traces)
    assert torch.equal(lm.model(input_ids=ids).logits, before)
    assert lm.model.config._attn_implementation != "factpatch-packed"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


# What our attentions and our MLPs run of the tokens that the plain way runs through them, and how many fewer passes.
@pytest.mark.parametrize(
    ("kind", "attended", "transformed", "fewer"), [("states", 0.16, 0.12, 10), ("mlp", 0.24, 0.16, 7)]
)
def test_only_what_a_restoration_reaches_runs(kind: str, attended: float, transformed: float, fewer: int) -> None:
    lm = tiny("llama")
    asked = known(lm)
    with counted(lm) as ours:
        traced(lm, (kind,))
    with counted(lm) as plainly:
        for one in asked:
            noise = NOISE.draw(one, lm.d_value)
            restored(lm, torch.tensor(one.ids), one.subject, noise, one.answer[0], kind, WINDOW)
    assert ours["attention"] < attended * plainly["attention"]
    assert ours["mlp"] < transformed * plainly["mlp"]
    assert fewer * ours["passes"] < plainly["passes"]


@contextmanager
def counted(lm: LanguageModel) -> Iterator[dict[str, int]]:
    """Count the tokens that attentions and MLPs run, and forward passes."""
    count = {"attention": 0, "mlp": 0, "passes": 0}

    def tokens(site: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found = first_tensor(output)
            count[site] += found.numel() // found.shape[-1]

        return hook

    def passes(module: Any, args: Any) -> None:
        count["passes"] += 1

    handles = [
        getattr(lm, site)(layer).register_forward_hook(tokens(site))
        for site in ("attention", "mlp")
        for layer in range(lm.num_layers)
    ]
    handles.append(lm.model.base_model.register_forward_pre_hook(passes))
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def test_progress_counts_every_position_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trace_module.MOST_TOKENS, "cpu", 7)
    lm = tiny("llama")
    steps: list[int] = []
    traced(lm, ("states",), progress=steps.append)
    assert sum(steps) == positions(known(lm))


def test_unusable_settings_are_refused() -> None:
    lm = tiny("llama")
    asked = known(lm)
    with pytest.raises(ValueError, match=r"no such kind as 'mpl'. Did you mean 'mlp'\?"):
        trace(lm, asked, NOISE, ("mpl",))
    with pytest.raises(ValueError, match="'mlp' is named twice"):
        trace(lm, asked, NOISE, ("mlp", "mlp"))
    with pytest.raises(ValueError, match=r"kinds=\[\]"):
        trace(lm, asked, NOISE, ())
    with pytest.raises(ValueError, match=f"window=9: give a number of layers from 1 to {NUM_LAYERS}"):
        trace(lm, asked, NOISE, window=9)


def test_a_module_that_the_table_does_not_know_is_named() -> None:
    lm = tiny("llama")
    architecture = lm.architecture
    lm.architecture = replace(architecture, attention="attn")
    asked = known(lm)
    with pytest.raises(ValueError, match=r"model_type='llama'.*attention='attn'.*leave out the kinds.*attention"):
        trace(lm, asked, NOISE, ("states", "attention"))
    assert list(trace(lm, asked, NOISE, ("states", "mlp")))
    lm.architecture = replace(architecture, mlp="feed_forward")
    with pytest.raises(ValueError, match="mlp='feed_forward'"):
        trace(lm, asked, NOISE, ("states",))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_offloaded_model_is_traced_like_another(family: str) -> None:
    expected = traced(tiny(family, dtype=torch.float64))
    lm = tiny(family, dtype=torch.float64)
    asked = known(lm)
    cpu_offload(lm.model, execution_device=torch.device("cpu"))
    for one, other in zip(trace(lm, asked, NOISE, tuple(KINDS), WINDOW), expected, strict=True):
        same(one, other)


def test_a_restoration_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="name the layers whose outputs are given"):
        Restoration(2)


def test_a_broken_model_is_named() -> None:
    lm = tiny("llama")
    asked = known(lm)
    with torch.no_grad():
        lm.weight(2).fill_(torch.nan)
    with pytest.raises(ValueError, match="probabilities that are not finite after 'Danielle"):
        list(trace(lm, asked, NOISE))
