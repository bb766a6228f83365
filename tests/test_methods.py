"""Settings by dotted name."""

from __future__ import annotations

import pytest

from factpatch import METHODS
from factpatch.methods import parse_assignments, settings_of, with_settings


def test_text_is_read_as_the_type_of_the_field() -> None:
    method = with_settings(METHODS["memit"], {"solver.weight": "1e-1", "target.steps": "30"})
    assert method.solver.weight == 0.1  # type: ignore[attr-defined]
    assert method.target.steps == 30
    assert METHODS["memit"].target.steps == 25


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("solver.wieght", 1, "Did you mean 'weight'"),
        ("sovler.weight", 1, "Did you mean 'solver'"),
        ("weight", 1, "strategy.field"),
        ("spread.share", 1, "which has no field 'share'"),
        ("target.steps", "2.5", "valid integer"),
        ("target.steps", 0, "must be positive"),
        ("solver.weight", "nan", "must be positive"),
    ],
)
def test_wrong_settings_are_refused_with_a_suggestion(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(METHODS["memit"], {name: value})


def test_an_assignment_needs_an_equals_sign() -> None:
    assert parse_assignments(["a.b=1", "c.d = x=y "]) == {"a.b": "1", "c.d": "x=y"}
    with pytest.raises(ValueError, match=r"strategy\.field=value"):
        parse_assignments(["solver.weight"])


def test_resolved_settings_name_every_strategy_with_its_fields() -> None:
    resolved = settings_of(METHODS["alphaedit-blue"])
    assert resolved["spread"] == {"class": "Boundary"}
    assert resolved["solver"] == {"class": "NullSpace", "threshold": 0.02, "l2": 10.0}
    assert resolved["target"]["class"] == "HiddenState"


def test_a_blue_row_is_its_plain_row_with_another_spread() -> None:
    for name, blue in METHODS.items():
        if name.endswith("-blue"):
            plain = METHODS[name.removesuffix("-blue")]
            assert (blue.target, blue.solver, blue.regularizer) == (plain.target, plain.solver, plain.regularizer)
            assert type(blue.spread) is not type(plain.spread)
