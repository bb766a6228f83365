"""The table of architectures against tiny random models, and against the published sizes on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, INNER, MORE_CONFIGS, NUM_LAYERS, WIDTH, WITH_IMAGES, tiny, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForSequenceClassification, pipeline

from factpatch.model.architectures import ARCHITECTURES, Architecture, architecture_of, register_architecture
from factpatch.model.hooks import captured, first_tensor
from factpatch.model.language_model import LanguageModel, editable_weights
from factpatch.model.loading import load_language_model

PUBLISHED: dict[str, tuple[dict[str, Any], int, int, int]] = {
    # name: config, layers, d_value, d_key
    "gpt2-xl": ({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25}, 48, 1600, 6400),
    "gpt-j-6b": (
        {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400},
        28,
        4096,
        16384,
    ),
    "llama-3-8b": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        32,
        4096,
        14336,
    ),
}


def test_every_family_is_tested() -> None:
    inside = {tiny_model(family).config.get_text_config().model_type for family in WITH_IMAGES}
    assert {*FAMILIES, *MORE_CONFIGS, *inside} == ARCHITECTURES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_is_seen_as_d_value_by_d_key(family: str) -> None:
    lm = tiny(family)
    assert lm.num_layers == NUM_LAYERS
    assert all(tuple(lm.weight(layer).shape) == (WIDTH, INNER) for layer in range(NUM_LAYERS))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_maps_keys_to_what_the_block_adds(family: str) -> None:
    """A shift Δ of the weight changes the block's output by exactly Δ k, which is what every solver assumes."""
    lm = tiny(family, dtype=torch.float64)
    ids = torch.tensor([[5, 17, 90, 33]])
    layer = 1

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        with (
            torch.no_grad(),
            captured(inputs={"k": lm.down_projection(layer)}, outputs={"h": lm.block(layer)}) as found,
        ):
            lm.body(input_ids=ids)
        return found["k"].reshape(4, -1), found["h"][0]

    keys, before = read()
    shift = torch.randn(WIDTH, INNER, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lm.weight(layer).add_(shift)
    _, after = read()
    torch.testing.assert_close(after - before, keys @ shift.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_return_what_the_table_says(family: str) -> None:
    lm = tiny(family)
    kinds: list[bool] = []
    handle = lm.block(2).register_forward_hook(lambda module, args, output: kinds.append(isinstance(output, tuple)))
    with torch.no_grad():
        lm.body(input_ids=torch.tensor([[1, 2, 3]]))
    handle.remove()
    assert kinds == [lm.architecture.returns_tuple]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_are_where_the_table_says(family: str) -> None:
    lm = tiny(family, dtype=torch.float64)
    modules = {"attention": lm.attention(1), "mlp": lm.mlp(1), "block": lm.block(1), "below": lm.block(0)}
    with torch.no_grad(), captured(outputs=modules) as found:
        lm.body(input_ids=torch.tensor([[5, 17, 90]]))
    added = found["attention"] + found["mlp"].reshape(found["attention"].shape)
    torch.testing.assert_close(first_tensor(found["below"]) + added, found["block"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_alone_gives_the_models_probabilities(family: str) -> None:
    lm = tiny(family, dtype=torch.float64)
    ids = torch.tensor([[5, 17, 90]])
    with torch.no_grad():
        whole = lm.model(input_ids=ids).logits.log_softmax(-1)
        torch.testing.assert_close(lm.log_probabilities(lm.body(input_ids=ids)), whole)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_names_shapes_and_orientation_of_the_table(name: str) -> None:
    config, layers, d_value, d_key = PUBLISHED[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    row = architecture_of(model.config)
    blocks = model.get_submodule(row.blocks)
    assert len(blocks) == layers
    weight = blocks[layers - 1].get_submodule(row.down_projection).weight
    assert tuple(weight.T.shape if row.transposed else weight.shape) == (d_value, d_key)
    assert blocks[0].get_submodule(row.attention) is not None
    assert blocks[0].get_submodule(row.mlp) is not None


def test_an_unknown_family_is_refused_with_what_has_to_be_known() -> None:
    with pytest.raises(ValueError, match=r"model_type='ctrl'.*These facts.*register_architecture"):
        architecture_of(AutoConfig.for_model("ctrl"))


def test_a_registered_family_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "ctrl", ARCHITECTURES["gpt2"])
    row = Architecture("ctrl", "transformer.h", "ffn.2", "ffn", "multi_head_attention")
    register_architecture(row)
    assert architecture_of(AutoConfig.for_model("ctrl")) is row


@pytest.mark.parametrize("setting", ["hidden_size_per_layer_input", "num_kv_shared_layers"])
def test_models_of_a_family_that_a_pass_from_the_middle_would_misread_are_refused(setting: str) -> None:
    settings = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, setting: 2}
    with pytest.raises(ValueError, match=f"model_type='gemma4_text' cannot be edited with {setting}=2: .* Choose a"):
        architecture_of(AutoConfig.for_model("gemma4_text", **settings))


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="has no weights"):
        LanguageModel(tiny_model("llama").to("meta"), tiny_tokenizer())


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("dbrx", "mixture of experts"),
        ("jetmoe", "mixture of experts"),
        ("mllama", "vision-language model"),
        ("paligemma", "vision-language model"),
        ("glm4v", "vision-language model"),
        ("qwen2_audio", "model of sound and text"),
        ("t5", "an encoder and a decoder"),
        ("mamba", "a state in place of attention"),
    ],
)
def test_kinds_that_no_row_can_describe_are_refused_without_an_invitation(family: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"model_type='{family}' cannot be edited: it.*{said}") as caught:
        architecture_of(AutoConfig.for_model(family))
    assert "register" not in str(caught.value)


