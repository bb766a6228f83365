"""A sample of `python -m tests.hostile`, which tries much more of the same kinds in minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.hostile.common import Place, Tally, steering, watched
from tests.hostile.parts import PARTS, tried

SAMPLE = (
    ("patches:accidents", 0.005),
    ("patches:documents", 0.01),
    ("patches:shifts", 0.05),
    ("patches:headers", 0.001),
    ("facts:records+named", 0.01),
    ("sessions:journals", 0.005),
    ("security:cards", 0.1),
    ("overflow:weights+targets", 0.03),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("part", "scale"),
    [
        pytest.param(part, scale, id=part, marks=[pytest.mark.long] if part == "sessions:journals" else [])
        for part, scale in SAMPLE
    ],
)
def test_a_sample_of_hostile_input_shows_no_defect(place: Place, part: str, scale: float) -> None:
    place.scale = scale
    tally = tried(part, place)
    assert tally.defects == {}
    assert tally.total()["tried"] == tally.total()["clear"] + tally.total()["valid"] > 3


def test_every_section_is_there() -> None:
    from importlib import import_module

    for part, sections in PARTS.items():
        module = import_module(f"tests.hostile.{part}")
        assert all(callable(getattr(module, section)) for section in (*sections, "bench")), part


def test_a_defect_is_counted_with_its_shortest_input() -> None:
    tally = Tally()
    tally.found("group", "wrong", "a longer input")
    tally.found("group", "wrong", "input")
    tally.found("group", None, valid=True)
    assert tally.total() == {"tried": 3, "defect": 2, "valid": 1}
    assert tally.defects == {"wrong": {"count": 2, "what": "group: input"}}


def test_time_and_memory_are_measured() -> None:
    with watched(10) as seen:
        held = torch.ones(40_000_000)
    assert held.nbytes <= seen["growth"] < 1 << 30
    assert 0 < seen["seconds"] < 10
    assert steering("a\x1bb\u202e\n\u00e9") == ["0x1b", "0x202e"]
