"""What an edit or its measurement may fail with in such a way that the next one may still succeed."""

from __future__ import annotations

import torch

FAILURES = (ArithmeticError, ValueError, torch.cuda.OutOfMemoryError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""Of one of many edits: a model that collapses, facts or settings that do not fit, too little memory (on whatever
device, see `factpatch.model.memory.in_pieces`), and a matrix that cannot be factored. PyTorch derives the last two from
RuntimeError, which also stands for mistakes of a program and is therefore not among them."""
