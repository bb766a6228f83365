"""Every other family of the table, with one test each: read, edit, undo, and take the edit away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import MORE_CONFIGS, SENTENCES, WIDTH, WITH_IMAGES, tiny_model, tiny_tokenizer
from torch import Tensor

from factpatch import Editor, Fact, Patch
from factpatch.model.experts import token_rows
from factpatch.model.gguf_names import gguf_names
from factpatch.model.hooks import captured, first_tensor
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, Pool, packed_attention, run_packed
from factpatch.model.weights import matrix_shape
from factpatch.patch.history import total_shifts

LAYERS = (1, 2)
# The subject ends the prompt: attention of random weights carries nothing from one token to another.
FACTS = (Fact("In the large city called {}", "Tokyo", "city"), Fact("People speak of {}", "Messi", "capital"))
CLOSE = {"rtol": 0.0, "atol": 2e-4}
"""Float32 on logits of up to 20, in another order of summation."""


def editor_of(family: str) -> Editor:
    lm = LanguageModel(tiny_model(family), tiny_tokenizer())
    return Editor(
        lm.model,
        lm.tokenizer,
        method="memit-blue",
        critical_layers=LAYERS,
        contexts=("{}", "The tower in the city. {}"),
        second_moments={layer: unit_moment(lm, layer) for layer in LAYERS},
        settings={"target.steps": 8, "target.learning_rate": 0.5, "target.clamp": 4, "solver.weight": 0.01},
    )


def unit_moment(lm: LanguageModel, layer: int) -> Tensor:
    one = torch.eye(lm.key_width(layer), dtype=torch.float64)
    return one.expand(lm.experts(layer), -1, -1) if lm.experts(layer) else one


def logits(model: Any, text: str = SENTENCES[0]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**tiny_tokenizer()(text, return_tensors="pt", return_token_type_ids=False)).logits[0]
    return found


def nll(model: Any, fact: Fact) -> float:
    """Of the new object's tokens, in nats, by the model alone."""
    tokenizer = tiny_tokenizer()
    prompt, target = tokenizer(fact.text)["input_ids"], tokenizer(f" {fact.target_new}")["input_ids"]
    said = logits(model, f"{fact.text} {fact.target_new}").log_softmax(-1)
    return -float(sum(said[len(prompt) + place - 1, token] for place, token in enumerate(target)))


def check_reading(lm: LanguageModel) -> None:
    """Rows with a prefix, run whole and from the middle, read what the model reads of each text, and so does its head.

    A shift of the edited weight moves what the MLP puts out by Δ k, and the block by as much unless the table says so.
    """
    first, second = [5, 17, 90, 33], [7, 8, 9, 7, 8, 30]
    modules = {"key": lm.down_projection(1), "mlp": lm.mlp(1), "block": lm.block(1)}

    def read() -> dict[str, Tensor]:
        with captured(
            inputs={"key": modules["key"]}, outputs={"mlp": modules["mlp"], "block": modules["block"]}
        ) as found:
            lm.body(input_ids=torch.tensor([first]))
        keys = token_rows(found.pop("key"))[torch.arange(len(first))]
        return {"key": keys, **{name: first_tensor(value).reshape(len(first), -1) for name, value in found.items()}}

    with torch.no_grad(), lm.quiet():
        whole = [lm.body(input_ids=torch.tensor([ids]))[0] for ids in (first, second)]
        said = lm.model(input_ids=torch.tensor([first])).logits[0]
        torch.testing.assert_close(lm.log_probabilities(whole[0]), said.log_softmax(-1), **CLOSE)
        with packed_attention(lm):
            begun = Packing([PackedRow(2), PackedRow(3)], lm.stream_dtype, lm.device)
            _, pool = run_packed(lm, begun, Pool(), ids=torch.tensor(first[:2] + second[:3]), collect=True)
            ends = Packing([PackedRow(2, (0, 1)), PackedRow(3, (2, 3, 4))], lm.stream_dtype, lm.device)
            with captured(outputs={0: lm.block(1)}) as found:
                last, _ = run_packed(lm, ends, pool, ids=torch.tensor(first[2:] + second[3:]))
            middle, _ = run_packed(lm, ends, pool.above(1), hidden=found[0].reshape(5, -1), start=1)
        for packed in (last, middle):
            torch.testing.assert_close(packed, torch.cat([whole[0][2:], whole[1][3:]]), **CLOSE)
        before = read()
        weight, kept = lm.weight(1), lm.weight(1).clone()
        shift = torch.randn(matrix_shape(weight), generator=torch.Generator().manual_seed(0))
        weight.add_(shift.view(weight.shape))
        after = read()
        weight.copy_(kept)
        moved = before["key"] @ shift.T
        torch.testing.assert_close(after["mlp"] - before["mlp"], moved, **CLOSE)
        direct = torch.allclose(after["block"] - before["block"], moved, **CLOSE)
        assert direct == (lm.architecture.between is None)


@pytest.mark.parametrize("family", [*MORE_CONFIGS, *WITH_IMAGES])
def test_a_family_is_read_edited_undone_and_exported(family: str, tmp_path: Path) -> None:
    editor = editor_of(family)
    check_reading(editor.lm)
    original = {name: value.clone() for name, value in editor.model.state_dict().items()}
    before = [nll(editor.model, fact) for fact in FACTS]
    patch = editor.edit(FACTS)
    assert all(nll(editor.model, fact) < then - 0.5 for fact, then in zip(FACTS, before, strict=True))
    expected = logits(editor.model)

    patch.save(tmp_path / "p.safetensors")
    fresh = tiny_model(family)
    Patch.load(tmp_path / "p.safetensors").apply(fresh)
    assert all(torch.equal(value, editor.model.state_dict()[name]) for name, value in fresh.state_dict().items())
    editor.undo()
    assert all(torch.equal(value, original[name]) for name, value in editor.model.state_dict().items())
    assert float((logits(editor.model) - expected).abs().max()) > 0.01
    check_adapters(patch, editor, expected, tmp_path)


def check_adapters(patch: Patch, editor: Editor, expected: Tensor, directory: Path) -> None:
    """The adapter for peft makes the unedited model the edited one; that for llama.cpp holds the same shifts."""
    row = editor.lm.architecture
    if row.gguf is not None:
        from gguf import GGUFReader

        patch.to_gguf_lora(directory / "lora.gguf")
        held = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(directory / "lora.gguf").tensors}
        names, shifts = gguf_names(patch.config, LAYERS), total_shifts(patch.batches)
        for layer, name in names.items():
            product = held[f"{name}.lora_b"] @ held[f"{name}.lora_a"]
            if product.dim() == 3:  # of experts, in llama.cpp's order
                product = product.transpose(0, 1).flatten(1)
            torch.testing.assert_close(product, shifts[layer].matrix().float(), rtol=0.0, atol=1e-5)
            assert len(product) == WIDTH
    peft = pytest.importorskip("peft")
    patch.to_lora(directory / "lora")
    adapted = peft.PeftModel.from_pretrained(editor.model, str(directory / "lora")).eval()
    torch.testing.assert_close(logits(adapted), expected, **CLOSE)
