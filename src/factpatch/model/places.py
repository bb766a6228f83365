"""Places: which weight of a model is meant, as one number.

Nearly everything that is edited is a layer's down-projection, so its place is the number of the layer. An MLP with
gates makes its keys of two more weights, σ(G x) ⊙ (U x); their places are the layer's number beyond a stride. So
whatever holds weights, shifts or hashes by layer holds these as well.
"""

from __future__ import annotations

from collections.abc import Collection

_STRIDE = 1_000_000  # no model has as many layers
DOWN, GATE, UP = "down", "gate", "up"
_PARTS = (DOWN, GATE, UP)
_MODULES = {GATE: "gate_proj", UP: "up_proj"}
"""As transformers calls them in the families that have them apart, beside `down_proj`."""


def place_of(layer: int, part: str) -> int:
    """The place of a layer's down-projection, or of what makes its keys: `gate` or `up`."""
    return layer + _STRIDE * _PARTS.index(part)


def layer_of(place: int) -> int:
    """The layer that a place is in."""
    return place % _STRIDE


def part_of(place: int) -> str:
    """Which of a layer's weights a place is."""
    return _PARTS[place // _STRIDE]


def makes_keys(place: int) -> bool:
    """Whether a place is a weight that makes keys.

    Seen as (d_value, d_key), as all edited weights are, it is the transpose of what a down-projection would be: its
    inputs have d_value dimensions.
    """
    return place >= _STRIDE


def order(place: int) -> tuple[int, int]:
    """A key to sort places by, in the order in which a forward pass comes to them: gate, up, down."""
    return layer_of(place), place if makes_keys(place) else len(_PARTS) * _STRIDE


def path_at(place: int, down_projection: str) -> str:
    """The path from a block to the module at a place, given that to the down-projection."""
    if not makes_keys(place):
        return down_projection
    parent, dot, _ = down_projection.rpartition(".")
    return f"{parent}{dot}{_MODULES[part_of(place)]}"


def name_of(place: int) -> str:
    """What files and messages call a place: `4`, or `4-gate`."""
    return f"{layer_of(place)}-{part_of(place)}" if makes_keys(place) else str(place)


def place_named(name: str) -> int:
    """The inverse of `name_of`; ValueError for any other name, so that no place has two."""
    digits, _, part = name.partition("-")
    if digits.isascii() and digits.isdecimal() and len(digits) < len(str(_STRIDE)) and part in ("", *_MODULES):
        place = place_of(int(digits), part or DOWN)
        if name_of(place) == name:
            return place
    raise ValueError("must be the number of a layer")


def layer_list(places: Collection[int]) -> str:
    """Places as messages name them: `layer 4`, `layers 4, 8`, `layers 4, 4-gate, 8`."""
    if not places:
        return "no layers"
    names = ", ".join(map(name_of, sorted(places, key=lambda place: (layer_of(place), place))))
    return f"layer {names}" if len(places) == 1 else f"layers {names}"
