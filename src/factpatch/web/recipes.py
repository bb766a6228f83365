"""The recipe of somebody at the page: that of the command line, with what one may change without touching a file."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from factpatch.methods import STRATEGIES, method_named
from factpatch.recipe import Choice, Recipe, RecipeError
from factpatch.support.words import quoted

FIXED = ("preset", "corpus", "device", "dtype")
"""Fields that name files or the machine. They are those that the server was started with."""
_LONGEST = 20_000


def recipe_from(record: object, base: Recipe) -> Recipe:
    """Return the recipe of a record, as `Recipe.to_dict` makes it, that differs from the server's in what it may.

    Nothing of the record is looked at as a path before that is known.

    Raises:
        ValueError: It is no record, a field is unknown or cannot be used, or may not be changed on the page.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"recipe: {quoted(record)} is no recipe; it has lines such as `method: memit-blue`.")
    own = base.to_dict(defaults=True)
    for name in FIXED:
        if record.get(name) is not None and record[name] != own.get(name):
            raise RecipeError(
                name,
                f"{name}={quoted(record[name])}: cannot be changed on this page, which reads no files of the server. "
                f"It is {quoted(own.get(name))}; {Recipe.flag(name).name} of `factpatch page` sets another one.",
            )
    fixed = {name: getattr(base, name) for name in FIXED}
    given = {str(name): value for name, value in record.items() if name not in FIXED}
    if isinstance(settings := given.get("settings"), Mapping):
        # As text, which is how the command line records them: so it takes a session of the page for its own.
        given["settings"] = {name: _plain(value) for name, value in settings.items()}
    return Recipe.from_dict({**given, **fixed})


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML, without what is as always but for the method."""
    return yaml.safe_dump({"method": recipe.method, **recipe.to_dict()}, sort_keys=False, allow_unicode=True)


def read_recipe(text: str, base: Recipe) -> Recipe:
    """Return the recipe of a text of YAML; raise as `recipe_from`."""
    if len(text) > _LONGEST:
        raise ValueError(f"recipe: it has {len(text)} characters; a recipe has at most {_LONGEST}.")
    try:
        record = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split()) or "nested too deeply"
        raise ValueError(f"recipe: is not YAML: {said}.") from None
    return recipe_from({} if record is None else record, base)


def options(recipe: Recipe) -> str:
    """Return a recipe as options of the command line, each ready for a shell."""
    words: list[str] = []
    for name, value in recipe.to_dict().items():
        flag = Recipe.flag(name)
        if flag.kind is bool:
            words.append(flag.name)
        elif isinstance(value, Mapping):
            words += [word for key, one in value.items() for word in (flag.name, f"{key}={_plain(one)}")]
        else:
            words += [flag.name, _plain(value)]
    return shlex.join(words)


def _plain(value: Any) -> str:
    """A value as the command line reads it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def reasons(recipe: Recipe, choice: Choice, depth: int) -> list[tuple[str, str]]:
    """Say what a recipe does on a model of some depth, for which it was completed, and why: headings and sentences."""
    preset, layers = choice.preset, ", ".join(map(str, choice.critical_layers))
    written = ", ".join(str(step.layer) for step in choice.method.spread.all_steps(choice.critical_layers))
    origin = (
        f"No settings are known for this model; those of {preset.model}, the nearest one, are assumed. Try a few facts "
        "first, and look at the side effects."
        if preset.assumed
        else f"Settings of {preset.model} ({preset.source})."
    )
    if choice.underived:
        origin += " Those of the solver are derived from the model's own keys."
    chosen = "You chose" if recipe.critical_layers is not None else "The preset chose"
    parts = [
        ("Settings", origin),
        ("Layers", f"{chosen} layers {layers} of {depth}; this method writes to {written}."),
    ]
    for part in STRATEGIES:
        member = type(getattr(choice.method, part))
        parts.append((part.capitalize(), f"{member.__name__}: {first_sentence_of(member)}"))
    return [*parts, ("Source", choice.method.source)]


def first_sentence_of(member: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(member) or "").split("\n", 1)[0]


def steps_of(choice: Choice) -> int | None:
    """How many steps the search for each fact's value takes at most; None if the method searches none."""
    return getattr(choice.method.target, "steps", None)


def about(method: str) -> str:
    """A method in a few words, for a list to choose from."""
    sources = method_named(method).source.split("; ")
    return f"{method} ({', '.join(source.partition(',')[0] for source in sources)})"
