"""Settings for models, as data: one YAML file per model, each number with its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from factpatch.methods import has_setting, method_named, with_settings
from factpatch.model.architectures import ARCHITECTURES
from factpatch.support.files import atomic_write
from factpatch.support.validation import explained
from factpatch.support.words import suggestion

if TYPE_CHECKING:
    from factpatch.model.language_model import LanguageModel

Row = dict[str, Any]
"""Settings of one method by dotted name. `inherit` names the row that supplies what it lacks, and `critical_layers`
replaces the model's own for this method."""
INHERIT, LAYERS = "inherit", "critical_layers"
COMMON = "common"
"""A row of a variant that belongs to no method: it replaces some of the settings of every method, or their layers."""
# Never assumed for another model. First tokens edited apart: in Qwen2.5-Coder-0.5B, one fact written to the first layer
# raised perplexity by 55 %; docs/results.md says why.
_OF_ITS_MODEL = ("target.apart",)


@dataclass(frozen=True)
class Match:
    """Fields of the config that identify a model, by the names that transformers understands in every family."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None

    def differing(self, config: Any) -> dict[str, tuple[Any, Any]]:
        """The given fields in which a config differs: the value here, and the config's."""
        both = {one.name: (getattr(self, one.name), getattr(config, one.name, None)) for one in fields(self)}
        return {name: (here, there) for name, (here, there) in both.items() if here is not None and here != there}

    def fits(self, config: Any) -> bool:
        """Whether the config agrees in every field that is given."""
        return not self.differing(config)


@dataclass(frozen=True)
class Preset:
    """What has been found, or published, for one model."""

    model: str
    """The model's name, for people."""
    match: Match
    """Fields of the model's config that identify it."""
    critical_layers: list[int]
    """The layers a method may write, ascending, unless its row has its own."""
    source: str
    """Where the numbers come from."""
    also: list[str] = field(default_factory=list)
    """Other models with this config, for which the numbers hold too."""
    corpus_tokens: int | None = None
    """How many tokens to read for the second moment; five per key dimension if absent."""
    shipped_corpus: bool = False
    """Whether the text that the package ships is good enough for this model's second moment."""
    common: dict[str, Any] = field(default_factory=dict)
    """Settings of every method whose strategies have such a field and whose row lacks it."""
    methods: dict[str, Row] = field(default_factory=dict)
    """A row by method."""
    rivals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of what runs compare the methods with, by name; see `factpatch.lab.rivals`."""
    variants: dict[str, dict[str, Row]] = field(default_factory=dict)
    """Rows that replace those of the same name, by the variant's name; `inherit` finds them first. A row called common
    replaces settings of every method."""
    assumed: bool = False
    """Whether this is another model's preset, taken because the model has none; never read from a file."""

    def rows(self, variant: str | None = None) -> dict[str, Row]:
        """The rows in force; an unknown variant is a ValueError with a suggestion."""
        if variant is None:
            return self.methods
        if variant not in self.variants:
            raise ValueError(
                f"variant={variant!r}: {self.model} has no such variant.{suggestion(variant, self.variants)}"
            )
        return {**self.methods, **{name: row for name, row in self.variants[variant].items() if name != COMMON}}

    def settings(self, method: str, variant: str | None = None) -> dict[str, Any]:
        """Settings for a named method, by dotted name: the common ones, then its row with all that it inherits."""
        row = {name: value for name, value in _resolved(self.rows(variant), method).items() if name != LAYERS}
        common = {**self.common, **self._common(variant)}
        fitting = {name: value for name, value in common.items() if has_setting(method_named(method), name)}
        return {**fitting, **row}

    def settings_of_rival(self, name: str) -> dict[str, Any]:
        """Settings of a rival; none from another model's preset, whose layers and rates mean nothing here."""
        return {} if self.assumed else dict(self.rivals.get(name, {}))

    def layers(self, method: str | None = None, variant: str | None = None) -> list[int]:
        """The critical layers of a named method: its row's own, else the variant's, else those of all methods."""
        everywhere = {LAYERS: self.critical_layers, **self._common(variant)}
        found: list[int] = {**everywhere, **_resolved(self.rows(variant), method or "")}[LAYERS]
        return found

    def _common(self, variant: str | None) -> Row:
        """What a variant says of all methods."""
        return self.variants.get(variant or "", {}).get(COMMON, {})

    def layers_for(self, depth: int, method: str | None = None, variant: str | None = None) -> list[int]:
        """The critical layers of a named method, scaled to a model of another depth.

        Each is rounded to the nearest layer. Where two would meet or one would lie beyond the end, consecutive layers
        around their middle replace them, as many as fit.
        """
        own = self.layers(method, variant)
        scaled = [layer / self.match.num_hidden_layers * depth for layer in own]
        rounded = [math.floor(place + 0.5) for place in scaled]
        if len(set(rounded)) == len(rounded) and rounded[-1] < depth:
            return rounded
        count = min(len(scaled), depth)
        first = math.floor(math.fsum(scaled) / len(scaled) - (count - 1) / 2 + 0.5)
        first = min(max(first, 0), depth - count)
        return list(range(first, first + count))


_PRESETS = TypeAdapter(Preset)


