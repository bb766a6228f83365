"""The four independent choices that make an editing method: target, spread, solver, regularizer."""

from factpatch.strategies.memory import Memory
from factpatch.strategies.regularizer import CapSingularValues, KeepLargest, Regularizer, SparePrincipal, Unchanged
from factpatch.strategies.solver import BoundedRidge, Neurons, Normalized, NullSpace, Ridge, Solver, Whitened
from factpatch.strategies.spread import Boundary, Each, Even, First, InTurn, Spread, SquareRoot, Step
from factpatch.strategies.target import (
    AnchoredMlp,
    AnchoredNorm,
    AnswerGradients,
    AttentionAndMlp,
    HiddenState,
    MlpOutput,
    Silence,
    Target,
    Wanted,
)

__all__ = [
    "AnchoredMlp",
    "AnchoredNorm",
    "AnswerGradients",
    "AttentionAndMlp",
    "Boundary",
    "BoundedRidge",
    "CapSingularValues",
    "Each",
    "Even",
    "First",
    "HiddenState",
    "InTurn",
    "KeepLargest",
    "Memory",
    "MlpOutput",
    "Neurons",
    "Normalized",
    "NullSpace",
    "Regularizer",
    "Ridge",
    "Silence",
    "Solver",
    "SparePrincipal",
    "Spread",
    "SquareRoot",
    "Step",
    "Target",
    "Unchanged",
    "Wanted",
    "Whitened",
]
