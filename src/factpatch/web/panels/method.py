"""Model and method: what edits, in choices with their reasons, and as a recipe in YAML."""

from __future__ import annotations

from typing import Any

import gradio as gr

from factpatch.methods import METHODS, has_setting, method_named
from factpatch.recipe import Recipe
from factpatch.web.desk import Desk
from factpatch.web.panels.base import Page, html
from factpatch.web.recipes import about, read_recipe, reasons, recipe_from, recipe_text, steps_of
from factpatch.web.view import shown

_STEPS = "target.steps"


def method_panel(page: Page) -> None:
    """Make the choices; each takes effect at once, and is explained below."""
    models = page.room.shared.models
    with gr.Row(elem_classes="tools"):
        model = gr.Dropdown(list(models), value=models[0], label="Model", elem_id="model")
        method = gr.Dropdown([(about(name), name) for name in METHODS], label="Method", elem_id="method")
        variant = gr.Dropdown([], label="Variant of the preset", elem_id="variant")
    with gr.Row(elem_classes="tools"):
        steps = gr.Number(label="Effort: steps for each fact", precision=0, minimum=1, elem_id="steps")
        layers = gr.Textbox(label="Layers", placeholder="those of the preset", elem_id="layers")
        seed = gr.Number(label="Seed", precision=0, minimum=0, elem_id="seed")
        chat = gr.Checkbox(label="Teach in chats: each prompt is a user's turn", elem_id="chat")
    notice = html("method-notice")
    why = html("reasons")
    with gr.Accordion("The recipe as YAML", open=False):
        text = gr.Textbox(label="Recipe", lines=4, buttons=["copy"], elem_id="recipe")
        use = gr.Button("Use this recipe", elem_id="use-recipe")
    outputs = [model, method, variant, steps, layers, seed, chat, why, text]
    page.show(outputs, _shown)

    chosen = [model, method, variant, steps, layers, seed, chat]
    for trigger in (model.input, method.input, variant.input, chat.input):
        page.begin(trigger, _choose, chosen, notice)
    for box in (steps, layers, seed):
        page.begin(box.submit, _choose, chosen, notice)
        page.begin(box.blur, _choose, chosen, notice)
    page.begin(use.click, _use, [text], notice)


def _choose(
    desk: Desk, model: str, method: str, variant: str | None, steps: float | None, layers: str, seed: float, chat: bool
) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: is unknown; choose one from the list.")
    now = desk.recipe.to_dict()
    settings = dict(now.get("settings", {}))
    if steps is not None and has_setting(method_named(method), _STEPS) and steps != _steps_now(desk):
        settings[_STEPS] = str(int(steps))
    # Settings of the method before may be none of the new one's.
    settings = {name: value for name, value in settings.items() if has_setting(method_named(method), name)}
    changed = {
        "method": method,
        "variant": variant or None,
        "settings": settings,
        "critical_layers": layers.strip() or None,
        "seed": int(seed or 0),
        "chat": chat,
    }
    _take(desk, model, recipe_from({**now, **changed}, desk.shared.recipe))


def _use(desk: Desk, text: str) -> None:
    _take(desk, desk.model, read_recipe(text, desk.shared.recipe))


def _take(desk: Desk, model: str, recipe: Recipe) -> None:
    if (model, recipe) == (desk.model, desk.recipe):
        return
    desk.choose(model, recipe)
    if desk.shared.loaded(model) is None:

        def load() -> None:
            _ = desk.original

        desk.start(f"loading {model}", load)


def _steps_now(desk: Desk) -> int | None:
    return None if desk.choice is None else steps_of(desk.choice)


def _shown(desk: Desk) -> list[Any]:
    recipe, choice, lm = desk.recipe, desk.choice, desk.shared.loaded(desk.model)
    variants = [] if choice is None else list(choice.preset.variants)
    why = [] if choice is None or lm is None else reasons(recipe, choice, lm.num_layers)
    layers = "" if recipe.critical_layers is None else ", ".join(map(str, recipe.critical_layers))
    return [
        gr.update(value=desk.model),
        gr.update(value=str(recipe.method)),
        gr.update(choices=[("none", ""), *((name, name) for name in variants)], value=recipe.variant or ""),
        gr.update(value=_steps_now(desk)),
        gr.update(value=layers),
        gr.update(value=recipe.seed),
        gr.update(value=recipe.chat),
        shown("reasons", model=desk.model, reasons=why),
        gr.update(value=recipe_text(recipe)),
    ]
