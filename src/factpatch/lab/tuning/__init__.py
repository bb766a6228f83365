"""Settings for a model that nobody has tuned: found by measuring edits of probe facts."""

from __future__ import annotations

from factpatch.lab.tuning.candidates import Candidate, windows
from factpatch.lab.tuning.directory import Tuning
from factpatch.lab.tuning.search import tune
from factpatch.lab.tuning.trial import Trial, Workbench

__all__ = ["Candidate", "Trial", "Tuning", "Workbench", "tune", "windows"]
