"""The four independent choices that make an editing method: target, spread, solver, regularizer."""

from factpatch.strategies.regularizer import Regularizer, Unchanged
from factpatch.strategies.solver import NullSpace, Ridge, Solver
from factpatch.strategies.spread import Boundary, Each, Even, First, Spread, Step
from factpatch.strategies.target import HiddenState, Target

__all__ = [
    "Boundary",
    "Each",
    "Even",
    "First",
    "HiddenState",
    "NullSpace",
    "Regularizer",
    "Ridge",
    "Solver",
    "Spread",
    "Step",
    "Target",
    "Unchanged",
]
