"""Places: the number of a weight, and its one name in files."""

from __future__ import annotations

import pytest

from factpatch.model.places import (
    DOWN,
    GATE,
    UP,
    layer_list,
    layer_of,
    name_of,
    order,
    part_of,
    path_at,
    place_named,
    place_of,
)


@pytest.mark.parametrize(("layer", "part", "name"), [(0, DOWN, "0"), (4, GATE, "4-gate"), (31, UP, "31-up")])
def test_a_place_has_one_name(layer: int, part: str, name: str) -> None:
    place = place_of(layer, part)
    assert (layer_of(place), part_of(place), name_of(place), place_named(name)) == (layer, part, name, place)


def test_the_place_of_a_down_projection_is_its_layer() -> None:
    assert [place_of(layer, DOWN) for layer in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["", "04", "4-", "4-down", "-gate", "4-gate-up", "4.gate", "1000000", "٤", "4-GATE", "+4"]
)
def test_no_other_name_is_one(name: str) -> None:
    with pytest.raises(ValueError, match="must be the number of a layer"):
        place_named(name)


def test_places_are_sorted_as_a_forward_pass_comes_to_them() -> None:
    places = [place_of(2, DOWN), place_of(2, UP), place_of(1, DOWN), place_of(3, GATE)]
    assert sorted(places, key=order) == [place_of(1, DOWN), place_of(2, UP), place_of(2, DOWN), place_of(3, GATE)]


def test_what_makes_keys_stands_beside_the_down_projection() -> None:
    assert path_at(place_of(4, GATE), "mlp.down_proj") == "mlp.gate_proj"
    assert path_at(place_of(4, UP), "down_proj") == "up_proj"
    assert path_at(4, "mlp.c_proj") == "mlp.c_proj"


def test_messages_name_places() -> None:
    assert layer_list([4]) == "layer 4"
    assert layer_list([place_of(4, GATE), 8, 4]) == "layers 4, 4-gate, 8"
