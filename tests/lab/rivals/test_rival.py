"""The settings of rivals."""

from __future__ import annotations

from typing import Any

import pytest

from factpatch.lab.rivals.rival import RIVALS, Rival, setting_names
from factpatch.lab.runs.config import ConfigError, config_from
from factpatch.methods import METHODS
from factpatch.presets.preset import load_presets, read_preset


@pytest.mark.parametrize("rival", RIVALS.values(), ids=lambda rival: rival.name)
def test_the_recorded_settings_make_the_same_rival(rival: Rival) -> None:
    recorded = rival.settings
    assert {recorded.pop("method"), recorded.pop("source")} == {rival.name, rival.source}
    assert list(recorded) == setting_names(rival)
    assert rival.with_settings(recorded) == rival
    assert rival.name not in METHODS


def test_text_is_read_as_the_type_of_the_setting() -> None:
    tuned = RIVALS["lora"].with_settings({"learning_rate": "1e-3", "rank": "4", "targets": "q_proj, v_proj"})
    assert (tuned.settings["learning_rate"], tuned.settings["rank"]) == (1e-3, 4)
    assert tuned.settings["targets"] == ["q_proj", "v_proj"]
    assert RIVALS["lora"].settings["targets"] == []


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("locft-bf", {"epoch": 3}, "Did you mean 'epochs'"),
        ("locft-bf", {"epochs": 0}, "epochs=0"),
        ("locft-bf", {"layer": -1}, "layer=-1"),
        ("lora", {"learning_rate": "fast"}, "learning_rate='fast'"),
        ("in-prompt", {"least": 2}, "least=2"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RIVALS[name].with_settings(settings)


def test_the_settings_in_presets_are_those_of_rivals() -> None:
    for preset in load_presets():
        for name, settings in preset.rivals.items():
            assert RIVALS[name].with_settings(settings) != RIVALS[name]


def test_another_models_preset_says_nothing_of_rivals() -> None:
    text = (
        "{model: m, match: {model_type: llama, num_hidden_layers: 4, hidden_size: 32}, critical_layers: [1], source: s,"
        " rivals: {lora: {rank: 2}}, assumed: %s}"
    )
    assert read_preset(text % "false").settings_of_rival("lora") == {"rank": 2}
    assert read_preset(text % "false").settings_of_rival("in-prompt") == {}
    assert read_preset(text % "true").settings_of_rival("lora") == {}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("locft", "locft-bf"),
        ({"name": "lora", "settings": {"rnk": 1}}, "rank"),
        ({"name": "lora", "settings": {"solver.weight": 1}}, "no such setting"),
        ({"name": "in-prompt", "variant": "equal-settings"}, "variant='equal-settings'"),
        ({"name": "in-prompt", "remember_keys": False}, "remember_keys=False"),
    ],
)
def test_a_configuration_checks_rivals_too(method: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from({"model": "m", "methods": [method], "datasets": ["a.json"]})
