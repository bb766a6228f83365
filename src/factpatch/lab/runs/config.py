"""What a run edits and measures: the fields of its configuration file, each checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError, ValidationInfo
from pydantic import field_validator as validates

from factpatch.evaluation.budget import check_limits
from factpatch.evaluation.capability import LIMIT
from factpatch.evaluation.tasks import task_named
from factpatch.lab.rivals.rival import RIVALS, Rival
from factpatch.methods import METHODS, Method, one_named, with_settings
from factpatch.recipe import MethodFields, ModelFields, Recipe, Section
from factpatch.support.words import steerless, suggestion


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the file, the field and its value."""


class MethodConfig(MethodFields):
    """A method, and what differs from its preset."""

    name: str
    """One of `factpatch.METHODS`, or a rival: one of `factpatch.lab.rivals.rival.RIVALS`."""
    label: str = ""
    """What tables call it; its name by default. Two rows of a run need two labels."""
    mend: NonNegativeInt = 0
    """How many times to edit again, after the last batch, the facts that the model does not hold; see `Editor.lost`."""

    def model_post_init(self, context: Any) -> None:
        known: dict[str, Method | Rival] = {**METHODS, **RIVALS}
        found = one_named(self.name, known)
        if not isinstance(found, Rival):
            with_settings(found, self.settings)
        elif self.name in METHODS:
            raise ValueError(f"name={self.name!r}: this is a rival's name too; give the method of your own another")
        else:
            self._check_rival(found)
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def _check_rival(self, rival: Rival) -> None:
        rival.with_settings(self.settings)
        for field in ("variant", "effort", "remember_keys", "mend"):
            if (value := getattr(self, field)) != type(self).model_fields[field].default:
                raise ValueError(f"{field}={value!r}: {self.name} is no editing method, and has none; leave it out")

    @property
    def rival(self) -> Rival | None:
        """The rival of this name, with its default settings; None for an editing method."""
        return RIVALS.get(self.name)


class DatasetConfig(Section):
    """Facts to edit."""

    facts: str
    """A file of facts, or the name of a published one."""
    name: str = ""
    """What tables call it; the file's stem by default."""
    skip: NonNegativeInt = 0
    """How many facts to leave out at the beginning."""
    limit: PositiveInt | None = None
    """How many facts to edit; all by default."""
    sample: bool = False
    """Whether to draw them at random, with the run's seed, instead of taking the first ones."""
    distinct: bool = False
    """Whether to leave out facts that ask what an earlier one asks: a batch cannot hold both."""
    skip_unusable: bool = False
    """Whether to skip records that are no facts, such as prompts without their subject, instead of refusing."""
    batch_size: PositiveInt | None = None
    """Facts in a batch; the run's by default."""

    def model_post_init(self, context: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.facts).stem)


Sampling = Literal["top-k", "greedy"]
T = TypeVar("T")


def _different(what: str, values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"a {what} is given twice")
    return values


def _in_a_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class TextConfig(Section):
    """Texts that the edited model writes, for fluency and consistency."""

    facts: PositiveInt = 100
    """How many facts, from the first on, have their generation prompts continued."""
    tokens: PositiveInt = 100
    """New tokens in each text."""
    sampling: Annotated[tuple[Sampling, ...], BeforeValidator(_in_a_tuple)] = Field(default=("top-k",), min_length=1)
    """As published (from the five most probable tokens), or the most probable one; a list for both."""
    references: str | None = None
    """What consistency is measured against: a folder with attribute_snippets.json, tfidf_vocab.json and idf.npy, or
    `demo` for the small set that the package ships for its own facts. By default the published files, if they were
    fetched; without them consistency is missing."""

    @validates("sampling")
    @classmethod
    def _samplings_differ(cls, sampling: tuple[Sampling, ...]) -> tuple[Sampling, ...]:
        return _different("sampling", sampling)


