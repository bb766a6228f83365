"""`factpatch presets`: which models have a preset, and its settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render

if TYPE_CHECKING:
    from factpatch.presets.preset import Preset


@options.documented
def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
) -> None:
    """List the models that have a preset; with a name, show its settings, method by method.

    Args:
        name: A model: show its settings for every method. Default: list all models.
    """
    from factpatch.presets.preset import load_presets, preset_named

    if name is not None:
        with checks.argument("NAME"):
            preset = preset_named(name)
        _show(preset)
        return
    made = render.table("preset", "critical layers", "methods", "variants")
    for preset in load_presets():
        names, variants = "\n".join([preset.model, *preset.also]), "\n".join(preset.variants)
        made.add_row(names, render.numbers(preset.critical_layers), str(len(preset.methods)), variants)
    render.screen.print(made)
    render.say(
        "`factpatch presets NAME` shows the settings. A model without a preset gets the nearest one, with a warning."
    )


def _show(preset: Preset) -> None:
    matched = {field: value for field, value in asdict(preset.match).items() if value is not None}
    for label, text in {
        "model": ", ".join([preset.model, *preset.also]),
        "config": _assignments(matched),
        "layers": render.numbers(preset.critical_layers),
        "common": _assignments(preset.common),
        "source": preset.source,
    }.items():
        render.say(f"{label:<8}{text}")
    made = render.table("method", "variant", "settings besides the common ones")
    for variant in (None, *preset.variants):
        for method in preset.methods:
            settings = preset.settings(method, variant)
            if variant is None or settings != preset.settings(method):
                own = {field: value for field, value in settings.items() if preset.common.get(field) != value}
                if (layers := preset.layers(method, variant)) != preset.critical_layers:
                    own = {"layers": render.numbers(layers), **own}
                made.add_row(method, variant, _assignments(own))
    render.screen.print(made)
    render.say(
        "All other settings have their defaults, which `factpatch methods --settings` lists. Where nothing is said of "
        "a solver that reads a corpus, its settings are derived from the model's own keys."
    )


def _assignments(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
