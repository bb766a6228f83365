"""What is given back to a corrupted run: one row for each kind of restoration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from factpatch.suggestions import suggestion

PUBLISHED_WINDOW, PUBLISHED_LAYERS = 10, 48
"""ROME restores the MLPs or the attentions of 10 layers of GPT2-XL, which has 48 (arXiv:2202.05262, section 2.2)."""


@dataclass(frozen=True)
class Restoration:
    """What one run is given at one token, beside its corrupted subject.

    Attributes:
        start: The last layer whose output is known beforehand, so that it need not run; -1 if all run.
        state: Whether the token's output of layer `start` is the clean one.
        site: The module whose outputs at this token are given: the name of a method of `LanguageModel`.
        layers: Of which layers.
        clean: Whether they are those of the clean run, or those of the corrupted one.
    """

    start: int
    state: bool = False
    site: str | None = None
    layers: range = range(0)
    clean: bool = True

    def __post_init__(self) -> None:
        if not self.state and not self.layers:
            raise ValueError(f"layers={self.layers!r}: without a state, name the layers whose outputs are given.")


@dataclass(frozen=True)
class Kind:
    """A kind of restoration.

    Attributes:
        about: What is restored, in words.
        at: From a layer, the number of layers and the window to the restoration.
        site: The module that it concerns, if any.
    """

    about: str
    at: Callable[[int, int, int], Restoration]
    site: str | None = None


def window_around(layer: int, layers: int, window: int) -> range:
    """The layers from ⌊window / 2⌋ below `layer` on, `window` of them, as far as they exist. Source: ROME's code."""
    return range(max(0, layer - window // 2), min(layers, layer + (window + 1) // 2))


def scaled_window(layers: int) -> int:
    """The published window, scaled to a model's depth."""
    return max(1, round(PUBLISHED_WINDOW * layers / PUBLISHED_LAYERS))


def _state(layer: int, layers: int, window: int) -> Restoration:
    return Restoration(layer, state=True)


def _window_of(site: str) -> Kind:
    def at(layer: int, layers: int, window: int) -> Restoration:
        within = window_around(layer, layers, window)
        return Restoration(within.start - 1, site=site, layers=within)

    return Kind(f"{site} outputs around a layer", at, site)


def _severed(site: str) -> Kind:
    def at(layer: int, layers: int, window: int) -> Restoration:
        return Restoration(layer, state=True, site=site, layers=range(layer + 1, layers), clean=False)

    return Kind(f"hidden state, the token's later {site} outputs kept corrupted", at, site)


KINDS: Mapping[str, Kind] = {
    "states": Kind("hidden state behind a layer", _state),
    "mlp": _window_of("mlp"),
    "attention": _window_of("attention"),
    "severed-mlp": _severed("mlp"),
    "severed-attention": _severed("attention"),
}
"""By name. Source: ROME (arXiv:2202.05262), sections 2.1 and 2.2; the last two, its Figure 3."""
PUBLISHED = ("states", "mlp", "attention")
"""Those of the paper's Figure 1."""


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ValueError unless there are such kinds, at least one, each named once."""
    if not kinds:
        raise ValueError(f"kinds=[]: name at least one of {', '.join(KINDS)}.")
    for index, kind in enumerate(kinds):
        if kind not in KINDS:
            raise ValueError(f"kinds: no such kind as {kind!r}.{suggestion(kind, list(KINDS))}")
        if kind in kinds[:index]:
            raise ValueError(f"kinds: {kind!r} is named twice; name each kind once.")


def check_window(window: int, layers: int) -> None:
    """Raise ValueError unless so many layers can be restored at once."""
    if not 1 <= window <= layers:
        raise ValueError(f"window={window}: give a number of layers from 1 to {layers}.")
