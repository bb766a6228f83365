"""Change what an open-weight language model knows, without retraining: facts in, a small reversible patch out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factpatch.data import load_facts
    from factpatch.editor import Editor
    from factpatch.evaluation.verify import Verification, verify
    from factpatch.facts import Fact, Neighbor
    from factpatch.methods import METHODS, Method
    from factpatch.model.architectures import Architecture, register_architecture
    from factpatch.patch.patch import Patch
    from factpatch.session import Session
    from factpatch.statistics.second_moment import SecondMoment
    from factpatch.strategies import (
        AttentionAndMlp,
        Boundary,
        CapSingularValues,
        Each,
        Even,
        First,
        HiddenState,
        KeepLargest,
        NullSpace,
        Ridge,
        SquareRoot,
        Unchanged,
    )

__all__ = [
    "METHODS",
    "Architecture",
    "AttentionAndMlp",
    "Boundary",
    "CapSingularValues",
    "Each",
    "Editor",
    "Even",
    "Fact",
    "First",
    "HiddenState",
    "KeepLargest",
    "Method",
    "Neighbor",
    "NullSpace",
    "Patch",
    "Ridge",
    "SecondMoment",
    "Session",
    "SquareRoot",
    "Unchanged",
    "Verification",
    "load_facts",
    "register_architecture",
    "verify",
]
__version__ = "0.1.0"

# Imported when first used: PyTorch takes seconds, and whoever asks for help should not wait for it.
_MODULES = {
    "METHODS": "factpatch.methods",
    "Architecture": "factpatch.model.architectures",
    "AttentionAndMlp": "factpatch.strategies",
    "Boundary": "factpatch.strategies",
    "CapSingularValues": "factpatch.strategies",
    "Each": "factpatch.strategies",
    "Editor": "factpatch.editor",
    "Even": "factpatch.strategies",
    "Fact": "factpatch.facts",
    "First": "factpatch.strategies",
    "HiddenState": "factpatch.strategies",
    "KeepLargest": "factpatch.strategies",
    "Method": "factpatch.methods",
    "Neighbor": "factpatch.facts",
    "NullSpace": "factpatch.strategies",
    "Patch": "factpatch.patch.patch",
    "Ridge": "factpatch.strategies",
    "SecondMoment": "factpatch.statistics.second_moment",
    "Session": "factpatch.session",
    "SquareRoot": "factpatch.strategies",
    "Unchanged": "factpatch.strategies",
    "Verification": "factpatch.evaluation.verify",
    "load_facts": "factpatch.data",
    "register_architecture": "factpatch.model.architectures",
    "verify": "factpatch.evaluation.verify",
}

# Hidden from type checkers, for which a module with `__getattr__` has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
