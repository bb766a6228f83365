"""A preset from what a search has found."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any

from factpatch.corpus import corpus_from
from factpatch.methods import METHODS
from factpatch.presets import Match, Preset, preset_for
from factpatch.settings import settings_of
from factpatch.tuning.candidates import Candidate
from factpatch.tuning.trial import Workbench

DIGITS = 3
"""Of a number that was derived."""


def preset_from(bench: Workbench, chosen: Candidate, tokens: int, source: str) -> Preset:
    """A preset with a row for every method.

    The method that was searched has what was chosen. The others are given the same critical layers and value
    optimization, and weights that write the same share of a residual (`Solver.scaled`): that is derived, not measured.
    """
    rows = {}
    for name, method in METHODS.items():
        solver = bench.resolve(chosen, tokens, method).solver
        settings = settings_of(replace(method, solver=solver))["solver"]
        rows[name] = {f"solver.{field}": _rounded(value) for field, value in settings.items() if field != "class"}
    known: dict[str, Any] = {field.name: getattr(bench.lm.config, field.name, None) for field in fields(Match)}
    match = Match(**known)
    return Preset(
        model=PurePath(bench.lm.name).name or "model",
        match=match,
        critical_layers=list(chosen.critical_layers),
        source=source,
        corpus_tokens=tokens,
        # The text that the numbers rest on, if the package has it and it is good enough for this model.
        shipped_corpus=preset_for(bench.lm).shipped_corpus and bench.corpus.identity == corpus_from(None).identity,
        common=dict(chosen.target),
        methods=rows,
    )


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
