"""The table of named methods: four strategies and a citation each. BLUE is a row with another spread."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from factpatch.strategies import (
    AttentionAndMlp,
    Boundary,
    CapSingularValues,
    Even,
    HiddenState,
    KeepLargest,
    NullSpace,
    Regularizer,
    Ridge,
    Solver,
    Spread,
    SquareRoot,
    Target,
    Unchanged,
)
from factpatch.suggestions import suggestion


@dataclass(frozen=True)
class Method:
    """An editing method: which value is wanted, which layers are written, how a layer is solved, what is kept."""

    name: str
    target: Target
    spread: Spread
    solver: Solver
    regularizer: Regularizer = field(default_factory=Unchanged)
    source: str = ""


_memit = Method("memit", HiddenState(), Even(), Ridge(), source="MEMIT, arXiv:2210.07229")
_alphaedit = Method("alphaedit", HiddenState(), Even(), NullSpace(), source="AlphaEdit, arXiv:2410.02355")
_rect = replace(_memit, name="rect", regularizer=KeepLargest(), source="RECT, arXiv:2401.04700")
_prune = replace(_memit, name="prune", regularizer=CapSingularValues(), source="PRUNE, arXiv:2405.16821")
_pmet = Method("pmet", AttentionAndMlp(), SquareRoot(), Ridge(), source="PMET, arXiv:2308.08742")


def with_blue(method: Method) -> Method:
    """The same method with the boundary layer update. Source: BLUE, arXiv:2502.03748."""
    source = f"{method.source}; BLUE, arXiv:2502.03748"
    return replace(method, name=f"{method.name}-blue", spread=Boundary(), source=source)


METHODS: dict[str, Method] = {
    method.name: method for plain in (_memit, _alphaedit, _rect, _prune, _pmet) for method in (plain, with_blue(plain))
}


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        ValueError: there is no such method; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}.{suggestion(name, METHODS)}")
    return METHODS[name]