class CapabilityConfig(Section):
    """Tasks that an edit should not touch."""

    data: Path
    """The folder of the task files."""
    tasks: tuple[str, ...] = ("sst2", "mrpc", "mmlu", "rte", "cola", "nli")
    limit: PositiveInt | None = LIMIT
    """Items of each task; null for all."""
    every: PositiveInt | None = None
    """Measure each time this many facts have been edited, and at the end; only at the end by default."""

    @validates("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for name in tasks:
            task_named(name)
        return tasks


class CurveConfig(Section):
    """What is measured on the way, so that a long session shows what it forgets, and when."""

    at: PositiveInt | tuple[PositiveInt, ...]
    """Each time this many facts have been edited; or a list: as soon as so many have been. And always at the end."""
    facts: PositiveInt = 100
    """How many are asked about: of the facts in force that many first ones, middle ones and last ones."""
    generation: bool = True
    """Whether the model also continues their prompts freely, which shows whether they are said."""

    def due(self, before: int, edits: int) -> bool:
        """Whether a batch that brought the number of edits from `before` to `edits` reached a point of the curve."""
        if isinstance(self.at, int):
            return edits // self.at > before // self.at
        return any(before < point <= edits for point in self.at)


class DriftConfig(Section):
    """Hidden states of factual prompts, before and after."""

    prompts: str
    """A file in the format of known_1000.json, or the name of a published one."""
    limit: int = Field(default=1000, ge=2)


class EvaluateConfig(Section):
    """What is measured, and when. The facts themselves are always asked at the end."""

    written: bool = True
    """Whether each batch is asked right after it was written, too, so that forgetting shows."""
    generation: bool = True
    """Whether the model also answers freely."""
    probes: bool = False
    """Whether the facts are also asked negated, reversed, in a choice and with their ripples, before and at the end."""
    perplexity: bool | Path = True
    """On the text that the package ships, or a file's."""
    text: TextConfig | None = None
    capability: CapabilityConfig | None = None
    """Also at the points of the curve, if there is one."""
    curve: CurveConfig | None = None
    """Facts on the way; perplexity, if it is measured, is then measured there too."""
    drift: DriftConfig | None = None


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _from_file(value: Any) -> Any:
    return {"facts": value} if isinstance(value, str) else value


class RunConfig(ModelFields):
    """A run: every method on every dataset with every seed, in sequential batches."""

    model: str
    methods: tuple[Annotated[MethodConfig, BeforeValidator(_named)], ...] = Field(min_length=1)
    datasets: tuple[Annotated[DatasetConfig, BeforeValidator(_from_file)], ...] = Field(min_length=1)
    batch_size: PositiveInt = 100
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    evaluate: EvaluateConfig = EvaluateConfig()
    max_perplexity: float | None = None
    """Stop a row before a batch with which perplexity rises by more percent over the unedited model's; on the text of
    `evaluate.perplexity`, or the shipped one."""
    min_capability: float | None = None
    """Stop a row before a batch that leaves less than this share of the unedited model's accuracy, by likelihood; on
    the tasks of `evaluate.capability`."""

    @property
    def budgeted(self) -> bool:
        """Whether there is a limit to what edits may cost."""
        return self.max_perplexity is not None or self.min_capability is not None

    def recipe(self, method: MethodConfig, seed: int) -> Recipe:
        """What makes the editor of one of the methods, with a seed."""
        parts = ((method, MethodFields), (self, ModelFields))
        fields = {name: getattr(part, name) for part, section in parts for name in section.model_fields}
        return Recipe(method=method.name, seed=seed, **fields)

    @validates("max_perplexity")
    @classmethod
    def _rise_in_range(cls, most: float | None) -> float | None:
        check_limits(most, None)
        return most

    @validates("min_capability")
    @classmethod
    def _share_in_range(cls, least: float | None, info: ValidationInfo) -> float | None:
        check_limits(None, least)
        # Without `evaluate`, that itself is wrong and reported.
        if least is not None and "evaluate" in info.data and info.data["evaluate"].capability is None:
            raise ValueError("it is measured on the tasks of evaluate.capability; give them, or leave this out")
        return least

    @validates("methods")
    @classmethod
    def _labels_differ(cls, methods: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        _check_names("label", [method.label for method in methods])
        return methods

    @validates("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _different("seed", seeds)

    @validates("datasets")
    @classmethod
    def _names_differ(cls, datasets: tuple[DatasetConfig, ...]) -> tuple[DatasetConfig, ...]:
        _check_names("name", [dataset.name for dataset in datasets])
        return datasets


def _check_names(field: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice; give each a {field} of its own")
    unusable = [name for name in names if not name.strip(" .") or set(name) & set('/\\:*?"<>|')]
    if unusable:
        raise ValueError(f"{unusable[0]!r}: is used as the name of a folder; choose another {field}")
    steering = [name for name in names if set(name) & set("\n\t") or steerless(name) != name]
    if steering:
        raise ValueError(f"{steering[0]!r}: holds a control character or a hidden one; choose another {field}")


def load_config(path: str | Path) -> RunConfig:
    """Read a configuration from YAML. Relative paths in it start from the current directory.

    A run identifies its inputs by their contents, so they may be elsewhere when it resumes.

    Raises:
        ConfigError: It cannot be read, or a field is missing, unknown or wrong.
    """
    path = Path(path)
    try:
        record = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    return config_from(record, str(path))


_SECTIONS: Mapping[str, type[Section]] = {
    "methods": MethodConfig,
    "datasets": DatasetConfig,
    "evaluate": EvaluateConfig,
    "text": TextConfig,
    "capability": CapabilityConfig,
    "curve": CurveConfig,
    "drift": DriftConfig,
}
"""What has fields of its own, by the name of the field that holds it."""


def config_from(record: Any, name: str = "config") -> RunConfig:
    """Check a configuration that is given as data.

    Raises:
        ConfigError: A field is missing, unknown or wrong.
    """
    try:
        return RunConfig.model_validate(record)
    except ValidationError as error:
        errors = error.errors()
        # A field that is unknown may be one that is missing, misspelled.
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "extra_forbidden":
            inside = next((part for part in reversed(first["loc"][:-1]) if part in _SECTIONS), None)
            known = RunConfig if inside is None else _SECTIONS[str(inside)]
            said = f"there is no such field.{suggestion(first['loc'][-1], known.model_fields)}".rstrip(".")
        given = "" if first["type"] == "missing" else f" is {first['input']!r}"
        raise ConfigError(f"{name}: {field}{given}: {said}.") from error
