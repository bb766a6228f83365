"""3. The least-squares problem solved in one layer.

Rows are facts (the papers stack columns). Everything is computed in float64. What costs d_key³ depends on the second
moment alone and is done once per process and layer; see `least_squares` for the rest.

PyTorch is imported where it is used, here and in the other strategies: listing methods should not wait for it.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from factpatch.model.places import GATE, UP, place_of
from factpatch.strategies.later import LATER

if TYPE_CHECKING:
    from torch import Tensor

    from factpatch.strategies.least_squares import System
    from factpatch.strategies.memory import Memory
    from factpatch.strategies.normalization import Normalizing

WRITTEN = 0.75
"""The default share of its residual that a fact edited alone gets; see `Solver.scaled`. The settings found by hand for
SmolLM2-135M amount to 0.6 to 0.75 with BLUE and to 0.85 to 0.93 without."""
PASSES = 5
"""How often the experts of a layer are passed over."""
UNUSED = 0.3
"""The share of the second moment's trace in directions considered unused by ordinary text. The published threshold of
0.02 leaves 0.21 to 0.47 in layers 4 to 8 of SmolLM2-135M."""


class Ordinary(Enum):
    """What of ordinary text a memory learns from; see `Memory.warm`."""

    GRADIENTS = "gradients"
    INPUTS = "inputs"


class Solver(ABC):
    """Find the shift of one weight that sends keys to their residuals and changes as little as possible otherwise."""

    reads_corpus: ClassVar[bool] = True
    """Whether `memory` needs the second moment of keys on ordinary text."""

    remembers_inputs: ClassVar[bool] = False
    """Whether memories remember what MLPs get at a batch's tokens, in all layers that any batch may write, once it is
    written; by default they remember its keys, in those that it writes itself."""

    ordinary: ClassVar[Ordinary] = Ordinary.GRADIENTS
    """What `Memory.warm` learns from, where there are `ordinary_tokens`."""

    @property
    def ordinary_tokens(self) -> int:
        """Of how many tokens of ordinary text `Memory.warm` learns before the first batch."""
        return 0

    def reads(self, layer: int) -> list[int]:
        """The places whose second moments `memory_in` needs for a layer; by default its down-projection alone."""
        return [layer] if self.reads_corpus else []

    def writes(self, layer: int) -> list[int]:
        """The places that a shift of a layer may change; by default its down-projection alone."""
        return [layer]

    def memory_in(self, layer: int, moments: Mapping[int, Tensor]) -> Memory:
        """The memory of a layer before anything is edited, given second moments by place; see `reads`."""
        return self.memory(moments.get(layer))

    @abstractmethod
    def memory(self, second_moment: Tensor | None) -> Memory:
        """The memory of one layer before anything is edited.

        Args:
            second_moment: C₀, (d_key, d_key), the mean second moment of keys on ordinary text; None if `reads_corpus`
                is false.

        Raises:
            ValueError: The second moment does not fit the solver's settings.
        """

    def scaled(self, second_moments: Sequence[Tensor], keys: Sequence[Tensor], written: float) -> Solver:
        """Return this solver with settings that mean the same in every model; by default its own settings.

        A fact edited alone, with key k, gets the share h / (h + c) of its residual, where h measures how far k stands
        out from ordinary keys and c is the setting: in `Ridge` c = λ and h = kᵀ C₀⁻¹ k, in `NullSpace` c = L2 and
        h = ‖Uᵀ k‖². So the setting that writes the share ρ is c = h (1 − ρ) / ρ, in whatever unit the keys are.

        Args:
            second_moments: C₀ of each layer that will be written, (d_key, d_key).
            keys: Of some facts in each of these layers, (n, d_key). h is the median over facts, then the geometric mean
                over layers.
            written: ρ, between 0 and 1.

        Raises:
            ValueError: `written` is not between 0 and 1, or a second moment does not fit the solver.
        """
        return self


class LeastSquares(Solver):
    """Solvers whose problem is a `System`: see `factpatch.strategies.least_squares`."""

    @abstractmethod
    def prepare(self, second_moment: Tensor) -> System:
        """Return the cost of a shift itself and the directions it may use; ValueError as from `memory`."""

    passes: int = PASSES
    """Of a mixture of experts: how often the experts are passed over; see `factpatch.strategies.experts`."""

    def memory(self, second_moment: Tensor | None) -> Memory:
        """As in `Solver`; of a layer of experts, `RoutedKeys` of all their second moments, (experts, d_key, d_key)."""
        if second_moment is None:
            raise ValueError(f"second_moment=None: {type(self).__name__} needs the second moment of the layer's keys.")
        if second_moment.dim() == 3:
            return self.routed(second_moment)
        return self.remembering(self.prepare(second_moment))

    def remembering(self, system: System) -> Memory:
        """What remembers the batches of a layer without experts."""
        from factpatch.strategies.least_squares import EarlierKeys

        return EarlierKeys(system)

    def routed(self, second_moments: Tensor) -> Memory:
        """What remembers the batches of a layer of experts, given the second moment of each."""
        from factpatch.strategies.experts import RoutedKeys, Systems

        return RoutedKeys(Systems(self.prepare, second_moments), self.passes)

    def heights(self, second_moment: Tensor, keys: Tensor) -> Tensor:
        """h of each of some keys, (n,), with the setting 1; see `scaled`."""
        from factpatch.strategies.experts import Systems

        if second_moment.dim() == 3:
            return Systems(self.prepare, second_moment).height(keys)
        return self.prepare(second_moment).features(keys).square().sum(dim=1)


@dataclass(frozen=True)
class Ridge(LeastSquares):
    """Ridge regression weighted by the second moment: Δ = Rᵀ K (λ C₀ + μ I + K_pᵀ K_p + Kᵀ K)⁻¹.

    Source: MEMIT (arXiv:2210.07229), eq. 14; with earlier keys BLUE (arXiv:2502.03748), eq. 8; with μ ENCORE
    (arXiv:2502.01636).
    """

    weight: float = 15000.0
    """λ: the weight of ordinary text, in tokens."""
    norm_weight: float = field(default=0.0, metadata=LATER)
    """μ: the weight of the shift's own norm, ‖Δ‖², in squared key units."""
    passes: int = field(default=PASSES, metadata=LATER)
    """Of a mixture of experts: how often they are passed over, as in MoEEdit; 0: what the passes converge to."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight!r}: λ must be positive and finite, or the system is singular.")
        if not 0 <= self.norm_weight < math.inf:
            raise ValueError(f"norm_weight={self.norm_weight!r}: μ must be finite and not negative.")
        _check_passes(self.passes)

    def prepare(self, second_moment: Tensor) -> System:
        """G = λ C₀ + μ I."""
        import torch

        from factpatch.strategies.least_squares import System

        cost = self.weight * second_moment.double()
        cost.diagonal().add_(self.norm_weight)
        factor, info = torch.linalg.cholesky_ex(cost)
        if int(info) != 0:
            raise ValueError(
                f"second_moment: not positive definite (leading minor {int(info)} of {len(factor)}); it was read from "
                "too few tokens. Give a longer corpus: about five tokens per key dimension."
            )
        return System(factor)

    def scaled(self, second_moments: Sequence[Tensor], keys: Sequence[Tensor], written: float) -> Ridge:
        """λ from h = kᵀ C₀⁻¹ k, which on average over ordinary tokens is d_key.

        With μ > 0, λ and μ such that each alone would write the same share, and both together `written`.
        """
        alone = replace(self, weight=1.0, norm_weight=0.0)
        weight = _setting(alone, second_moments, keys, written)
        if self.norm_weight == 0:
            return replace(alone, weight=weight)
        norm_weight = _solved([float(of.double().square().sum(dim=1).median()) for of in keys], written)
        both = replace(self, weight=weight, norm_weight=norm_weight)
        more = _setting(both, second_moments, keys, written)
        return replace(self, weight=more * weight, norm_weight=more * norm_weight)


@dataclass(frozen=True)
class BoundedRidge(Ridge):
    """As `Ridge`, on all batches of a session together, with a bound on what they may do to ordinary text.

    With D the sum of a layer's shifts, every batch solves for the D that sends its keys to their values, keeps those of
    earlier batches, and moves ordinary text little: ‖K Dᵀ − T‖² + ‖K_p Dᵀ − T_p‖² + m (λ tr(D C₀ Dᵀ) + μ ‖D‖²). So what
    earlier batches did to ordinary text can be taken back, at the price of their facts. m is 1 at first, and becomes
    max(m + ℓ / (α ℓ₁) − 1, 1) after each batch, where ℓ is what m multiplies and ℓ₁ that after the first batch: it
    grows as long as ℓ is above α ℓ₁, and falls when it is below.

    Source: LyapLock (arXiv:2505.15702), with the settings of its code: V = 1, a = 1 / √(α ℓ₁), b = 0 and Z from
    Z_max = √(α ℓ₁) on, of which m = a Z is what is left. *Departure:* D is the sum of what was solved, not what the
    rounded weights differ by, and values that a fact has replaced are left out of it.
    """

    bound: float = 60.0
    """α: what ordinary text may be moved by, as a multiple of what the first batch moves it by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound={self.bound!r}: α must be positive and finite.")

    def remembering(self, system: System) -> Memory:
        from factpatch.strategies.virtual_queue import VirtualQueue

        return VirtualQueue(system, self.bound)

    def routed(self, second_moments: Tensor) -> Memory:
        raise no_experts(self, "a layer")


