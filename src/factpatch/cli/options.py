"""Options that several commands share; those that describe an editor are made from the fields of `Recipe`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from copy import copy
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from factpatch.cli import checks
from factpatch.recipe import Recipe

_MODEL = typer.Argument(
    metavar="MODEL",
    help="An embedded model (see `factpatch models`), a directory, a GGUF file, the name of an Ollama model, or "
    "a model ID on the Hugging Face Hub.",
    show_default=False,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
PatchFile = Annotated[
    Path,
    typer.Argument(metavar="PATCH", help="A patch that `factpatch edit` wrote, or a session directory."),
]
_FACTS = typer.Option(
    metavar="FILE",
    help="The facts, as .json, .jsonl, .csv or .tsv; the formats of CounterFact, zsRE, EasyEdit, KnowEdit and others "
    "are recognized. Or the name of a data set that `factpatch data fetch` has downloaded.",
    show_default=False,
)
Facts = Annotated[Path, _FACTS]
OptionalFacts = Annotated[Path | None, _FACTS]
SkipUnusable = Annotated[
    bool,
    typer.Option(
        "--skip-unusable",
        help="Skip records that cannot be used, such as prompts without their subject, and report how many.",
    ),
]
Repeats = Annotated[
    Literal["first", "last", "error"],
    typer.Option(help="Where facts answer the same question, keep the first or the last, or stop and list them."),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only the first N facts of the file.")]
PerplexityText = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The text to measure perplexity on. Default: one that the package ships."),
]
Report = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="Write a report as JSON.", callback=checks.new_file)
]
ModelDirectory = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Where to write the model: a new or empty directory.", callback=checks.new_directory
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N|ray:N|ray://HOST:PORT",
        help="Share the work among N processes, N workers of a Ray that is started here, or those of a running "
        "cluster. Each has a copy of the model, and as many threads as OMP_NUM_THREADS says, or one. The result does "
        "not depend on their number.",
    ),
]
LineWorkers = Annotated[
    str | None,
    typer.Option(
        metavar="N|ray:N|ray://HOST:PORT",
        help="Share the lines of the table, each a method on a dataset with a seed, among N processes, N workers of a "
        "Ray that is started here, or those of a running cluster, which need the same files at the same paths. Each "
        "loads the model; a new run takes as many threads as OMP_NUM_THREADS says, or one. The numbers do not depend "
        "on how many workers there are.",
    ),
]
OtherVersions = Annotated[
    bool,
    typer.Option(
        "--other-versions",
        help="Continue a run that was begun with other versions of factpatch, PyTorch or transformers, which may "
        "compute other numbers. The run records this.",
    ),
]
PatchToMeasure = Annotated[
    Path | None,
    typer.Option(metavar="PATCH", help="Ask before and after applying this patch. The model's files do not change."),
]


def recipe_option(field: str) -> Any:
    """The option of a field of `Recipe`, with the field's docstring as its help."""
    flag, about = Recipe.flag(field), Recipe.model_fields[field]
    return typer.Option(
        flag.name, metavar=flag.metavar or None, help=flag.help or " ".join((about.description or "").split())
    )


Device = Annotated[str | None, recipe_option("device")]
Dtype = Annotated[str | None, recipe_option("dtype")]
Chat = Annotated[bool, recipe_option("chat")]
PatchDtype = Annotated[
    str | None,
    typer.Option(metavar="D", help="The dtype to load the model in. Default: the one that the patch was made in."),
]


def documented(command: Callable[..., None]) -> Callable[..., None]:
    """Take the help of a command's options from the "Args:" of its docstring, which its own help leaves out."""
    about, helps = _split(inspect.getdoc(command) or "")
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name in helps:
            kind, option = get_args(parameter.annotation)
            option = copy(option)  # other commands may share it
            option.help = helps.pop(parameter.name)
            parameter = parameter.replace(annotation=Annotated[kind, option])
        parameters.append(parameter)
    assert not helps, f"{command.__name__}: Args has {', '.join(helps)}, which are no parameters"
    command.__doc__ = about
    return _signed(command, parameters)


def with_recipe(*left_out: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Document a command as `documented` does, and add the options of a recipe, which it receives as `recipe`.

    Args:
        left_out: Fields that the command does not need.
        defaults: Defaults that differ from the recipe's.
    """
    fields = [name for name in dict.fromkeys(("method", *Recipe.model_fields)) if name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        documented(command)
        own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "recipe"]

        @wraps(command)
        def run(**given: Any) -> None:
            command(recipe=recipe_from({name: given.pop(name) for name in fields}), **given)

        return _signed(run, [*own, *(_parameter(name, defaults) for name in fields)])

    return decorate


def _signed(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Give a command these parameters, in its signature and its annotations."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """What a docstring says before "Args:", and the text of each argument."""
    about, _, arguments = docstring.partition("\n\nArgs:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", arguments, re.MULTILINE)
    return about, {name: " ".join(text.split()) for name, text in entries}


def recipe_from(given: dict[str, Any]) -> Recipe:
    """Make a recipe of the values of options; raise BadArgumentError if one of them cannot be used."""
    fields = {name: value for name, value in given.items() if value is not None and value != []}
    for name, value in given.items():
        if Recipe.flag(name).kind is bool:
            fields.pop(name, None)
            if value:
                fields[name] = not Recipe.model_fields[name].default
    with checks.argument():
        return Recipe(**fields)


def _parameter(name: str, defaults: dict[str, Any]) -> inspect.Parameter:
    kind, default = Recipe.flag(name).kind, Recipe.model_fields[name].default
    default = False if kind is bool else None if kind == list[str] else defaults.get(name, default)
    option = recipe_option(name)
    option.rich_help_panel = "How to edit"
    annotation: Any = Annotated[kind if default is not None else kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
