"""What a patch file says of its patch: the fields of its JSON, checked once, where the file is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    ValidationError,
    model_validator,
)

from factpatch.facts import Fact
from factpatch.model.places import layer_list, layer_of, name_of, place_named
from factpatch.support.validation import explained
from factpatch.support.words import quoted

_MOST_FIELDS = 10_000
_MOST_PARTS = 3  # no form of a shift has more tensors


def _fact(record: Any) -> Fact:
    if not isinstance(record, dict):
        raise ValueError("must be an object with the fields of a fact")
    try:
        return Fact.from_dict(record)
    except (TypeError, ValueError) as error:  # pydantic would pass a TypeError on
        raise ValueError(str(error).rstrip(".")) from error


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class ShrunkLayer(_Checked):
    """What is left of a layer in a patch that was shrunk."""

    rank: NonNegativeInt
    error: float


class Shrunk(_Checked):
    """How a patch was shrunk."""

    layers: dict[str, ShrunkLayer] = {}


class Settings(_Checked):
    """The settings that are read again; a method may have any others."""

    chat: bool = False
    precision: str | None = None
    composed: list[Settings] = Field([], min_length=1)
    """The settings of the patches that were composed, if they differ."""
    shrunk: Shrunk = Shrunk()


class Config(_Checked):
    """The fields of a model's config that are read by their name; a family may have any others."""

    name_or_path: str | None = Field(None, alias="_name_or_path")
    model_type: str | None = Field(None, max_length=100)


def _with_fields_of(model: type[_Checked]) -> AfterValidator:
    """Check the fields that `model` has, and leave the whole as it is."""

    def check(record: dict[str, Any]) -> dict[str, Any]:
        try:
            model.model_validate(record)
        except ValidationError as error:
            raise ValueError(str(explained(error)).rstrip(".")) from None
        return record

    return AfterValidator(check)


Place = Annotated[int, BeforeValidator(lambda name: place_named(str(name)))]
DtypeName = Literal["float64", "float32", "bfloat16", "float16"]


class BatchDescription(_Checked):
    """A batch without its shifts; see `factpatch.patch.batch.Batch`."""

    facts: list[Annotated[Fact, PlainValidator(_fact)]]
    before: dict[Place, str] = Field(min_length=1)
    after: dict[Place, str]
    edits: list[NonNegativeInt] = []
    conditioned: bool = False

    @model_validator(mode="after")
    def _agrees(self) -> BatchDescription:
        if self.after and self.after.keys() != self.before.keys():
            raise ValueError(
                f"before holds {layer_list(sorted(self.before))} and after {layer_list(sorted(self.after))}"
            )
        if self.edits and sum(self.edits) != len(self.facts):
            raise ValueError(f"edits={quoted(self.edits)} do not count the {len(self.facts)} facts")
        return self


class Description(_Checked):
    """The fields of `factpatch.Patch`, with dtypes by name and batches without shifts; and of the file itself."""

    format: int
    sha256: str
    """The checksum that the file states."""
    method: str
    settings: Annotated[dict[str, Any], Field(max_length=_MOST_FIELDS), _with_fields_of(Settings)]
    config: Annotated[dict[str, Any], Field(max_length=_MOST_FIELDS), _with_fields_of(Config)]
    versions: dict[str, str]
    seed: int
    weight_dtype: DtypeName
    written_dtype: DtypeName
    batches: list[BatchDescription] = Field(min_length=1)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Description:
        """Check a document; a ValueError or a TypeError names the first field that cannot be used."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise explained(error) from None

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending."""
        return tuple(sorted({layer_of(place) for batch in self.batches for place in batch.before}))

    def check_names(self, names: Sequence[str]) -> None:
        """Raise ValueError unless tensors of these names, batch.layer.part, may be the shifts of the batches.

        Done before any is read: a small file may hold a million of them.
        """
        expected = {f"{index}.{name_of(it)}" for index, batch in enumerate(self.batches) for it in batch.before}
        if len(names) > _MOST_PARTS * len(expected):
            raise ValueError(f"it holds {len(names)} tensors for {len(expected)} shifts.")
        found = {name.rpartition(".")[0] for name in names}
        if found != expected:
            raise ValueError(
                f"its tensors are {quoted(sorted(found - expected))} beyond the batches of its description, and lack "
                f"{quoted(sorted(expected - found))}."
            )


def asked_in_chat(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of edits in a chat; of a composed patch, whether all are."""
    return all(part.get("chat", False) for part in settings.get("composed", [settings]))


def contexts_in(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The contexts in settings of edits; of a composed patch, those of all parts."""
    parts = settings.get("composed", [settings])
    return tuple(dict.fromkeys(context for part in parts for context in part.get("contexts", ())))
