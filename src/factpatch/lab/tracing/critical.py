"""From traces to the layers that an edit should write, and how sure that is.

The rule. Take the curve of the average indirect effect of restored MLPs at the last subject token, layer by layer: in
these MLPs, at that token, facts are recalled (ROME, arXiv:2202.05262, section 2.2), and there edits write. Its peak is
the layer of the largest average; the peak ends with the last of the layers around it that have at least half of that.
What is written above comes too late: later tokens have read the subject by then. Proposed are the neighboring layers,
as many as asked for, with the highest mean average that do not reach above the peak's end, unless that is lower than
their number; of equals the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factpatch.evaluation.intervals import Floats, Interval, difference

MOST_LAYERS = 5
"""How many layers published settings write: 5 of GPT2-XL and Llama-3-8B, 6 of GPT-J."""
SHARE_OF_DEPTH = 6
"""At most one layer in six: a shallow model gets fewer."""
FEW_FACTS = 10
"""With fewer, drawing them again says little about other facts."""
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class CriticalLayers:
    """Layers that are proposed for edits."""

    layers: tuple[int, ...]
    """The proposed ones; none where restoring MLPs does not help on average over any that may be proposed."""
    peak: int
    """The layer of the largest average indirect effect."""
    end: int
    """The last layer of the peak."""
    effect: Interval
    """The mean of the averages over the proposed layers, with its bootstrap interval over facts."""
    agreement: float | None = None
    """In which share of the resamples the same layers are proposed; None without an interval."""
    alternatives: tuple[int, ...] = ()
    """The first layers of windows that the data do not distinguish from the proposed one: the interval of the paired
    difference reaches 0. Without an interval none is listed."""

    @property
    def reason(self) -> str:
        """The proposal and its reason in words."""
        if not self.layers:
            return (
                "Restoring MLPs at the last subject token does not raise the probability of the answers over any "
                "neighboring layers up to the peak: nothing is proposed."
            )
        size, span, effect = len(self.layers), _span(self.layers), self.effect
        if self.end < self.layers[-1]:
            window = (
                f"no window of {size} layers ends there or before, so the lowest one is taken, {span}, with an average "
                "indirect effect of"
            )
        else:
            window = (
                f"of the windows of {size} layers that end there or before, {span} has the highest average indirect "
                "effect,"
            )
        interval = "" if effect.low is None else f" (95 % interval {effect.low:.3f} to {effect.high:.3f})"
        return (
            f"Restored MLPs at the last subject token help most in layer {self.peak}, and at least half as much up to "
            f"layer {self.end}; {window} {effect.value:.3f}{interval}."
        )

    @property
    def certainty(self) -> str:
        """How sure it is, in words."""
        if not self.layers:
            return ""
        if self.agreement is None or self.effect.low is None:
            return f"How sure this is remains unknown: {self.effect.reason}."
        sentences = [
            f"Drawing the {self.effect.facts} facts again gives the same layers in {100 * self.agreement:.0f} % of "
            f"{RESAMPLES} draws."
        ]
        if self.effect.facts < FEW_FACTS:
            sentences.append("So few facts do not show how sure that is: trace more.")
        if self.effect.low <= 0:
            sentences.append("The effect itself may be 0: take more facts.")
        if self.alternatives:
            size = len(self.layers)
            windows = ", ".join(_span(range(first, first + size)) for first in self.alternatives)
            sentences.append(f"Equally good, as far as these facts show: {windows}.")
        return " ".join(sentences)


def proposed_size(layers: int) -> int:
    """How many layers to propose for a model of some depth."""
    return max(1, min(MOST_LAYERS, round(layers / SHARE_OF_DEPTH)))


def check_size(size: int, layers: int) -> None:
    """Raise ValueError unless a model of this depth has so many layers."""
    if not 1 <= size <= layers:
        raise ValueError(f"size={size}: propose from 1 to {layers} layers.")


def propose(effects: Floats, size: int | None = None, seed: int = 0) -> CriticalLayers:
    """Propose critical layers by the rule above.

    Args:
        effects: (facts, layers): indirect effects of restored MLPs at the last subject token.
        size: How many layers; by default `proposed_size`.
        seed: Of the resampling.

    Raises:
        ValueError: There are no facts, or `size` is out of range.
    """
    facts, layers = effects.shape
    size = proposed_size(layers) if size is None else size
    if not facts:
        raise ValueError("effects: there are no facts; trace at least one.")
    check_size(size, layers)
    curve = effects.mean(axis=0)
    peak, end = _peak(curve)
    first = _first(curve, size)
    if first is None:
        return CriticalLayers((), peak, end, _interval(effects[:, peak], seed))
    windows = np.lib.stride_tricks.sliding_window_view(effects, size, axis=1).mean(axis=-1)  # (facts, windows)
    effect = _interval(windows[:, first], seed)
    chosen = tuple(range(first, first + size))
    if effect.low is None:
        return CriticalLayers(chosen, peak, end, effect)
    random = np.random.default_rng(seed)
    draws = (effects[random.integers(facts, size=facts)].mean(axis=0) for _ in range(RESAMPLES))
    agreement = sum(_first(draw, size) == first for draw in draws) / RESAMPLES
    others = (other for other in range(_last_first(end, size) + 1) if other != first)
    lows = {other: _interval(windows[:, first] - windows[:, other], seed).low for other in others}
    alternatives = tuple(other for other, low in lows.items() if low is None or low <= 0 or math.isnan(low))
    return CriticalLayers(chosen, peak, end, effect, agreement, alternatives)


def _peak(curve: Floats) -> tuple[int, int]:
    """The layer of the largest value, and the last one around it with at least half of that."""
    peak = end = int(curve.argmax())
    while end + 1 < len(curve) and curve[end + 1] >= curve[peak] / 2:
        end += 1
    return peak, end


def _last_first(end: int, size: int) -> int:
    """Where the last window that does not reach above a layer begins; 0 if the layer is too low for any."""
    return max(0, end - size + 1)


def _first(curve: Floats, size: int) -> int | None:
    """Where the proposed window begins; None if no window has a positive mean."""
    _, end = _peak(curve)
    sums = np.convolve(curve, np.ones(size), mode="valid")[: _last_first(end, size) + 1]
    return int(sums.argmax()) if sums.max() > 0 else None


def _interval(values: Floats, seed: int) -> Interval:
    """The bootstrap interval of a mean over facts."""
    known = {str(fact): value for fact, value in enumerate(values.tolist())}
    return difference(known, dict.fromkeys(known, 0.0), seed=seed, level=LEVEL, resamples=RESAMPLES)


def _span(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
