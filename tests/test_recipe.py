"""A recipe: checked once, the same from Python, the command line and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.editors import CONTEXTS, LAYERS, second_moments
from tests.models import SENTENCES, tiny

from factpatch import METHODS, Editor, Recipe
from factpatch.cli import options
from factpatch.cli.checks import BadArgumentError
from factpatch.recipe import RecipeError

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "memti"}, "method", "unknown method 'memti'. Did you mean 'memit'"),
    ({"settings": {"solver.wieght": 1}}, "settings", "has no field 'wieght'"),
    ({"settings": ["solver.weight"]}, "settings", "write it as strategy.field=value"),
    ({"settings": {"solver.weight": -1}}, "settings", "must be positive"),
    ({"variant": "equal", "method": METHODS["memit"]}, "variant", "a Method is taken as it is"),
    ({"preset": "nowhere.yaml"}, "preset", "nowhere.yaml"),
    ({"critical_layers": "4,x"}, "critical_layers", "numbers with commas between them"),
    ({"critical_layers": (-1,)}, "critical_layers", "must be greater than or equal to 0"),
    ({"corpus": "nowhere.txt"}, "corpus", "no such text file"),
    ({"corpus_tokens": 0}, "corpus_tokens", "corpus_tokens=0: must be positive"),
    ({"precision": "exakt"}, "precision", "Did you mean 'exact'"),
    ({"dtype": "float23"}, "dtype", "no such dtype"),
    ({"device": "gpu"}, "device", "cannot be used"),
    ({"seed": -1}, "seed", "seed=-1"),
    ({"sede": 1}, "sede", "has this field. Did you mean 'seed'"),
]


@pytest.mark.parametrize(("fields", "field", "message"), WRONG, ids=[f"{row[1]}-{i}" for i, row in enumerate(WRONG)])
def test_a_wrong_field_is_named_with_its_value_before_a_model_is_loaded(
    fields: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        Editor("no model", **fields)
    assert caught.value.field == field
    assert message in str(caught.value)


def test_a_recipe_is_the_same_from_python_from_options_and_from_a_file(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("A text.", "utf-8")
    recipe = Recipe(
        method="alphaedit", critical_layers=[1, 2], settings={"solver.l2": "3"}, corpus=corpus, seed=2,
        remember_keys=False, chat=True,
    )  # fmt: skip
    given: dict[str, Any] = dict.fromkeys(Recipe.model_fields)
    given |= {"method": "alphaedit", "critical_layers": "1,2", "settings": ["solver.l2=3"], "corpus": str(corpus)}
    typed = options.recipe_from({**given, "seed": 2, "remember_keys": True, "chat": True})
    assert typed.to_dict() == recipe.to_dict() == Recipe.from_dict(recipe.to_dict()).to_dict()
    assert recipe.to_dict()["corpus"] == str(corpus.absolute())


def test_an_option_is_blamed_for_its_field() -> None:
    with pytest.raises(BadArgumentError, match=r"^--layers: "):
        options.recipe_from({"critical_layers": "4,x"})


def test_what_only_python_can_make_again_is_not_written() -> None:
    with pytest.raises(ValueError, match="method: holds a Method"):
        Recipe(method=METHODS["memit"]).to_dict()


def test_an_editor_takes_a_recipe_or_its_fields_and_not_both() -> None:
    fields = {"method": "rect", "critical_layers": LAYERS, "settings": {"target.steps": 3, "solver.weight": 2}}
    given: dict[str, Any] = {"contexts": CONTEXTS, "second_moments": second_moments()}
    one, other = Editor(tiny("llama"), recipe=Recipe(**fields), **given), Editor(tiny("llama"), **given, **fields)
    assert one.settings == other.settings
    with pytest.raises(ValueError, match="seed: these are fields of the recipe"):
        Editor(tiny("llama"), recipe=Recipe(), seed=1)


def test_layers_may_be_a_range() -> None:
    assert Recipe(critical_layers=range(1, 4)).critical_layers == (1, 2, 3)


def test_documents_and_corpora_are_taken_as_they_are() -> None:
    assert Recipe(corpus=list(SENTENCES)).corpus == SENTENCES


def test_every_field_is_documented_and_has_an_option() -> None:
    flags = [Recipe.flag(name).name for name in Recipe.model_fields]
    assert len(set(flags)) == len(flags)
    assert all(field.description for field in Recipe.model_fields.values())


def test_the_precisions_are_those_that_are_computed_in() -> None:
    from factpatch.model.precision import AUTO, PRECISIONS
    from factpatch.recipe import PRECISIONS as NAMES

    assert set(NAMES) == {AUTO, *PRECISIONS}
