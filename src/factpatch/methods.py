"""The table of named methods: four strategies and a citation each. BLUE is a row with another spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from factpatch.strategies import (
    AnchoredNorm,
    AnswerGradients,
    AttentionAndMlp,
    Boundary,
    BoundedRidge,
    CapSingularValues,
    Each,
    Even,
    HiddenState,
    InTurn,
    KeepLargest,
    Neurons,
    Normalized,
    NullSpace,
    Regularizer,
    Ridge,
    Solver,
    SparePrincipal,
    Spread,
    SquareRoot,
    Target,
    Unchanged,
    Wanted,
    Whitened,
)
from factpatch.strategies.target import PUBLISHED
from factpatch.support.words import named, suggestion

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """An editing method: which value is wanted, which layers are written, how a layer is solved, what is kept."""

    name: str
    target: Wanted
    spread: Spread
    solver: Solver
    regularizer: Regularizer = field(default_factory=Unchanged)
    source: str = ""

    @property
    def optimized(self) -> Target:
        """The target as a value optimization; a ValueError says that the method has none."""
        if not isinstance(self.target, Target):
            raise ValueError(f"method={self.name!r}: it follows gradients, so it optimizes no values.")
        return self.target


_memit = Method("memit", HiddenState(), Even(), Ridge(), source="MEMIT, arXiv:2210.07229")
_alphaedit = Method("alphaedit", HiddenState(), Even(), NullSpace(), source="AlphaEdit, arXiv:2410.02355")
_rect = replace(_memit, name="rect", regularizer=KeepLargest(), source="RECT, arXiv:2401.04700")
_prune = replace(_memit, name="prune", regularizer=CapSingularValues(), source="PRUNE, arXiv:2405.16821")
_pmet = Method("pmet", AttentionAndMlp(), SquareRoot(), Ridge(), source="PMET, arXiv:2308.08742")
# Made for long sessions. The numbers are those published for Llama-3.
_encore = Method(
    "encore", HiddenState(enough_predictions=2), Even(), Ridge(norm_weight=20.0), source="ENCORE, arXiv:2502.01636"
)
_nas = replace(
    _alphaedit, name="alphaedit-nas", target=AnchoredNorm(), source=f"{_alphaedit.source}; NAS, arXiv:2602.02543"
)
_sphere = replace(
    _alphaedit,
    name="alphaedit-sphere",
    regularizer=SparePrincipal(),
    source=f"{_alphaedit.source}; SPHERE, arXiv:2510.01172",
)
_lyaplock = Method("lyaplock", HiddenState(), Even(), BoundedRidge(weight=1000.0), source="LyapLock, arXiv:2505.15702")
_ultraedit = Method("ultraedit", AnswerGradients(), Each(), Normalized(), source="UltraEdit, arXiv:2505.14679")
_neurons = Method(
    "neurons",
    HiddenState(apart=True),
    InTurn(),
    Neurons(),
    source="a neuron for each fact; after T-Patcher, arXiv:2301.09785",
)
_stableedit = Method("stableedit", AnswerGradients(), Each(), Whitened(), source="StableEdit, arXiv:2605.11836")


def with_blue(method: Method) -> Method:
    """The same method with the boundary layer update. Source: BLUE, arXiv:2502.03748."""
    source = f"{method.source}; BLUE, arXiv:2502.03748"
    return replace(method, name=f"{method.name}-blue", spread=Boundary(), source=source)


_PLAIN = (_memit, _alphaedit, _rect, _prune, _pmet, _encore, _nas, _sphere, _lyaplock)
METHODS: dict[str, Method] = {
    **{method.name: method for plain in _PLAIN for method in (plain, with_blue(plain))},
    **{method.name: method for method in (_ultraedit, _stableedit, _neurons)},
}


def method_named(name: str) -> Method:
    """Look a method up; a ValueError suggests the nearest name."""
    return one_named(name, METHODS)


def one_named(name: str, known: Mapping[str, T]) -> T:
    """Look up a method, or what can stand in the place of one; a ValueError suggests the nearest name."""
    try:
        return named(known, name, "method")
    except ValueError as error:
        raise ValueError(f"{error} A method of your own needs `factpatch --methods FILE.py ...`.") from None


STRATEGIES = ("target", "spread", "solver", "regularizer")


@dataclass(frozen=True)
class Effort:
    """How much work the value optimization makes of a fact."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """What replaces those of a preset."""
    short_products: bool = False
    """Whether a float32 model's matrix products are in bfloat16, where the device multiplies so faster."""


