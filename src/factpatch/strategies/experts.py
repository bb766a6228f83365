"""The least-squares problem of a layer of experts: as of one wide projection, expert by expert.

The keys of a batch are Z = [Z_1 … Z_E], (n, E · d_key): of each expert, what it makes of the facts that the router
sends to it, times their gates, and zeros for the others. Ordinary text is known of each expert alone, so the cost of
the shift is a sum over experts, and each has a `System` of its own. With F_j the features of Z_j, the shift
Δ_jᵀ = U_j L_j⁻ᵀ F_j A_j minimizes ‖Σ_j F_jᵀ F_j A_j − R‖² + Σ_j ‖F_j A_j‖². For one expert, the others held, that is

    A_j = (G_j + I)⁻¹ (R − Σ_{l≠j} G_l A_l),   G_j = F_jᵀ F_j,

which in null spaces, where U_j U_jᵀ = P_j and the cost is λ ‖Δ_j‖², is

    Δ_j = S_jᵀ (g_j P_j k_j) (Σ g_j² P_j k_j k_jᵀ P_j + λ I)⁻¹,   S_j = R − Σ_{l≠j} g_l Δ_l P_l k_l.

Source: MoEEdit (arXiv:2602.10965), which passes over the experts a few times in random order. The passes converge to
the solution for all experts together, in which all A_j are (I + Σ_j G_j)⁻¹ R; `passes` = 0 takes it in one step. Either
way, only matrices as large as the number of facts are solved, and all is linear in R, so that the experts share one
factor: Δ = Rᵀ [D_1 … D_E].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from factpatch.patch.shift import LowRank
from factpatch.strategies.least_squares import System
from factpatch.strategies.memory import Memory, Traces, check_rows

ORDER = 0
"""The seed of the order in which the experts are passed over: the bits of a memory depend on its traces alone."""


class UnknownExpert(ValueError):  # noqa: N818 (it is the expert that is unknown)
    """A fact is routed to an expert of which the text for second moments says too little."""


class Systems:
    """The systems of a layer's experts, each made when a fact is first routed to that expert.

    Args:
        prepare: Makes the system of one expert of its second moment.
        moments: (experts, d_key, d_key), averaged over the tokens that each expert saw.
        counts: (experts,): how many these were; None if nobody knows.
    """

    def __init__(self, prepare: Callable[[Tensor], System], moments: Tensor, counts: Tensor | None = None) -> None:
        self.prepare = prepare
        self.moments = moments
        self.counts = counts
        self._made: dict[int, System] = {}

    def of(self, expert: int) -> System:
        """The system of an expert before anything is edited.

        Raises:
            UnknownExpert: The text that second moments were read of says too little about the expert.
        """
        if expert not in self._made:
            self._check(expert)
            try:
                self._made[expert] = self.prepare(self.moments[expert])
            except ValueError as error:
                raise UnknownExpert(f"expert {expert}: {error}") from error
        return self._made[expert]

    def parts(self, keys: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The experts that some of the facts are routed to, with the keys there, (n, d_key), of (n, E · d_key) keys."""
        experts, width, _ = self.moments.shape
        if keys.shape[1] != experts * width:
            raise ValueError(
                f"keys have width {keys.shape[1]}, but the second moments are of {experts} experts and {width} each."
            )
        blocks = keys.double().view(len(keys), experts, width)
        for expert in blocks.abs().amax(dim=(0, 2)).nonzero().flatten().tolist():
            yield expert, blocks[:, expert]

    def height(self, keys: Tensor) -> Tensor:
        """‖F‖² of each fact, (n,), in the experts of which enough is known; UnknownExpert if there are none."""
        heights, unknown = [], None
        for expert, block in self.parts(keys):
            try:
                heights.append(self.of(expert).features(block).square().sum(dim=1))
            except UnknownExpert as error:
                unknown = error
        if not heights and unknown is not None:
            raise unknown
        return torch.stack(heights).sum(dim=0)

    def _check(self, expert: int) -> None:
        count = None if self.counts is None else int(self.counts[expert])
        if not bool(self.moments[expert].any()) or (count is not None and count < self.moments.shape[1]):
            seen = (
                "no token"
                if not count
                else f"{count} tokens, fewer than a key has dimensions ({self.moments.shape[1]})"
            )
            raise UnknownExpert(
                f"corpus: the router sends a fact to expert {expert}, and of the text for second moments {seen}, so "
                "that nothing is known of what must not change there. Give a longer text, or one like what the facts "
                "are about (corpus=, corpus_tokens=; --corpus, --corpus-tokens)."
            )


class RoutedKeys(Memory):
    """The systems of experts, which add the keys of earlier facts as they come.

    What an earlier fact has in an expert is preserved there: more than is needed, since only the sum over its experts
    has to stay, but no expert then depends on another.

    Args:
        passes: How often the experts are passed over; 0 for what the passes converge to, in one step.
    """

    def __init__(self, systems: Systems, passes: int) -> None:
        super().__init__()
        self.systems = systems
        self.passes = passes
        self._present: dict[int, System] = {}

    def remember(self, traces: Traces) -> None:
        for expert, block in self.systems.parts(traces["keys"]):
            if expert not in self._present:
                self._present[expert] = self.systems.of(expert).copy()
            self._present[expert].preserve(block)

    def forget(self) -> None:
        self._present = {}

    def fresh(self) -> RoutedKeys:
        return type(self)(self.systems, self.passes)

    def solve(self, keys: Tensor, residual: Tensor) -> LowRank:
        check_rows(keys, residual)
        present = {
            expert: self._present.get(expert) or self.systems.of(expert) for expert, _ in self.systems.parts(keys)
        }
        features = {expert: present[expert].features(block) for expert, block in self.systems.parts(keys)}
        grams = {expert: found @ found.T for expert, found in features.items()}
        factors = _passed(grams, self.passes) if self.passes else _converged(grams)
        width = self.systems.moments.shape[1]
        down = torch.zeros(keys.shape, dtype=torch.float64)
        for expert, factor in factors.items():
            rows = present[expert].outward(factor.T @ features[expert])
            down[:, expert * width : (expert + 1) * width] = rows.to(down.device)
        return LowRank(up=residual.double().T, down=down)


def _passed(grams: dict[int, Tensor], passes: int) -> dict[int, Tensor]:
    """B_j, (n, n), with A_j = B_j R, after some passes over the experts in random order, beginning with none."""
    order = torch.Generator().manual_seed(ORDER)
    one = torch.eye(len(next(iter(grams.values()))), dtype=torch.float64)
    factors = {expert: torch.zeros_like(one) for expert in grams}
    inverses = {expert: torch.linalg.cholesky(gram + one) for expert, gram in grams.items()}
    written = torch.zeros_like(one)  # Σ_j G_j B_j
    experts = list(grams)
    for _ in range(passes):
        for place in torch.randperm(len(experts), generator=order).tolist():
            expert = experts[place]
            others = written - grams[expert] @ factors[expert]
            factors[expert] = torch.cholesky_solve(one - others, inverses[expert])
            written = others + grams[expert] @ factors[expert]
    return factors


def _converged(grams: dict[int, Tensor]) -> dict[int, Tensor]:
    """B_j in the limit: where every A_j is R − Σ_l G_l A_l, all are (I + Σ_l G_l)⁻¹ R."""
    total = torch.stack(list(grams.values())).sum(dim=0)
    total.diagonal().add_(1.0)
    shared = torch.cholesky_inverse(torch.linalg.cholesky(total))
    return dict.fromkeys(grams, shared)
