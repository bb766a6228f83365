"""Recipe: what makes an editor, described and checked once; command-line options are generated from its fields."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from factpatch.methods import EFFORTS, Method, effort_settings, method_named, parse_assignments, with_settings
from factpatch.model.places import makes_keys
from factpatch.presets.own_methods import own_settings
from factpatch.presets.preset import Preset, load_preset, preset_for
from factpatch.statistics.corpus import Corpus, check_corpus
from factpatch.strategies import Spread
from factpatch.strategies.regularizer import Unchanged
from factpatch.strategies.target import Target
from factpatch.support.words import named, suggestion

if TYPE_CHECKING:
    from factpatch.model.language_model import LanguageModel

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "exact", "float32", "fast")


class RecipeError(ValueError):
    """A field of a recipe cannot be used; the message says why, and `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@contextmanager
def _about(field: str) -> Iterator[None]:
    """Let an error name the field that it is about."""
    try:
        yield
    except OSError as error:
        raise RecipeError(field, f"{field}={str(error.filename)!r}: {error.strerror}.") from error
    except ValueError as error:
        raise RecipeError(field, str(error)) from error


@dataclass(frozen=True)
class Flag:
    """How the command line spells a field."""

    name: str
    metavar: str = ""
    kind: Any = str
    """The type that the command line reads; the flag of a field that is true by default turns it off."""
    help: str = ""
    """Replaces the field's docstring."""


def _layers(value: Any) -> Any:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return tuple(int(part) for part in value.split(","))
        # A range or numpy's integers will do.
        return tuple(int(one) if hasattr(one, "__index__") else one for one in value)
    except (TypeError, ValueError):
        raise ValueError(f"critical_layers={value!r}: write numbers with commas between them, as 4,5,6,7,8.") from None


def _assigned(value: Any) -> Any:
    """A list of NAME=VALUE, as on the command line, or a mapping."""
    if isinstance(value, (str, list, tuple)):
        return parse_assignments([value] if isinstance(value, str) else value)
    return dict(value) if isinstance(value, Mapping) else value


def _corpus(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return str(value)
    return tuple(value) if isinstance(value, Sequence) else value


def _named(value: Any) -> Any:
    """The name of a PyTorch device or dtype."""
    return None if value is None else str(value).removeprefix("torch.")


def _known_precision(value: str | None) -> str | None:
    if value is not None and value not in PRECISIONS:
        raise ValueError(f"precision={value!r}: no such precision.{suggestion(value, PRECISIONS)}")
    return value


def _known_effort(value: str) -> str:
    named(EFFORTS, value, "effort")
    return value


class Section(BaseModel):
    """Fields that are checked when they are given and never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class MethodFields(Section):
    """What may differ from one method of a run to another."""

    variant: Annotated[str | None, Flag("--variant", "NAME")] = None
    """A variant of the model's preset, such as equal-settings: other numbers for some methods, which `factpatch
    presets` lists."""
    effort: Annotated[str, BeforeValidator(_known_effort), Flag("--effort", "quick|standard|published")] = "standard"
    """How much work to make of a fact: standard, the settings of the preset; quick, fewer evaluations; or published, 25
    evaluations in the published contexts, as in the papers."""
    settings: Annotated[dict[str, Any], BeforeValidator(_assigned), Flag("--set", "NAME=VALUE", list[str])] = Field(
        default_factory=dict
    )
    """Replace a setting of the method, such as solver.weight=5000; can be repeated. `factpatch methods --settings`
    lists them."""
    remember_keys: Annotated[
        bool, Flag("--no-remember-keys", kind=bool, help="Do not preserve the keys of earlier batches.")
    ] = True
    """Whether to preserve the keys of facts that were edited before, or whatever the solver remembers of them."""


class ModelFields(Section):
    """What is the same for every method on a model."""

    preset: Annotated[Path | InstanceOf[Preset] | None, Flag("--preset", "FILE", Path)] = None
    """Settings of the model, as `factpatch tune` writes them. Default: those that the package ships, or the nearest
    ones, with a warning that names what is assumed."""
    critical_layers: Annotated[
        tuple[NonNegativeInt, ...] | None, BeforeValidator(_layers), Flag("--layers", "L,L,...")
    ] = None
    """Layers that the method may write, counted from 0, ascending, as 4,5,6,7,8. Default: those of the preset; those of
    the nearest one are scaled to the model's depth."""
    corpus: Annotated[
        str | tuple[str, ...] | InstanceOf[Corpus] | None, BeforeValidator(_corpus), Flag("--corpus", "TEXT")
    ] = None
    """Text for the second moment of the keys: a file with blank lines between documents, or hf:NAME for a dataset.
    Default: the text that the package ships."""
    corpus_tokens: Annotated[PositiveInt | None, Flag("--corpus-tokens", "N", int)] = None
    """How many tokens of the corpus to read. Default: the preset's number, or 5 per key dimension."""
    chat: Annotated[bool, Flag("--chat", kind=bool)] = False
    """Ask every prompt as a user's turn of a chat, in the model's own chat template; the target begins the assistant's
    answer."""
    shared_expert: Annotated[bool, Flag("--shared-expert", kind=bool)] = False
    """Of a mixture of experts, edit the expert that every token passes, in place of those that a fact is routed to. It
    is simpler, and moves more of ordinary text."""
    precision: Annotated[str | None, BeforeValidator(_known_precision), Flag("--precision", "P")] = None
    """The precision of the value optimization: exact (float64), float32, or fast (matrix products in 16 bits, the rest
    in float32). Default: what the model is loaded in; with effort=quick fast, where the device multiplies so faster."""
    compiled: Annotated[bool, Flag("--compile", kind=bool)] = False
    """Let torch.compile fuse what it can of the value optimization: for many facts on a GPU. It takes a minute at
    first, and results differ by rounding."""
    device: Annotated[str | None, BeforeValidator(_named), Flag("--device", "D")] = None
    """cpu, cuda, cuda:1, ...; auto spreads the model. Default: cpu."""
    dtype: Annotated[str | None, BeforeValidator(_named), Flag("--dtype", "D")] = None
    """The dtype to load the model in: float32, bfloat16, float16 or float64 (exact mode). Default: what the checkpoint
    has."""


class Recipe(MethodFields, ModelFields):
    """What makes an editor of a model.

    In Python, `method` may also be a `Method`, `preset` a `Preset` and `corpus` a `Corpus` or a list of documents. They
    are used as they are, and such a recipe cannot be written to a file.

    Raises:
        RecipeError: A field is unknown or cannot be used; the message shows its value and says what to do.
    """

    method: Annotated[str | InstanceOf[Method], Flag("--method", "NAME")] = "memit-blue"
    """The editing method, with the settings of the model's preset; `factpatch methods` lists them."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Flag("--seed", "N", int)] = 0
    """Seed for sampling the contexts, the texts before a prompt."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _explained(error, type(self)) from None

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        """Check what can be checked before the model is loaded."""
        with _about("method"):
            row = self.row
        with _about("settings"):
            with_settings(row, self.settings)
        if self.variant is not None and not isinstance(self.method, str):
            raise RecipeError(
                "variant",
                f"variant={self.variant!r}: a Method is taken as it is; name a method, or leave the variant out.",
            )
        if isinstance(self.preset, Path):
            with _about("preset"):
                load_preset(self.preset)
        if isinstance(self.corpus, str):
            with _about("corpus"):
                check_corpus(self.corpus)
        if self.dtype is not None or self.device not in (None, "auto"):
            from factpatch.model.loading import check_device, dtype_named

            with _about("dtype"):
                dtype_named(self.dtype)
            with _about("device"):
                if self.device not in (None, "auto"):
                    check_device(str(self.device))
        return self

    @classmethod
    def flag(cls, field: str) -> Flag:
        """How the command line spells a field."""
        return next(item for item in cls.model_fields[field].metadata if isinstance(item, Flag))

    @property
    def row(self) -> Method:
        """The method, before settings are replaced."""
        return method_named(self.method) if isinstance(self.method, str) else self.method

    def check_place(self, lm: LanguageModel) -> None:
        """Raise RecipeError unless a model that is loaded already is as the recipe says."""
        from factpatch.model.loading import dtype_named

        dtype = dtype_named(self.dtype)
        if dtype is not None and dtype != lm.dtype:
            raise RecipeError(
                "dtype", f"dtype={self.dtype!r}: {lm.name} is loaded in {lm.dtype}; load it as asked for."
            )
        if self.device not in (None, "auto") and str(self.device).partition(":")[0] != lm.device.type:
            raise RecipeError("device", f"device={self.device!r}: {lm.name} is on {lm.device}; load it there.")

    def to_dict(self, defaults: bool = False) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON-able data with paths that hold in every folder.

        Args:
            defaults: Whether to return the other fields too.

        Raises:
            ValueError: A field holds what cannot be written to a file, such as a `Method`.
        """
        record: dict[str, Any] = {}
        for name, about in sorted(type(self).model_fields.items()):
            value = getattr(self, name)
            if not defaults and value == about.get_default(call_default_factory=True):
                continue
            if isinstance(value, (Method, Preset, Corpus)):
                raise ValueError(
                    f"{name}: holds a {type(value).__name__}, which cannot be written to a file; use a name or a path."
                )
            place = isinstance(value, (str, Path)) and name in ("preset", "corpus") and Path(value).exists()
            record[name] = os.path.abspath(value) if place else list(value) if isinstance(value, tuple) else value
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; also reads the names of session files before format 2."""
        older = {"layers": "critical_layers"}
        return cls(**{older.get(name, name): value for name, value in record.items() if value is not None})


def _explained(error: ValidationError, of: type[Recipe]) -> RecipeError:
    """The first of pydantic's errors, reworded."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "recipe"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return cause
    if first["type"] == "extra_forbidden":
        known = [*of.model_fields, "contexts", "second_moments", "optimize", "written_dtype", "progress"]
        return RecipeError(name, f"{name}: neither a recipe nor an editor has this field.{suggestion(name, known)}")
    if isinstance(cause, ValueError):
        return RecipeError(name, str(cause))
    message = first["msg"].replace("Input should be greater than 0", "must be positive")
    message = message.replace("Input should be", "must be").rstrip(".")
    return RecipeError(name, f"{name}={first['input']!r}: {message}.")


@dataclass(frozen=True)
class Choice:
    """A recipe completed for one model from its preset."""

    method: Method
    critical_layers: tuple[int, ...]
    preset: Preset
    origin: dict[str, Any] | None
    """The preset's model, the variant and whether the preset is assumed; None if nothing is from a preset."""
    underived: bool
    """Whether to derive the solver's settings from the model's own keys, since its preset has none that fit."""


def choose(recipe: Recipe, lm: LanguageModel) -> Choice:
    """Complete a recipe for a model from its preset; a warning names what is assumed.

    Raises:
        RecipeError: The preset is for another model, it has no such variant, or the model has no such layers.
    """
    with _about("preset"):
        preset = preset_for(lm, recipe.preset)
    with _about("variant"):
        preset.rows(recipe.variant)
    layers = recipe.critical_layers
    if layers is not None:
        with _about("critical_layers"):
            lm.check_layers(layers)
    name = recipe.method if isinstance(recipe.method, str) else None
    own = frozenset[str]() if name is None else own_settings(name)
    numbers = {} if name is None else _without(own, preset.settings(name, recipe.variant))
    # A preset may say nothing of a method's weights, and another model's do not fit; but a variant of that one, named
    # explicitly, is taken literally. Without a second moment nothing can be derived, so the other model's have to do.
    unknown = not any(map(_of_solver, numbers)) or (preset.assumed and recipe.variant is None)
    derivable = name is not None and unknown and recipe.row.solver.reads_corpus
    underived = derivable and not any(map(_of_solver, [*own, *recipe.settings]))
    if underived:
        numbers = {setting: value for setting, value in numbers.items() if not _of_solver(setting)}
    if preset.assumed:
        taken = {setting: value for setting, value in numbers.items() if setting not in recipe.settings}
        _warn_of_assumed(preset, lm, recipe, taken)
    if name is not None and recipe.variant is not None and numbers == _without(own, preset.settings(name)):
        logger.info("the variant %s of the preset changes nothing for %s", recipe.variant, name)
    used = name is not None or layers is None
    effort = _without(own, effort_settings(recipe.effort, recipe.row))
    _tell_of_replaced(recipe, preset, numbers, effort)
    origin = {"model": preset.model, "variant": recipe.variant, "assumed": preset.assumed}
    if effort:  # earlier versions did not record it
        origin["effort"] = recipe.effort
    layers = tuple(preset.layers_for(lm.num_layers, name, recipe.variant)) if layers is None else layers
    method = with_settings(recipe.row, {**numbers, **effort, **recipe.settings})
    with _about("method"):
        check_spread(method.name, method.spread, layers, lm)
        _check_gates(method, layers, lm)
        if not method.regularizer.of_parts and any(lm.experts(layer) for layer in layers):
            raise ValueError(
                f"method={method.name!r}: {type(method.regularizer).__name__} looks at a whole weight, and a layer of "
                f"{lm.name} has one for each expert. Choose a method without it, such as memit-blue or alphaedit-blue, "
                "or edit the shared expert if there is one (shared_expert=True, --shared-expert)."
            )
    return Choice(
        method=method if lm.architecture.between is None else replace(method, target=method.target.inner),
        critical_layers=layers,
        preset=preset,
        origin=origin if used else None,
        underived=underived,
    )


def _without(own: frozenset[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that a registered method says itself."""
    return {setting: value for setting, value in settings.items() if setting not in own}


def _tell_of_replaced(recipe: Recipe, preset: Preset, numbers: Mapping[str, Any], effort: Mapping[str, Any]) -> None:
    """Warn of the settings of a variant that an effort replaces."""
    if recipe.variant is None or not isinstance(recipe.method, str):
        return
    usual = preset.settings(recipe.method)
    replaced = [
        f"{name}={value} by {effort[name]}"
        for name, value in numbers.items()
        if name in effort and name not in recipe.settings and value not in (usual.get(name), effort[name])
    ]
    if replaced:
        logger.warning(
            "effort='%s' replaces settings of the variant %s, which may need them: %s.",
            recipe.effort, recipe.variant, ", ".join(replaced),
        )  # fmt: skip


def _of_solver(setting: str) -> bool:
    return setting.startswith("solver.")


def shared_expert_of(lm: LanguageModel) -> LanguageModel:
    """The model as one of which the shared expert is edited; RecipeError if it has none."""
    with _about("shared_expert"):
        return lm.with_shared_expert()


def check_spread(name: str, spread: Spread, critical_layers: Sequence[int], lm: LanguageModel) -> None:
    """Raise ValueError if a layer would be written toward the target of another one, and nothing leads there.

    Args:
        name: What messages call the method.
    """
    between = lm.architecture.between
    passing = [step for step in spread.all_steps(critical_layers) if step.layer != step.target_layer]
    if between is not None and passing:
        through, target = passing[0].layer, passing[0].target_layer
        raise ValueError(
            f"method={name!r}: its spread, {spread}, writes layer {through} toward a target at layer {target}. "
            f"{lm.name} ({lm.architecture.model_type}) has {between.what} between the MLP and the residual stream, so "
            "that no share of a target gets from one layer to another. Choose a method that writes each layer toward a "
            "target of its own, such as memit-blue or alphaedit-blue, with spread.together=1; or give one critical "
            "layer."
        )


def _check_gates(method: Method, layers: Sequence[int], lm: LanguageModel) -> None:
    """Raise ValueError if the solver shifts weights that make keys, and a layer has none that it can shift."""
    written = [layer for layer in layers if any(map(makes_keys, method.solver.writes(layer)))]
    if written and lm.quantized:
        raise ValueError(
            f"method={method.name!r}: it replaces neurons, which is not possible beside quantized weights. Edit the "
            "model that it was made from, or choose another method, such as memit-blue."
        )
    if written and not (isinstance(method.target, Target) and isinstance(method.regularizer, Unchanged)):
        raise ValueError(
            f"method={method.name!r}: {type(method.solver).__name__} aims neurons at subjects, whose values have to be "
            f"optimized, and {type(method.regularizer).__name__} would change them. Take a target such as HiddenState, "
            "and no regularizer."
        )
    without = [layer for layer in written if not lm.gated(layer)]
    if without:
        raise ValueError(
            f"method={method.name!r}: it gives each fact a neuron of the MLP, and layer {without[0]} of {lm.name} has "
            "no gate_proj and up_proj, without biases, that alone make its keys. Choose another method, such as "
            "memit-blue."
        )


def _warn_of_assumed(preset: Preset, lm: LanguageModel, recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Log the critical layers and the settings that a model takes from the preset of another one."""
    parts = []
    if recipe.critical_layers is None:
        named = (recipe.method if isinstance(recipe.method, str) else None, recipe.variant)
        there = ", ".join(map(str, preset.layers(*named)))
        parts.append(
            f"critical_layers={preset.layers_for(lm.num_layers, *named)}, scaled from its {there} of "
            f"{preset.match.num_hidden_layers} (critical_layers= or --layers replaces them)"
        )
    if settings:
        numbers = ", ".join(f"{name}={value}" for name, value in settings.items())
        parts.append(f"the settings of {recipe.method}, {numbers} (settings= or --set replaces them)")
    if parts:
        logger.warning(
            "there is no preset for %s; assumed from that of %s, the nearest one: %s. "
            "Measure on a few facts before relying on it, or find settings with factpatch tune.",
            lm.name, preset.model, "; ".join(parts),
        )  # fmt: skip
