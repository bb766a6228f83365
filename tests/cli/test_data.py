from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import FACTS, Run

from factpatch.data import sources
from factpatch.data.sources import SOURCES


def test_list_names_every_file_and_says_which_are_here(run: Run, tmp_path: Path) -> None:
    result = run("data", "list")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in SOURCES)
    assert "yes" not in result.output
    (tmp_path / "cache" / "data").mkdir(parents=True)
    (tmp_path / "cache" / "data" / "counterfact.json").touch()
    assert "yes" in run("data", "list").output


def test_fetch_puts_files_into_a_directory_and_says_where(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_receive", lambda source, draft: draft.write_text(source.name))
    result = run("data", "fetch", "knowedit_recent", "knowedit_zsre", "--to", tmp_path / "here")
    assert result.exit_code == 0, result.output
    for name in ("knowedit_recent", "knowedit_zsre"):
        path = tmp_path / "here" / SOURCES[name].file
        assert path.read_text() == name
        assert f"{name}: {path}" in result.output


def test_a_fetched_data_set_stands_for_its_file_where_facts_are_taken(
    run: Run, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [*FACTS[:2], {"prompt": "no slot", "subject": "x", "target_new": "y"}]
    monkeypatch.setattr(sources, "_receive", lambda source, draft: draft.write_text(json.dumps(records)))
    missing = run("verify", model_directory, "--facts", "knowedit_zsre")
    assert missing.exit_code == 2
    assert "--facts: knowedit_zsre: " in missing.output
    assert "factpatch data fetch knowedit_zsre" in missing.output
    assert run("data", "fetch", "knowedit_zsre").exit_code == 0
    refused = run("verify", model_directory, "--facts", "knowedit_zsre")
    assert refused.exit_code == 2
    assert "record 3: prompt='no slot': does not contain the subject" in refused.output
    result = run("verify", model_directory, "--facts", "knowedit_zsre", "--skip-unusable")
    assert result.exit_code == 0, result.output
    assert "1 record cannot be used and was skipped" in result.output
    assert "Danielle Darrieux" in result.output


def test_an_unknown_name_is_refused_before_anything_is_fetched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_receive", lambda source, draft: pytest.fail("nothing is to be downloaded"))
    result = run("data", "fetch", "zsre", "counterfct")
    assert result.exit_code == 2
    assert "NAME: unknown data set 'counterfct'. Did you mean 'counterfact'?" in result.output
