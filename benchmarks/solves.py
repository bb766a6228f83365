"""The least-squares problem of one layer, beside the dense solution and over a long session; random data.

The second moment has the eigenvectors I − 2 W Wᵀ for a slim W, so that the null space needs no eigendecomposition.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import plain
import torch
from torch import Tensor

from factpatch import NullSpace, Ridge
from factpatch.strategies.least_squares import EarlierKeys, System
from factpatch.strategies.memory import Traces

RIDGE, NULL_SPACE = Ridge(weight=1000.0), NullSpace(threshold=0.02, l2=1.0)
SHOWN = (100, 200, 500, 1000, 2000, 5000, 10000)
"""Numbers of earlier facts at which a stream prints what a batch takes."""


class Problem(ABC):
    """A second moment with eigenvalues from 1 to 1e-6, and random keys and residuals."""

    name: str

    def __init__(self, d_key: int) -> None:
        self.d_key = d_key
        self.generator = torch.Generator().manual_seed(0)
        self.spectrum = torch.logspace(0, -6, d_key, dtype=torch.float64)
        self.slim = torch.linalg.qr(self.random(d_key, 64)).Q

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def with_eigenvalues(self, values: Tensor) -> Tensor:
        """The matrix with the moment's eigenvectors and these eigenvalues."""
        scaled = self.slim * values[:, None]
        half = 2 * self.slim @ (self.slim.T @ scaled) - 2 * scaled
        return torch.diag(values).addmm_(self.slim, half.T).addmm_(half, self.slim.T)

    @abstractmethod
    def system(self) -> System:
        """What factpatch makes of the moment."""

    @abstractmethod
    def fixed(self) -> Tensor:
        """What the dense side makes of it, (d_key, d_key)."""

    @abstractmethod
    def dense(self, fixed: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor) -> Tensor:
        """The shift, (d_value, d_key), without factors and memory."""

    @abstractmethod
    def operations(self, facts: int, earlier: int, d_value: int) -> tuple[int, int]:
        """Of the dense side and of factpatch, without the shift's product, which both have."""


class RidgeProblem(Problem):
    name = "Ridge"

    def system(self) -> System:
        return RIDGE.prepare(self.with_eigenvalues(self.spectrum))

    def fixed(self) -> Tensor:
        return self.with_eigenvalues(self.spectrum)

    def dense(self, fixed: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor) -> Tensor:
        return plain.solve_ridge(keys, residual, fixed, RIDGE.weight, earlier)

    def operations(self, facts: int, earlier: int, d_value: int) -> tuple[int, int]:
        square = self.d_key**2
        return 2 * square * (facts + earlier + d_value) + 2 * self.d_key**3 // 3, 2 * facts * square


class NullSpaceProblem(Problem):
    name = "NullSpace"

    @property
    def unused(self) -> Tensor:
        """Which eigenvectors span the null space, (d_key,), bool."""
        return self.spectrum < NULL_SPACE.threshold

    def system(self) -> System:
        basis = -2 * self.slim @ self.slim[self.unused].T
        basis[self.unused] += torch.eye(basis.shape[1], dtype=torch.float64)
        return NULL_SPACE.within(basis)

    def fixed(self) -> Tensor:
        return self.with_eigenvalues(self.unused.double())

    def dense(self, fixed: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor) -> Tensor:
        return plain.solve_null_space(keys, residual, fixed, NULL_SPACE.l2, earlier)

    def operations(self, facts: int, earlier: int, d_value: int) -> tuple[int, int]:
        square, rank = self.d_key**2, int(self.unused.sum())
        dense = 2 * square * (facts + earlier + 2 * d_value) + 8 * self.d_key**3 // 3
        return dense, 4 * facts * self.d_key * rank + 2 * facts * rank**2


PROBLEMS = (RidgeProblem, NullSpaceProblem)


class RandomBatch:
    """One batch of facts after earlier ones, whose batches were followed."""

    def __init__(self, problem: Problem, d_value: int, facts: int, earlier: int) -> None:
        self.problem = problem
        self.keys, self.residual = problem.random(facts, problem.d_key), problem.random(facts, d_value)
        self.earlier = problem.random(earlier, problem.d_key)
        self.memory = EarlierKeys(problem.system())
        self.memory.follow([{"keys": keys} for keys in self.earlier.split(facts)])
        self.fixed = problem.fixed()
        product = 2 * problem.d_key * facts * d_value
        plainly, ours = problem.operations(facts, earlier, d_value)
        self.operations = plainly + product, ours + product

    def ours(self) -> Tensor:
        return self.memory.solve(self.keys, self.residual).matrix()

    def plainly(self) -> Tensor:
        return self.problem.dense(self.fixed, self.keys, self.residual, self.earlier)


def stream(problem: Problem, facts: int, total: int) -> Iterator[str]:
    """What each batch of a session takes: to follow the batch before it, and to solve its own, in factors."""
    start = time.perf_counter()
    memory = EarlierKeys(problem.system())
    yield f"{problem.name}, d_key {problem.d_key}, batches of {facts}: prepared in {time.perf_counter() - start:.2f} s"
    yield "earlier facts   follow s    solve s"
    batches: list[Traces] = []
    taken: list[float] = []
    for earlier in range(0, total + 1, facts):
        keys, residual = problem.random(facts, problem.d_key), problem.random(facts, 1)
        start = time.perf_counter()
        memory.follow(batches)
        middle = time.perf_counter()
        memory.solve(keys, residual)
        end = time.perf_counter()
        if earlier:
            taken.append(end - start)
        if earlier in SHOWN or earlier == total:
            yield f"{earlier:13d} {middle - start:10.3f} {end - middle:10.3f}"
        batches.append({"keys": keys})
    parts = (memory.first.factor, memory.first.basis, memory.system.factor)
    kept = sum(part.nbytes for part in parts if part is not None)
    yield (
        f"seconds a batch: median {statistics.median(taken):.3f}, mean {statistics.mean(taken):.3f}, largest "
        f"{max(taken):.3f}; kept: {kept / 1e9:.3f} GB, of earlier keys {total * problem.d_key * 4 / 1e9:.3f} GB"
    )
