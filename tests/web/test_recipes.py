"""A recipe on the page is the one of everywhere, but it names no file that the server was not started with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.models import tiny

from factpatch import Recipe
from factpatch.methods import METHODS
from factpatch.recipe import choose
from factpatch.web.recipes import options, read_recipe, reasons, recipe_from, recipe_text, steps_of
from factpatch.web.room import Room


@pytest.mark.parametrize("name", ["preset", "corpus", "device", "dtype"])
def test_a_field_that_names_a_file_or_the_machine_is_not_changed(name: str, web_recipe: Recipe) -> None:
    for value in ("/etc/passwd", "hf:somebody/something", "cuda"):
        with pytest.raises(ValueError, match=rf"^{name}=.*cannot be changed on this page"):
            recipe_from({name: value}, web_recipe)


def test_a_recipe_is_written_and_read_again(web_recipe: Recipe) -> None:
    changed = recipe_from({"method": "rect", "critical_layers": "2", "seed": 3, "chat": True}, web_recipe)
    assert (changed.method, changed.critical_layers, changed.corpus) == ("rect", (2,), web_recipe.corpus)
    assert read_recipe(recipe_text(changed), web_recipe) == changed
    assert read_recipe("", web_recipe).method == "memit-blue"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("methd: memit", "Did you mean 'method'"),
        ("method: alphaedt", "Did you mean 'alphaedit'"),
        ("- memit", "is no recipe"),
        ("method: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("[" * 9000, "is not YAML"),
        ("x" * 20_001, "at most 20000"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused(text: str, said: str, web_recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=said):
        read_recipe(text, web_recipe)


def test_a_recipe_is_written_as_options_of_the_command_line(web_recipe: Recipe) -> None:
    changed = {
        "method": "rect",
        "remember_keys": False,
        "settings": {"solver.weight": 2, "target.contexts": ["prompt"]},
    }
    assert options(recipe_from({"critical_layers": [1, 2], **changed}, web_recipe)) == (
        f"--corpus {web_recipe.corpus} --layers 1,2 --method rect --no-remember-keys "
        "--set solver.weight=2 --set target.contexts=prompt"
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_explained(method: str, web_corpus: Path) -> None:
    recipe = Recipe(method=method, corpus=str(web_corpus))
    lm = tiny("llama")
    choice = choose(recipe, lm)
    parts = dict(reasons(recipe, choice, lm.num_layers))
    assert {"Settings", "Layers", "Target", "Spread", "Solver", "Regularizer", "Source"} == set(parts)
    assert all(parts.values())
    assert (steps_of(choice) is None) == (method in ("ultraedit", "stableedit"))


def test_a_session_that_names_another_corpus_is_not_opened(make_room: Callable[..., Room]) -> None:
    with pytest.raises(ValueError, match="corpus"):
        recipe_from({"corpus": "/etc/shadow"}, make_room().shared.recipe)