# docs/performance.md has the trials.
EFFORTS: dict[str, Effort] = {
    "quick": Effort(
        {
            "target.stride": 0.3,
            "target.steps": 8,
            "target.last_look": False,
            "target.enough_steps": 6,
            "target.enough_margin": 1.0,
            "target.turns": 2,
        },
        short_products=True,
    ),
    "standard": Effort(),
    # As the papers optimize: Adam, 25 evaluations, the bare prompt and generated texts before it.
    "published": Effort(
        {
            "target.contexts": PUBLISHED,
            "target.stride": 0.0,
            "target.steps": 25,
            "target.last_look": True,
            "target.enough_steps": 0,
            "target.enough_margin": 0.0,
            "target.turns": 1,
            "target.shortest": False,
        }
    ),
}


def effort_settings(effort: str, method: Method) -> dict[str, Any]:
    """The settings of an effort that a method has; a ValueError suggests the nearest name."""
    chosen = named(EFFORTS, effort, "effort").settings
    return {name: value for name, value in chosen.items() if has_setting(method, name)}


def with_settings(method: Method, settings: Mapping[str, Any]) -> Method:
    """Return the method with some fields of its strategies replaced.

    Args:
        settings: Values by dotted name; text is read as the field's type, so `1e-1` is a number.

    Raises:
        ValueError: An unknown strategy or field (with a suggestion), or a value of the wrong type or range.
    """
    for name, value in settings.items():
        part, _, field = name.partition(".")
        if part not in STRATEGIES or not field:
            raise ValueError(f"setting {name!r}: write it as strategy.field.{suggestion(part, STRATEGIES)}")
        strategy = getattr(method, part)
        known = [member.name for member in fields(strategy)]
        if field not in known:
            raise ValueError(
                f"setting {name!r}: the {part} of {method.name} is {type(strategy).__name__}, which has no field "
                f"{field!r}.{suggestion(field, known)}"
            )
        listed, reader = _reader(type(strategy), field)  # type: ignore[arg-type]  # a class can be hashed
        if isinstance(value, str) and listed:
            value = [one.strip() for one in value.split(",")]
        try:
            converted = reader.validate_python(value)
            method = replace(method, **{part: replace(strategy, **{field: converted})})
        except ValidationError as error:
            raise ValueError(f"setting {name}={value!r}: {error.errors()[0]['msg']}.") from None
        except ValueError as error:
            raise ValueError(f"setting {name}={value!r}: {error}") from None
    return method


@cache
def _reader(strategy: Any, field: str) -> tuple[bool, TypeAdapter[Any]]:
    """Whether a field holds several values, and what reads it; to make that takes longer than to read many settings."""
    kind = get_type_hints(strategy, include_extras=True)[field]
    return get_origin(kind) is tuple, TypeAdapter(kind)


def has_setting(method: Method, name: str) -> bool:
    """Whether a strategy of the method has the field with this dotted name."""
    part, _, field = name.partition(".")
    return part in STRATEGIES and field in {member.name for member in fields(getattr(method, part))}


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Turn `["solver.weight=5000"]` into a dictionary; an assignment without `=` is a ValueError."""
    settings = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"setting {assignment!r}: write it as strategy.field=value.")
        settings[name.strip()] = value.strip()
    return settings


def settings_of(method: Method) -> dict[str, Any]:
    """The resolved settings of a method as JSON-able data: every strategy with its class and fields."""
    settings = {}
    for part in STRATEGIES:
        strategy = getattr(method, part)
        left_out = {one.name for one in fields(strategy) if one.metadata and getattr(strategy, one.name) == one.default}
        recorded = {name: value for name, value in asdict(strategy).items() if name not in left_out}
        settings[part] = {"class": type(strategy).__name__, **recorded}
    return {"method": method.name, "source": method.source, **settings}


def settings_in(record: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Return all settings by dotted name from what `settings_of` recorded of a method with the same strategies."""
    return {
        f"{part}.{one.name}": record[part].get(one.name, one.default)
        for part in STRATEGIES
        for one in fields(getattr(method, part))
    }
