"""The four independent choices that make an editing method: target, spread, solver, regularizer."""

from factpatch.strategies.memory import Memory
from factpatch.strategies.regularizer import CapSingularValues, KeepLargest, Regularizer, SparePrincipal, Unchanged
from factpatch.strategies.solver import NullSpace, Ridge, Solver
from factpatch.strategies.spread import Boundary, Each, Even, First, Spread, SquareRoot, Step
from factpatch.strategies.target import AnchoredNorm, AttentionAndMlp, HiddenState, Target

__all__ = [
    "AnchoredNorm",
    "AttentionAndMlp",
    "Boundary",
    "CapSingularValues",
    "Each",
    "Even",
    "First",
    "HiddenState",
    "KeepLargest",
    "Memory",
    "NullSpace",
    "Regularizer",
    "Ridge",
    "Solver",
    "SparePrincipal",
    "Spread",
    "SquareRoot",
    "Step",
    "Target",
    "Unchanged",
]
