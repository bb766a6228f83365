"""What ends a run, and what is a result of a method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import FACTS

pytest.importorskip("pyarrow", reason="needs the extra `runs`")

from factpatch.lab.runs.results import read_results
from factpatch.strategies.least_squares import EarlierKeys


def test_weights_that_nothing_can_be_solved_for_are_a_failure_of_the_method(
    begin: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.update(methods=config["methods"][:2], evaluate={"perplexity": False, "generation": False})
    solve, asked = EarlierKeys.solve, []

    def collapsed(*given: Any) -> Any:
        asked.append(given)
        if len(asked) == 3:  # the second batch of the first method, which writes two layers
            return torch.linalg.cholesky(-torch.eye(2))
        return solve(*given)

    monkeypatch.setattr(EarlierKeys, "solve", collapsed)
    result = begin(config)
    assert result.exit_code == 0, result.output
    assert list(read_results(tmp_path / "out").failed) == ["memit on three, seed 0"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"critical_layers": [1, 99]}, "99"), ({"corpus": None}, "corpus"), ({"preset": "none.yaml"}, "none.yaml")],
)
def test_settings_that_do_not_fit_the_model_are_no_failure_of_a_method(
    begin: Any, config: dict[str, Any], tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    config.update(wrong)
    result = begin(config)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert not list(tmp_path.glob("out/**/row.json"))


def test_too_little_text_is_no_failure_of_a_method(begin: Any, config: dict[str, Any], tmp_path: Path) -> None:
    config.update(corpus_tokens=10, evaluate={"perplexity": False, "generation": False})
    result = begin(config)
    assert result.exit_code == 1
    assert "it holds 10 tokens" in result.output
    assert not list(tmp_path.glob("out/**/row.json"))


def test_facts_that_cannot_be_edited_are_found_before_anything_is_measured(
    begin: Any, config: dict[str, Any], facts_file: Path, tmp_path: Path
) -> None:
    far = {"prompt": "word " * 300 + "{} is", "subject": "Rome", "target_new": "Italian"}
    facts_file.write_text(json.dumps([*FACTS, far]), "utf-8")
    result = begin(config)
    assert result.exit_code == 1
    assert "memit on three, seed 0: batch 2 of 2" in result.output
    assert not list(tmp_path.glob("out/**/*.parquet"))
