"""What a run knows its inputs by."""

from __future__ import annotations

from pathlib import Path

import pytest

from factpatch.lab.runs.config import ConfigError, config_from
from factpatch.lab.runs.inputs import identities
from factpatch.support.files import file_digest

CONFIG = {"model": "m", "methods": ["memit"], "datasets": ["facts.json"]}


def test_a_preset_is_known_by_its_contents(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("model: m\n", "utf-8")
    found = identities(config_from({**CONFIG, "preset": str(preset)}))
    assert found["preset"] == file_digest(preset)
    assert "preset" not in identities(config_from(CONFIG))


def test_a_preset_that_is_missing_is_an_error_that_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset"):
        identities(config_from({**CONFIG, "preset": str(tmp_path / "none.yaml")}))
