"""Change what an open-weight language model knows, without retraining: facts in, a small reversible patch out."""

from factpatch.data import load_facts
from factpatch.editor import Editor
from factpatch.evaluation.verify import Verification, verify
from factpatch.facts import Fact, Neighbor
from factpatch.methods import METHODS, Method
from factpatch.model.architectures import Architecture, register_architecture
from factpatch.patch import Patch
from factpatch.second_moment import SecondMoment
from factpatch.strategies import Boundary, Each, Even, First, HiddenState, NullSpace, Ridge, Unchanged

__all__ = [
    "METHODS",
    "Architecture",
    "Boundary",
    "Each",
    "Editor",
    "Even",
    "Fact",
    "First",
    "HiddenState",
    "Method",
    "Neighbor",
    "NullSpace",
    "Patch",
    "Ridge",
    "SecondMoment",
    "Unchanged",
    "Verification",
    "load_facts",
    "register_architecture",
    "verify",
]
__version__ = "0.1.0"
