"""Settings of a solver that are derived from a model's own keys."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.models import tiny

from factpatch.model.findings import Findings
from factpatch.model.precision import precision_for
from factpatch.presets.preset import load_presets
from factpatch.statistics.prepared import Prepared
from factpatch.strategies.solver import Ridge
from factpatch.values.contexts import BARE

LAYERS = [1, 2]


def test_derived_settings_are_kept_by_all_that_they_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    torch.manual_seed(0)
    moments = {layer: torch.eye(lm.d_key, dtype=torch.float64) * (layer + 1) for layer in LAYERS}
    preset = next(one for one in load_presets() if one.shipped_corpus)
    kept = Prepared(lm, Ridge(norm_weight=3), LAYERS, preset, precision_for(lm), moments=dict(moments), underived=True)
    kept.findings = Findings(lm, tmp_path)
    derived = replace(kept, findings=None, moments=dict(moments))
    for prepared in (kept, derived):  # which take the moments out of their dictionaries
        prepared.read(lambda: (BARE,))
    assert kept.solver == derived.solver != Ridge(norm_weight=3)

    def refuse(*_: object) -> Ridge:
        raise AssertionError("derived again")

    monkeypatch.setattr(Ridge, "scaled", refuse)
    again = replace(kept, solver=Ridge(norm_weight=3), moments=dict(moments), underived=True)
    again.read(lambda: (BARE,))
    assert again.solver == kept.solver
    other = {**moments, 1: moments[1] * 2}
    for changed in (replace(again, moments=other), replace(again, moments=dict(moments), layers=[1])):
        changed.solver, changed.underived = Ridge(norm_weight=3), True
        with pytest.raises(AssertionError, match="derived again"):
            changed.read(lambda: (BARE,))
    otherwise = replace(again, solver=Ridge(norm_weight=4), moments=dict(moments), underived=True)
    asked = replace(again, solver=Ridge(norm_weight=3), moments=dict(moments), underived=True)
    for changed, contexts in ((otherwise, (BARE,)), (asked, (BARE, "So {}"))):
        with pytest.raises(AssertionError, match="derived again"):
            changed.read(partial(tuple, contexts))
