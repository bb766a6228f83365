"""Value targets that are optimized once: for the same model, and for no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny

from factpatch import Fact, HiddenState
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import model_hash
from factpatch.values import shared
from factpatch.values.shared import SharedTargets

FACTS = (Fact("The capital of {} is", "Finland", "Rome"), Fact("{} plays the sport of", "Messi", "basketball"))
TARGET = HiddenState(steps=3)


def test_the_hash_of_a_model_is_that_of_all_its_weights() -> None:
    first, again = tiny("llama"), tiny("llama")
    assert model_hash(first.model) == model_hash(again.model)
    seen = {model_hash(first.model)}
    for name, weight in again.model.named_parameters():
        with torch.no_grad():
            weight.view(-1)[-1] += 1
        seen.add(model_hash(again.model))
        assert len(seen) > 1, name
    assert len(seen) == 1 + len(list(again.model.parameters()))


def test_targets_are_optimized_once_for_a_model_and_anew_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized: list[LanguageModel] = []
    optimize = shared.optimize_values

    def counted(lm: LanguageModel, *given: Any, **options: Any) -> Any:
        optimized.append(lm)
        return optimize(lm, *given, **options)

    monkeypatch.setattr(shared, "optimize_values", counted)
    lm, other = tiny("llama"), tiny("llama")
    with torch.no_grad():  # of the same name, and with the same editable weights
        other.model.get_input_embeddings().weight.mul_(1.5)
    found = [
        SharedTargets(tmp_path, model_hash(one.model))(one, FACTS, 2, TARGET, ["{}"])
        for one in (lm, lm, other, tiny("llama"))
    ]
    assert optimized == [lm, other]
    assert torch.equal(found[0].values, found[1].values)
    assert torch.equal(found[0].values, found[3].values)
    assert not torch.equal(found[0].values, found[2].values)


def test_targets_that_another_process_finds_meanwhile_are_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, targets = tiny("llama"), SharedTargets(tmp_path, "tiny")
    found: list[Any] = []

    @contextmanager
    def after_another(lock: Path, what: str) -> Iterator[bool]:
        if not found:
            found.append(None)
            found[0] = SharedTargets(tmp_path, "tiny")(lm, FACTS, 2, TARGET, ["{}"])
        yield True

    monkeypatch.setattr(shared, "one_at_a_time", after_another)
    monkeypatch.setattr(SharedTargets, "_optimized", once(SharedTargets._optimized))
    assert torch.equal(targets(lm, FACTS, 2, TARGET, ["{}"]).values, found[0].values)
    # The time that the other process took has passed here, too.
    assert targets.take_seconds() == 0
    targets(lm, FACTS, 2, TARGET, ["{}"])
    assert targets.take_seconds() > 0


def once(function: Any) -> Any:
    calls: list[Any] = []

    def called(*given: Any, **options: Any) -> Any:
        calls.append(given)
        assert len(calls) == 1
        return function(*given, **options)

    return called
