"""Settings for a model that nobody has tuned: found by measuring edits of probe facts."""

from __future__ import annotations

from factpatch.tuning.candidates import Candidate, windows
from factpatch.tuning.result import Tuning
from factpatch.tuning.search import tune
from factpatch.tuning.trial import Trial, Workbench

__all__ = ["Candidate", "Trial", "Tuning", "Workbench", "tune", "windows"]
