"""What is kept of a model is found again by all that it depends on, and by nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tests.models import tiny

import factpatch.model.fingerprint
from factpatch.model.findings import Findings
from factpatch.model.fingerprint import fingerprint, fingerprints, unchanged
from factpatch.model.language_model import LanguageModel

NUMBERS = TypeAdapter(tuple[float, ...])
FOUND = (0.1, float("inf"), -3.5e-300)


class Asked:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> tuple[float, ...]:
        self.times += 1
        return FOUND


def test_a_finding_is_read_again_to_the_bit(tmp_path: Path) -> None:
    asked, lm = Asked(), tiny("llama")
    for _ in range(2):
        assert Findings(lm, tmp_path).get("numbers", ["about"], NUMBERS, asked) == FOUND
    assert asked.times == 1


def test_an_unchanged_model_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, other, taken = tiny("llama"), tiny("gpt2"), list[LanguageModel]()
    take = factpatch.model.fingerprint._taken

    def counted(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
        taken.append(lm)
        return take(lm, layers)

    monkeypatch.setattr("factpatch.model.fingerprint._taken", counted)
    expected = [*fingerprints(lm, [1, 3]).items(), fingerprint(other)]
    taken.clear()
    with unchanged():
        found = [fingerprint(lm), *fingerprints(lm, [1, 3]).items(), fingerprint(other)]
        assert found[1:] == expected
    assert taken == [lm, other]
    lm.weight(3)[0, 0] += 1
    assert fingerprint(lm) != found[0]


def threads(lm: LanguageModel) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


def weights(lm: LanguageModel) -> None:
    lm.weight(3)[0, 0] += 1


def config(lm: LanguageModel) -> None:
    lm.config.rms_norm_eps *= 2


@pytest.mark.parametrize("change", [threads, weights, config])
def test_a_change_is_noticed(tmp_path: Path, change: Callable[[LanguageModel], None]) -> None:
    asked, lm, before = Asked(), tiny("llama"), torch.get_num_threads()
    Findings(lm, tmp_path).get("numbers", [], NUMBERS, asked)
    try:
        change(lm)
        Findings(lm, tmp_path).get("numbers", [], NUMBERS, asked)
    finally:
        torch.set_num_threads(before)
    assert asked.times == 2


@pytest.mark.parametrize(("what", "about"), [("others", ["a"]), ("numbers", ["b"])])
def test_another_question_is_another_finding(tmp_path: Path, what: str, about: list[Any]) -> None:
    asked, findings = Asked(), Findings(tiny("llama"), tmp_path)
    findings.get("numbers", ["a"], NUMBERS, asked)
    findings.get(what, about, NUMBERS, asked)
    assert asked.times == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": "other", "found": [1]}', "IDENTITY"])
def test_a_file_that_cannot_be_trusted_is_made_again(tmp_path: Path, content: str) -> None:
    asked, findings = Asked(), Findings(tiny("llama"), tmp_path)
    findings.get("numbers", [], NUMBERS, asked)
    (file,) = tmp_path.iterdir()
    identity = json.loads(file.read_text("utf-8"))["identity"]
    file.write_text(json.dumps({"identity": identity, "found": ["x"]}) if content == "IDENTITY" else content)
    assert findings.get("numbers", [], NUMBERS, asked) == FOUND
    assert asked.times == 2
    assert findings.get("numbers", [], NUMBERS, asked) == FOUND
    assert asked.times == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked, findings = Asked(), Findings(tiny("llama"), tmp_path / "file" / "findings")
    assert findings.get("numbers", [], NUMBERS, asked) == FOUND


def test_what_nobody_asks_for_is_removed_after_a_month(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("{}")
    os.utime(old, (time.time() - 31 * 24 * 3600,) * 2)
    Findings(tiny("llama"), tmp_path).get("numbers", [], NUMBERS, Asked())
    assert not old.exists()