def _resolved(rows: Mapping[str, Row], name: str, heirs: tuple[str, ...] = ()) -> Row:
    """A row with all that it inherits; empty if there is none."""
    row = dict(rows.get(name, {}))
    parent = row.pop(INHERIT, None)
    if parent is None:
        return row
    if parent not in rows or parent in (name, *heirs):
        raise ValueError(f"{name}: inherits from {parent!r}, which is no other row.{suggestion(str(parent), rows)}")
    return {**_resolved(rows, parent, (name, *heirs)), **row}


def read_preset(text: str) -> Preset:
    """Read the YAML of one preset.

    Raises:
        ValueError: An unknown field, method or setting, a row that inherits from none, or a layer that does not exist.
    """
    preset = _PRESETS.validate_python(yaml.safe_load(text), extra="forbid")
    try:
        _check(preset)
    except ValueError as error:
        raise ValueError(f"preset {preset.model}: {error}") from None
    return preset


def _check(preset: Preset) -> None:
    _check_layers(preset.critical_layers, preset.match.num_hidden_layers)
    for common in (preset.common, *(rows.get(COMMON, {}) for rows in preset.variants.values())):
        for name in common.keys() - {LAYERS}:
            if not any(has_setting(method_named(method), name) for method in preset.methods):
                raise ValueError(f"common: no method that the preset lists has a setting {name!r}.")
    for variant in (None, *preset.variants):
        for method in preset.rows(variant):
            with_settings(method_named(method), preset.settings(method, variant))
            _check_layers(preset.layers(method, variant), preset.match.num_hidden_layers)


def _check_layers(layers: Any, depth: int) -> None:
    whole = isinstance(layers, list) and all(type(layer) is int for layer in layers)
    if not whole or not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < depth:
        raise ValueError(f"critical_layers={layers}: give some of the model's layers, each once, in ascending order.")


@cache
def load_presets() -> tuple[Preset, ...]:
    """All presets that the package ships, by file name."""
    files = sorted(resources.files(__package__).iterdir(), key=lambda entry: entry.name)
    return tuple(read_preset(entry.read_text("utf-8")) for entry in files if entry.name.endswith(".yaml"))


def preset_named(name: str) -> Preset:
    """Look a preset up by a model's name, in any case; a ValueError suggests the nearest name."""
    known = {model.lower(): preset for preset in load_presets() for model in (preset.model, *preset.also)}
    if name.lower() not in known:
        raise ValueError(f"no preset {name!r}.{suggestion(name.lower(), known)}")
    return known[name.lower()]


def nearest(presets: Sequence[Preset], model_type: str, width: int, depth: int) -> Preset:
    """The preset to assume for a model without one: of a family with the same modules, if there is one.

    Among several, that of the model nearest in hidden size, then in depth, on a log scale; another `model_type` is as
    far as half the size.
    """

    def distance(preset: Preset) -> tuple[bool, float, float]:
        there = preset.match
        return (
            _modules(there.model_type) != _modules(model_type),
            abs(math.log(width / there.hidden_size)) + (math.log(2) if there.model_type != model_type else 0),
            abs(math.log(depth / there.num_hidden_layers)),
        )

    return min(presets, key=distance)


def _modules(model_type: str) -> tuple[Any, ...] | None:
    """Where a family keeps its blocks and what is in them; Llama, Mistral and Qwen agree."""
    row = ARCHITECTURES.get(model_type)
    return None if row is None else (row.blocks, row.down_projection, row.mlp, row.attention, row.transposed)


def preset_for(lm: LanguageModel, given: Preset | Path | str | None = None) -> Preset:
    """The preset that was given; else the one whose `match` agrees with the model's config, or the nearest one.

    The nearest one is marked as assumed, without its corpus, since nobody knows what text is good enough for the model,
    and without what was shown to fail on others.

    Raises:
        ValueError: The given one is not a preset, or is for another model; the message shows what differs.
        OSError: Its file cannot be read.
    """
    if given is not None:
        preset = given if isinstance(given, Preset) else load_preset(given)
        differing = {} if preset.assumed else preset.match.differing(lm.config)
        if differing:
            shown = "; ".join(
                f"{name} is {it!r} there and {its!r} in the model" for name, (it, its) in differing.items()
            )
            raise ValueError(f"preset {preset.model!r} is for another model than {lm.name}: {shown}.")
        return preset
    for preset in load_presets():
        if preset.match.fits(lm.config):
            return preset
    found = nearest(load_presets(), str(lm.config.model_type), lm.d_value, lm.num_layers)
    common = {name: value for name, value in found.common.items() if name not in _OF_ITS_MODEL}
    return replace(found, assumed=True, common=common, corpus_tokens=None, shipped_corpus=False)


def load_preset(path: str | Path) -> Preset:
    """Read a preset from a YAML file, which a ValueError names if it is not a preset."""
    try:
        return read_preset(Path(path).read_text("utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path}: is no preset: {explained(error)}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def save_preset(path: str | Path, preset: Preset, remarks: Sequence[str] = ()) -> None:
    """Write a preset as YAML without defaults, with remarks as comments above it; whole or not at all."""
    record = _PRESETS.dump_python(preset, exclude_defaults=True)
    text = "".join(f"# {line}".rstrip() + "\n" for line in remarks)
    text += yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120)
    read_preset(text)  # what could not be read again should not be written
    atomic_write(path, lambda draft: draft.write_text(text, "utf-8"))