@dataclass(frozen=True)
class NullSpace(LeastSquares):
    """Ridge regression inside the null space of ordinary keys: Δᵀ = (P (Kᵀ K + K_pᵀ K_p) + L2 I)⁻¹ P Kᵀ R, P = U Uᵀ.

    By the push-through identity this is Δᵀ = U X with the X that is optimal for G = L2 I.
    Source: AlphaEdit (arXiv:2410.02355), eq. 14.
    """

    threshold: float = 0.02
    """Directions whose eigenvalue in C₀ is below this are considered unused by ordinary text."""
    l2: float = 10.0
    """L2, in squared key units."""
    passes: int = field(default=PASSES, metadata=LATER)
    """Of a mixture of experts: how often they are passed over, as in MoEEdit; 0: what the passes converge to."""

    def __post_init__(self) -> None:
        _check_passes(self.passes)
        if not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold!r}: must be positive.")
        if not self.l2 > 0:
            raise ValueError(f"l2={self.l2!r}: must be positive, or the system is singular.")

    def prepare(self, second_moment: Tensor) -> System:
        """G = L2 I, and U, (d_key, r): the eigenvectors of C₀ with eigenvalue below the threshold."""
        import torch

        values, vectors = torch.linalg.eigh(second_moment.double())
        basis: Tensor = vectors[:, values < self.threshold]
        if basis.shape[1] == 0:
            raise ValueError(
                f"threshold={self.threshold}: no eigenvalue of the second moment is below it (the smallest is "
                f"{float(values[0]):.3g}, the median {float(values.median()):.3g}); raise the threshold."
            )
        return self.within(basis.contiguous())

    def within(self, basis: Tensor) -> System:
        """The system of a given null space; U is (d_key, r), orthonormal, float64."""
        from factpatch.strategies.least_squares import System

        return System(basis.new_tensor(math.sqrt(self.l2)), basis)

    def scaled(self, second_moments: Sequence[Tensor], keys: Sequence[Tensor], written: float) -> NullSpace:
        """The threshold from the spectrum, then L2 from h = ‖Uᵀ k‖²."""
        import torch

        # Of experts, each has a spectrum of its own; one that saw no token has none.
        each = [one for moment in second_moments for one in (moment if moment.dim() == 3 else [moment]) if one.any()]
        spectra = [torch.linalg.eigvalsh(moment.double()) for moment in each]
        threshold = statistics.geometric_mean(_rest(spectrum, UNUSED) for spectrum in spectra)
        alone = replace(self, threshold=threshold, l2=1.0)
        return replace(alone, l2=_setting(alone, second_moments, keys, written))