def peft_model(*targets: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=list(targets))
    )


def with_an_adapter_inside() -> Any:
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


def with_a_compiled_block() -> Any:
    model = tiny_model("llama")
    model.model.layers[2] = torch.compile(model.model.layers[2], backend="eager")
    return model


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "an adapter": (lambda: peft_model("q_proj", "down_proj"), "a PEFT adapter.*model = model.merge_and_unload()"),
    "an adapter of attention": (lambda: peft_model("q_proj"), "a PEFT adapter.*model = model.merge_and_unload()"),
    "an adapter inside": (with_an_adapter_inside, "its module model.layers.0.self_attn.q_proj .* a PEFT adapter"),
    "compiled": (lambda: torch.compile(tiny_model("llama"), backend="eager"), "torch.compile. Give model._orig_mod"),
    "a compiled block": (with_a_compiled_block, "its module model.layers.2 .* Give model.model.layers.2._orig_mod"),
    "parallel": (lambda: torch.nn.DataParallel(tiny_model("llama")), "spread over devices. Give model.module"),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(tiny_model("llama")), "Give model.module"),
    "a pipeline": (
        lambda: pipeline("text-generation", model=tiny_model("llama"), tokenizer=tiny_tokenizer()),
        "a pipeline. Give model.model",
    ),
    "weights": (lambda: tiny_model("llama").state_dict(), "OrderedDict: it is no model of transformers"),
    "nothing": (lambda: None, "NoneType: it is no model of transformers"),
    "a module": (lambda: torch.nn.Linear(2, 2), "Linear: it is no model of transformers"),
    "a tokenizer": (tiny_tokenizer, "it is no model of transformers"),
    "a body": (lambda: tiny_model("llama").model, "LlamaModel: it has no model.layers.*AutoModelForCausalLM"),
    "GPT-2's body": (lambda: tiny_model("gpt2").transformer, "GPT2Model: it has no transformer.h"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_model_is_refused_with_what_to_give_for_editing_and_for_patching(kind: str) -> None:
    make, said = WRAPPED[kind]
    with pytest.raises(ValueError, match=said):
        load_language_model(make(), tiny_tokenizer())
    with pytest.raises(ValueError, match=said):
        editable_weights(make(), [0])


def test_what_was_inside_a_wrapper_is_taken() -> None:
    compiled = torch.compile(tiny_model("llama"), backend="eager")
    assert LanguageModel(compiled._orig_mod, tiny_tokenizer()).num_layers == NUM_LAYERS
    merged = peft_model("down_proj").merge_and_unload()
    assert LanguageModel(merged, tiny_tokenizer()).num_layers == NUM_LAYERS
    in_place = tiny_model("llama")
    in_place.compile(backend="eager")
    assert LanguageModel(in_place, tiny_tokenizer()).num_layers == NUM_LAYERS


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaForSequenceClassification: it has no head that gives the next token"):
        LanguageModel(LlamaForSequenceClassification(tiny_model("llama").config), tiny_tokenizer())


def test_an_absent_layer_is_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match=r"critical_layers=\[1, 9\]: layer 9 does not exist; .* layers 0 to 3"):
        tiny("gpt2").check_layers([1, 9])


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1]])
def test_layers_are_given_once_and_ascending(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="critical_layers"):
        tiny("gpt2").check_layers(layers)
