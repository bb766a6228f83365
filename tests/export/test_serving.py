"""The commands that serve an export: filled in for the shell, or what an engine does not take and what to do."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.export.test_lora import low_rank_patch
from tests.models import FAMILIES, tiny_model

from factpatch.cli.export import Format
from factpatch.export.factors import LowRankFactors
from factpatch.export.serving import ENGINES, Served, commands, layers_of, modelfile


def served(ranks: dict[int, int], family: str = "llama", **fields: Any) -> Served:
    patch = low_rank_patch(ranks, family)
    return replace(Served("peft", Path("out"), "someone/base", patch.config, patch.factors()), **fields)


def lines(what: Served) -> dict[str, list[str]]:
    return dict(commands(what))


def wide(rank: int) -> LowRankFactors:
    """Factors of one layer with singular values 1, of which 4 are larger."""
    singular = torch.ones(rank, dtype=torch.float64)
    singular[:4] = 100.0
    vectors = torch.eye(rank, dtype=torch.float64)
    return LowRankFactors({1: (vectors, singular, vectors)}, {1: rank}, {1: rank}, torch.float32)


@pytest.mark.parametrize(
    ("rank", "limit"), [(1, 1), (2, 8), (8, 8), (9, 16), (17, 32), (65, 128), (257, 320), (512, 512)]
)
def test_vllm_is_started_for_the_smallest_rank_that_suffices(rank: int, limit: int) -> None:
    (command, about) = lines(served({1: 1}, factors=wide(rank)))["vLLM"]
    assert command == f"vllm serve someone/base --enable-lora --max-lora-rank {limit} --lora-modules edited=out"
    assert about == "(ask for the model edited)"


def test_a_rank_beyond_the_limit_is_said_with_three_ways_and_their_error() -> None:
    factors = wide(600)
    (said,) = lines(served({1: 1}, factors=factors))["vLLM"]
    # Of 40 596 in all squares, 88 are left out.
    error = (88 / 40596) ** 0.5
    assert factors.largest_error(512) == pytest.approx(error)
    assert said == (
        f"takes rank 512 at most, and this adapter has rank 600. Export it with --rank 512 (relative error "
        f"{100 * error:.2g} %) or --energy 0.9978, or merge the edit: --to safetensors"
    )
    # What is proposed does what is said of it.
    assert factors.energy(512) == 0.9978
    squares = factors.parts[1][1].square().cumsum(0)
    assert 1 < int(torch.searchsorted(squares, 0.9978 * squares[-1])) + 1 <= 512


def test_engines_that_take_no_adapters_for_a_family_say_so() -> None:
    for family in FAMILIES:
        (first, *_) = lines(served({1: 1}, family))["vLLM"]
        takes = family in ("llama", "mistral", "qwen2", "qwen3", "phi3", "opt")
        assert first.startswith("vllm serve") is takes
        if not takes:
            assert first == f"takes no adapters for models of type {family}; merge the edit: --to safetensors"


def test_tgi_needs_every_layer_of_every_family() -> None:
    for family in FAMILIES:
        few = served({1: 1, 2: 3}, family)
        assert lines(few)["TGI"] == [
            "ignores an adapter silently if it lacks some of the model's layers, and this one has 2 of 4. "
            "Export it with --every-layer, which adds zeros"
        ]
        assert few.factors is not None
        every = few.factors.with_every_layer(layers_of(few.config))
        (command, about) = lines(replace(few, factors=every))["TGI"]
        assert command == "text-generation-launcher --model-id someone/base --lora-adapters edited=out"
        assert about == '(ask with "adapter_id": "edited")'


def test_zeros_for_other_layers_change_nothing_in_the_edited_ones() -> None:
    factors = low_rank_patch({1: 1, 2: 3}, "gpt2").factors()
    every = factors.with_every_layer(4)
    assert every.ranks == {0: 1, 1: 1, 2: 3, 3: 1}
    for layer in range(4):
        assert every.up(layer).shape == (32, 3)
        assert every.down(layer).shape == (3, 64)
        if layer in factors.ranks:
            assert torch.equal(every.up(layer), factors.up(layer))
            assert torch.equal(every.down(layer), factors.down(layer))
        else:
            assert not every.up(layer).any()
            assert not every.down(layer).any()
    assert every.largest_error() == 0


def test_paths_are_quoted_for_the_shell_and_for_python() -> None:
    odd = Path("my models/it's; rm -rf ~")
    for what in (
        served({1: 1}, out=odd, base=str(odd)),
        served({1: 1}, format="gguf-lora", out=odd, base=str(odd), modelfile=odd),
        served({1: 1}, format="gguf", out=odd, factors=None, modelfile=odd),
        served({1: 1}, format="safetensors", out=odd, factors=None),
    ):
        for name, (command, *_) in lines(what).items():
            if name in ("vLLM", "llama.cpp", "Ollama"):
                words = shlex.split(command)
                assert {str(odd), f"edited={odd}"} & set(words), command
                assert not {"rm", "-rf", "it's"} & set(words)
            elif name in ("peft", "transformers"):
                assert repr(str(odd)) in command


def test_every_format_of_the_command_has_engines() -> None:
    assert {engine.format for engine in ENGINES} == {*get_args(Format), "changed"}


def test_a_modelfile_names_the_base_and_the_adapter_beside_it() -> None:
    assert modelfile(Path("some/where/lora.gguf"), "llama3.2:1b") == "FROM llama3.2:1b\nADAPTER ./lora.gguf\n"
    assert modelfile(Path("some/where/merged.gguf"), None) == "FROM ./merged.gguf\n"


def test_the_number_of_layers_is_known_of_every_family() -> None:
    assert {layers_of(tiny_model(family).config.to_dict()) for family in FAMILIES} == {4}
