"""Models whose weights accelerate keeps elsewhere: split by a device map, offloaded to memory, partly on disk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from tests.editors import CONTEXTS, FACTS, LAYERS, QUICK, second_moments
from tests.models import FAMILIES, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from factpatch import METHODS, Editor, Patch
from factpatch.evaluation.verify import read_facts
from factpatch.model.architectures import architecture_of


def edited(model: Any, method: str = "memit-blue", precision: str | None = None) -> tuple[Editor, Patch]:
    editor = Editor(
        model,
        tiny_tokenizer(),
        method=METHODS[method],
        settings={**QUICK, "solver.weight": 5.0},
        critical_layers=LAYERS,
        contexts=CONTEXTS,
        second_moments=second_moments(),
        precision=precision,
    )
    return editor, editor.edit(FACTS)


def split(model: Any, place_of_block: Any) -> dict[str, str]:
    """A device map with a place for every block, and the rest of the model on the CPU."""
    blocks = architecture_of(model.config).blocks
    places: dict[str, str] = {}

    def walk(prefix: str, module: Any) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path == blocks:
                places.update({f"{path}.{index}": place_of_block(index) for index in range(len(child))})
            elif blocks.startswith(f"{path}."):
                walk(f"{path}.", child)
            else:
                places[path] = "cpu"

    walk("", model)
    return places


def same(model: Any, state: dict[str, Any]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_offloaded_model_is_edited_asked_undone_and_saved_like_another(family: str, tmp_path: Any) -> None:
    plain, expected = edited(tiny_model(family))
    model = tiny_model(family)
    cpu_offload(model, execution_device=torch.device("cpu"))
    editor, patch = edited(model)
    assert patch.batches[0].after == expected.batches[0].after
    assert read_facts(editor.lm, FACTS) == read_facts(plain.lm, FACTS)
    editor.save_pretrained(tmp_path / "model")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), plain.model.state_dict())
    editor.undo()
    patch.apply(model)
    patch.remove(model, base=tiny_model(family))


@pytest.mark.parametrize("precision", ["exact", "float32", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_wherever_weights_are_they_are_computed_with_in_the_precision_asked_for(
    family: str, dtype: torch.dtype, precision: str, tmp_path: Any
) -> None:
    _, expected = edited(tiny_model(family, dtype=dtype), precision=precision)
    offloaded, partly, in_two = (tiny_model(family, dtype=dtype) for _ in range(3))
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    places = split(partly, lambda index: "cpu" if index in LAYERS else "disk")
    dispatch_model(partly, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    dispatch_model(in_two, split(in_two, lambda index: "cpu"), force_hooks=True)
    for model in (offloaded, partly, in_two):
        before = {name: dict(module.__dict__) for name, module in model.named_modules()}
        _, patch = edited(model, precision=precision)
        assert patch.batches[0].after == expected.batches[0].after
        for name, module in model.named_modules():
            for method in ("forward", "_old_forward"):
                assert module.__dict__.get(method) is before[name].get(method)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_a_model_split_in_two_is_edited_like_another(family: str, tmp_path: Any) -> None:
    """Every block runs under accelerate's hooks, as on two devices."""
    _, expected = edited(tiny_model(family))
    tiny_model(family).save_pretrained(tmp_path / "base")
    places = split(tiny_model(family), lambda index: "cpu")
    model = dispatch_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), places, force_hooks=True)
    editor, patch = edited(model)
    assert patch.batches[0].after == expected.batches[0].after
    editor.undo()
    assert same(tiny_model(family), dict(model.state_dict()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_blocks_on_disk_are_read_but_not_edited(family: str, tmp_path: Any) -> None:
    plain, expected = edited(tiny_model(family))
    model = tiny_model(family)
    places = split(model, lambda index: "cpu" if index in LAYERS else "disk")
    editor, patch = edited(dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True))
    assert patch.batches[0].after == expected.batches[0].after
    editor.save_pretrained(tmp_path / "model")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), plain.model.state_dict())
    model = tiny_model(family)
    places = split(model, lambda index: "disk" if index == LAYERS[0] else "cpu")
    dispatched = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "other", force_hooks=True)
    with pytest.raises(ValueError, match="offloaded to disk"):
        edited(dispatched)
