"""Options that several subcommands share; those that describe an editor are made from the fields of `Recipe`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from factpatch.cli.checks import recipe_errors
from factpatch.recipe import Recipe

_MODEL = typer.Argument(
    metavar="MODEL",
    help="An embedded model (see `factpatch models`), a directory, or an id of the Hugging Face Hub.",
    show_default=False,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
PatchFile = Annotated[
    Path,
    typer.Argument(
        metavar="PATCH", help="A patch that `factpatch edit` wrote, or the directory of a session.", show_default=False
    ),
]
_FACTS = typer.Option(
    "--facts",
    metavar="FILE",
    help="Facts as .json, .jsonl or .csv; the formats of CounterFact, zsRE, EasyEdit and KnowEdit are recognized. Or "
    "the name of a data set that `factpatch data fetch` has downloaded.",
    show_default=False,
)
Facts = Annotated[Path, _FACTS]
OptionalFacts = Annotated[Path | None, _FACTS]
SkipUnusable = Annotated[
    bool,
    typer.Option(
        "--skip-unusable",
        help="Pass over records that are no facts, such as prompts without their subject, and say how many.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Read only the first N facts of the file.")
]
PerplexityText = Annotated[
    Path | None,
    typer.Option(
        "--perplexity-text",
        metavar="FILE",
        help="The text that perplexity is measured on. Default: one that the package ships.",
    ),
]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write a report as JSON.")]
OutDirectory = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Where to write the model; a new or empty directory.", show_default=False
    ),
]
PatchToMeasure = Annotated[
    Path | None,
    typer.Option("--patch", metavar="PATCH", help="Ask without this patch and with it. The model stays as it is."),
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
    typer.Option("--dtype", metavar="D", help="Load the model in this dtype. Default: the dtype the patch is for."),
]


def documented(command: Callable[..., None]) -> Callable[..., None]:
    """Take the help of a command's options from the "Args:" of its docstring, which its own help leaves out."""
    about, helps = _split(inspect.getdoc(command) or "")
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        if parameter.name in helps:
            parameter.annotation.__metadata__[0].help = helps.pop(parameter.name)
    assert not helps, f"{command.__name__}: Args has {', '.join(helps)}, which are no parameters"
    command.__doc__ = about
    return _signed(command, list(signature.parameters.values()))


def with_recipe(*left_out: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `documented`, and give a command the options of a recipe; it gets the recipe that they describe as `recipe`.

    Args:
        left_out: Fields that the command does not need.
        defaults: Other defaults than the recipe's.
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
    """Let a command show these parameters to whoever looks at its signature or its annotations."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """What a docstring says before "Args:", and the text of each argument."""
    about, _, arguments = docstring.partition("\n\nArgs:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", arguments, re.MULTILINE)
    return about, {name: " ".join(text.split()) for name, text in entries}


def recipe_from(given: dict[str, Any]) -> Recipe:
    """A recipe from the values of options.

    Raises:
        BadArgumentError: One of them cannot be used.
    """
    fields = {name: value for name, value in given.items() if value is not None and value != []}
    for name, value in given.items():
        if Recipe.flag(name).kind is bool:
            del fields[name]
            if value:
                fields[name] = not Recipe.model_fields[name].default
    with recipe_errors():
        return Recipe(**fields)


def _parameter(name: str, defaults: dict[str, Any]) -> inspect.Parameter:
    kind, default = Recipe.flag(name).kind, Recipe.model_fields[name].default
    default = False if kind is bool else None if kind == list[str] else defaults.get(name, default)
    annotation: Any = Annotated[kind if default is not None else kind | None, recipe_option(name)]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