@dataclass(frozen=True)
class Normalized(Solver):
    """Normalize keys and gradients by all batches so far, then solve one ridge regression for the batch alone.

    With x̂ and ĝ the keys and gradients less their mean and divided by their deviation, dimension by dimension, over the
    rows of all batches up to this one, a row wants its output to move by v = −η ‖x̂‖² ĝ. The shift minimizes
    ‖X Δᵀ − V‖² + α ‖Δ‖², so Δᵀ = Xᵀ (X Xᵀ + α I)⁻¹ V. X holds the keys as they were read: the projection multiplies
    x, not x̂, so only this Δ makes the outputs move by V. x̂ serves for the length of the step alone.

    The keys of earlier batches are not preserved, and nothing is read of ordinary text. A batch of one row has no
    deviation if it is the first; edit two answer tokens or more.

    Source: UltraEdit (arXiv:2505.14679), section 3.2 and algorithm 1. *Departure:* every layer has its own statistics;
    in the published code all modules of one shape share them. A deviation that is nothing but rounding counts as none.
    """

    reads_corpus: ClassVar[bool] = False

    rate: float = 1e-6
    """η, in units of the activation."""
    l2: float = 1.0
    """α, in squared key units."""

    def __post_init__(self) -> None:
        for name in ("rate", "l2"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive and finite.")

    def memory(self, second_moment: Tensor | None) -> Normalizing:
        from factpatch.strategies.normalization import Normalizing

        return Normalizing(self.rate, self.l2)


@dataclass(frozen=True)
class Whitened(Normalized):
    """As `Normalized`, with gradients whitened by their full covariance, and statistics that begin on ordinary text.

    ĝ = (g − mean) Σ^(−1/2) with Σ = S / (n − d_value − 1), where S is the scatter matrix of n rows. Until n exceeds
    d_value + 1, gradients are divided by their deviation as in `Normalized`.

    Source: StableEdit (arXiv:2605.11836). *Departures:* the published code warms its statistics up by editing 2,000
    facts of a training set, which stay in the weights. Here the warm-up reads keys and gradients at tokens of ordinary
    text, on the unedited weights, and writes nothing. Its floor for the eigenvalues of Σ is 1e-6 whatever the unit of
    the loss; here it is relative to their mean. And statistics are of one layer, as in `Normalized`.
    """

    l2: float = 10.0
    """α, in squared key units."""
    warm_up: int = 4096
    """How many tokens of ordinary text the statistics begin with; more than d_value, or the first batches are not
    whitened. 0: none, so that the first batch begins them."""
    floor: float = 0.01
    """The least eigenvalue of Σ, as a share of the mean one: directions in which gradients hardly vary count no more
    than this allows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.warm_up >= 0:
            raise ValueError(f"warm_up={self.warm_up!r}: must not be negative.")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor={self.floor!r}: must be positive, and at most 1.")

    @property
    def ordinary_tokens(self) -> int:
        return self.warm_up

    def memory(self, second_moment: Tensor | None) -> Normalizing:
        from factpatch.strategies.normalization import Whitening

        return Whitening(self.rate, self.l2, self.floor)


@dataclass(frozen=True)
class Neurons(Solver):
    """Give each fact a neuron of its own, in the place of one that matters little to ordinary text.

    It changes the weights that make keys as well, so the MLP needs gates that are apart from what they gate, as in
    Llama, Qwen and most others. `factpatch.strategies.neurons` has the formulas.

    Source: this package. One neuron for a fact is from Transformer-Patcher (arXiv:2301.09785), which adds neurons to
    the last layer and trains them; the removal is that of the optimal brain surgeon (Hassibi and Stork, 1993).
    """

    remembers_inputs: ClassVar[bool] = True
    ordinary: ClassVar[Ordinary] = Ordinary.INPUTS

    sharpness: float = 20.0
    """s: how steeply a neuron answers what is above the threshold."""
    threshold: float = 0.5
    """θ: the likeness to the subject, 1 at the subject and 0 on average, below which a neuron keeps silent."""
    cover: float = 0.1
    """How much each context of a subject counts against ordinary text when a neuron is aimed."""
    most: float = 0.5
    """The largest share of a layer's neurons that facts may take."""
    searched: int = 76_800
    """How many tokens of ordinary text are searched for strangers, which a neuron would answer as it does its subject;
    a shorter text to its end. 0: none."""

    def __post_init__(self) -> None:
        for name in ("sharpness", "cover"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive and finite.")
        for name in ("threshold", "most"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be between 0 and 1.")
        if not self.searched >= 0:
            raise ValueError(f"searched={self.searched!r}: must not be negative.")

    @property
    def ordinary_tokens(self) -> int:
        return self.searched

    def reads(self, layer: int) -> list[int]:
        return [layer, place_of(layer, GATE)]

    def writes(self, layer: int) -> list[int]:
        return [layer, place_of(layer, GATE), place_of(layer, UP)]

    def memory_in(self, layer: int, moments: Mapping[int, Tensor]) -> Memory:
        from factpatch.strategies.neurons import AimedNeurons

        return AimedNeurons.of(self, layer, moments)

    def memory(self, second_moment: Tensor | None) -> Memory:
        raise ValueError("solver=Neurons: it needs the second moments of keys and of the MLP's inputs; see memory_in.")


def no_experts(solver: Solver, layer: str) -> ValueError:
    """The error for a solver that is no good for a layer of experts."""
    return ValueError(
        f"solver={type(solver).__name__}: it cannot solve for the experts of {layer}. Choose another method, such as "
        "memit-blue, or edit the shared expert (shared_expert=True), if the model has one."
    )


def _setting(alone: LeastSquares, second_moments: Sequence[Tensor], keys: Sequence[Tensor], written: float) -> float:
    """The factor of the cost that writes the share. With the setting 1, h is the squared norm of a key's features."""
    heights = [float(alone.heights(moment, of).median()) for moment, of in zip(second_moments, keys, strict=True)]
    return _solved(heights, written)


def _check_passes(passes: int) -> None:
    if not passes >= 0:
        raise ValueError(f"passes={passes!r}: must not be negative; 0 stands for what the passes converge to.")


def _solved(heights: Sequence[float], written: float) -> float:
    """c = h (1 − ρ) / ρ, with the geometric mean of h over layers; see `Solver.scaled`."""
    if not 0 < written < 1:
        raise ValueError(f"written={written!r}: a share between 0 and 1, both excluded.")
    return statistics.geometric_mean(heights) * (1 - written) / written


def _rest(spectrum: Tensor, share: float) -> float:
    """A threshold below which ascending eigenvalues sum to at most a share of the total, and the next one to more.

    Halfway between two eigenvalues, so that rounding does not decide on which side of it one of them is.
    """
    below = int((spectrum.cumsum(0) <= share * spectrum.sum()).sum())
    above = min(below, len(spectrum) - 1)
    return float(spectrum[max(above - 1, 0) : above + 1].mean())
