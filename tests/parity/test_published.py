"""Equality with what the published implementation computed, in float64 on a CPU. Never loosen a tolerance here.

The fixtures hold the facts, the contexts, three tiny models with their tokenizer, and the published code's value
vectors, keys and shifts. The published code rounds the shifts of MEMIT (not of AlphaEdit) to float32 when it writes a
layer, and everything after sees the rounded weight; `written_dtype` does the same here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import shared
from transformers import AutoModelForCausalLM, AutoTokenizer

from factpatch import METHODS, Editor, Fact
from factpatch.model.embedded import EmbeddedModelUnavailable
from factpatch.model.language_model import LanguageModel
from factpatch.strategies import HiddenState
from factpatch.values.optimize import optimize_values
from factpatch.values.reading import SubjectRows, read_keys

TOLERANCE = 1e-6
ARCHITECTURES = ("gpt2", "gptj", "llama")
LAYERS = (1, 2, 3)
VALUE = HiddenState(learning_rate=0.1, steps=25, clamp=0.75)
RIDGE = {"target.learning_rate": 0.1, "solver.weight": 50}
NULL_SPACE = {"target.learning_rate": 0.1, "solver.threshold": 0.03, "solver.l2": 1}
ROWS: dict[str, tuple[str, dict[str, float], str | None, tuple[int, ...]]] = {
    # fixture row: method, settings, what a shift is rounded to, sizes of the batches
    "memit": ("memit", RIDGE, "float32", (4,)),
    "memit-blue": ("memit-blue", RIDGE, "float32", (4,)),
    "memit-sequential": ("memit", RIDGE, "float32", (2, 2)),
    "memit-sequential-blue": ("memit-blue", RIDGE, "float32", (2, 2)),
    "rect": ("rect", RIDGE, "float32", (4,)),
    "rect-blue": ("rect-blue", RIDGE, "float32", (4,)),
    "pmet": ("pmet", RIDGE, "float32", (4,)),
    "pmet-blue": ("pmet-blue", RIDGE, "float32", (4,)),
    "alphaedit-sequential": ("alphaedit", NULL_SPACE, None, (2, 2)),
    "alphaedit-sequential-blue": ("alphaedit-blue", NULL_SPACE, None, (2, 2)),
}


@lru_cache
def requests() -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    document = json.loads(shared("parity", "requests.json").read_text())
    facts = tuple(Fact(fact["prompt"], fact["subject"], fact["target"]) for fact in document["facts"])
    return facts, tuple(document["contexts"])


@lru_cache
def reference(name: str) -> dict[str, torch.Tensor]:
    return load_file(shared("parity", name, "reference.safetensors"))


def fixture_model(name: str) -> LanguageModel:
    directory = shared("parity", name)
    # The checkpoint is read in float32 and then widened: some families keep float32 tables inside.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).double()
    return LanguageModel(model, AutoTokenizer.from_pretrained(directory))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("layer", [1, 3])
def test_values_and_keys_equal_the_published_ones(architecture: str, layer: int) -> None:
    (facts, contexts), expected = requests(), reference(architecture)
    lm = fixture_model(architecture)
    found = optimize_values(lm, facts, layer, VALUE, contexts)
    assert error(found.values, expected[f"value.{layer}"]) < TOLERANCE
    assert error(found.delta, expected[f"delta.{layer}"]) < TOLERANCE
    keys = read_keys(lm, SubjectRows.of(lm, facts, contexts), layer)
    assert error(keys, expected[f"keys.{layer}"]) < TOLERANCE


@pytest.mark.parametrize("layer", [1, 3])
def test_long_unclamped_optimization_equals_the_published_one(architecture: str, layer: int) -> None:
    facts, contexts = requests()
    target = HiddenState(learning_rate=0.5, steps=120, clamp=6)
    found = optimize_values(fixture_model(architecture), facts, layer, target, contexts)
    assert error(found.values, reference(architecture)[f"stop/value.{layer}"]) < TOLERANCE
    assert found.evaluations.tolist() == [120] * len(facts)


@pytest.mark.parametrize("row", ROWS)
def test_shifts_equal_the_published_ones(architecture: str, row: str) -> None:
    (facts, contexts), expected = requests(), reference(architecture)
    method, settings, written, sizes = ROWS[row]
    lm = fixture_model(architecture)
    editor = Editor(
        lm,
        method=METHODS[method],  # no preset's numbers
        critical_layers=LAYERS,
        settings=settings,
        contexts=contexts,
        second_moments=dict.fromkeys(LAYERS, expected["cov"]),
        written_dtype=written,
    )
    original = {layer: lm.weight(layer).clone() for layer in LAYERS}
    for batch in split(facts, sizes):
        editor.edit(batch)
    compared = 0
    for layer in LAYERS:
        shift = lm.weight(layer) - original[layer]
        if f"{row}/shift.{layer}" in expected:
            stored = expected[f"{row}/shift.{layer}"]
            assert error(shift, stored.T if lm.architecture.transposed else stored) < TOLERANCE
            compared += 1
        else:
            assert not shift.any()
    assert compared == (2 if "blue" in row else 3)


def test_null_space_equals_the_published_projector(architecture: str) -> None:
    from factpatch import NullSpace

    expected = reference(architecture)
    basis = NullSpace(threshold=0.03).prepare(expected["cov"]).basis
    assert basis is not None
    assert error(basis @ basis.T, expected["alphaedit/projector"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("layer", [4, pytest.param(8, marks=pytest.mark.long)])
def test_values_keys_and_early_stops_on_the_embedded_model_equal_the_published_ones(layer: int) -> None:
    from factpatch.model.loading import load_language_model

    (facts, contexts), expected = requests(), reference("smollm2")
    try:
        lm = load_language_model("smollm2-135m", dtype="float64")
    except EmbeddedModelUnavailable as error_:
        pytest.skip(f"the embedded model cannot be had: {error_}")
    found = optimize_values(lm, facts, layer, HiddenState(learning_rate=0.5, steps=25, clamp=0.75), contexts)
    assert found.evaluations.tolist() == expected[f"evaluations.{layer}"].tolist()
    assert error(found.values, expected[f"value.{layer}"]) < TOLERANCE
    keys = read_keys(lm, SubjectRows.of(lm, facts, contexts), layer)
    assert error(keys, expected[f"keys.{layer}"]) < TOLERANCE


def split(facts: Sequence[Fact], sizes: Sequence[int]) -> list[Sequence[Fact]]:
    batches, start = [], 0
    for size in sizes:
        batches.append(facts[start : start + size])
        start += size
    return batches
