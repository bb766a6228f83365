"""How far an edit moves the hidden states of factual prompts, in numbers and on a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate, tokenize
from factpatch.values.reading import read_last


def hidden_states(lm: LanguageModel, prompts: Sequence[str], layer: int, ends: Sequence[int] | None = None) -> Tensor:
    """Read the block output of a layer for each prompt.

    Args:
        lm: The model; it is left as it was.
        prompts: Texts.
        layer: The layer, counted from 0; an edit of this layer and of those below it shows here.
        ends: For each prompt the index of the character at whose token to read, such as the last one of its subject,
            where editing methods write; by default the prompt's last token.

    Returns:
        (n, d_value), in the work dtype.

    Raises:
        ValueError: There are no prompts, a prompt has no tokens or too many, the layer does not exist, or an index
            lies outside its prompt.
    """
    if not prompts:
        raise ValueError("prompts=[]: give at least one prompt.")
    lm.check_layers([layer], "layer")
    texts = [lm.frame.wrap(prompt) for prompt in prompts]
    if ends is None:
        rows = tokenize(lm.tokenizer, texts, lm.frame)
    else:
        if len(ends) != len(prompts):
            raise ValueError(f"ends: {len(ends)} for {len(prompts)} prompts; give one for each.")
        for prompt, end in zip(prompts, ends, strict=True):
            if not 0 <= end < len(prompt):
                raise ValueError(f"ends: {end} is no index of a character of {prompt!r}.")
        places = [lm.frame.offset(prompt) + end for prompt, end in zip(prompts, ends, strict=True)]
        # Nothing after such a token reaches it.
        rows = [ids[: index + 1] for ids, index in locate(lm.tokenizer, texts, places, lm.frame)]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ValueError(f"prompt={prompt!r} has no tokens under this tokenizer; give a text.")
        lm.check_length(row, prompt)
    return read_last(lm, rows, layer, "block", "outputs")


@dataclass(frozen=True)
class HiddenShift:
    """How far hidden states h moved to h', in numbers that depend on no random map."""

    prompts: int
    """How many prompts there are."""
    relative_shift: float
    """Mean over prompts of ‖h' − h‖ / ‖h‖; 0 is no shift."""
    cka: float
    """Linear centered kernel alignment of h and h', in [0, 1]; 1 if h' is h turned, scaled and moved as a whole.
    Source: arXiv:1905.00414."""
    mean_distance: float
    """‖mean h' − mean h‖ over the spread of h, √(mean ‖h − mean h‖²); 0 if the center stays."""

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> HiddenShift:
        """Compare the hidden states h and h' of the same prompts in two models, (n, d_value) each, in float64.

        Raises:
            ValueError: The shapes differ, there are fewer than two prompts, some number is not finite, a state of
                `before` is zero, or all states of one model are the same.
        """
        _check(before, after)
        before, after = before.double(), after.double()
        length = before.norm(dim=-1)
        if not length.all():
            raise ValueError(f"before: state {int(length.argmin())} is zero; its shift has no relative size.")
        centered, centered_after = before - before.mean(0), after - after.mean(0)
        for name, states in (("before", centered), ("after", centered_after)):
            if not states.any():
                raise ValueError(f"{name}: all states are the same, so they have no spread; give other prompts.")
        moved = (after.mean(0) - before.mean(0)).norm()
        # ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) in the Frobenius norm, by the products of prompts with each other: ‖XᵀY‖² =
        # tr(XXᵀ YYᵀ) and ‖XᵀX‖ = ‖XXᵀ‖.
        one, other = centered @ centered.T, centered_after @ centered_after.T
        return cls(
            prompts=len(before),
            relative_shift=float(((after - before).norm(dim=-1) / length).mean()),
            cka=float((one * other).sum() / (one.norm() * other.norm())),
            mean_distance=float(moved / centered.square().sum(-1).mean().sqrt()),
        )


def tsne_map(before: Tensor, after: Tensor, seed: int = 0, perplexity: float | None = None) -> tuple[Tensor, Tensor]:
    """Lay the hidden states of both models, (n, d_value) each, out in one plane, with t-SNE as in the paper's Figure 7.

    The plane has no unit, and distances across it mean little: it is for looking at. `HiddenShift` is for comparing.

    Args:
        before: The states of one model.
        after: Those of the other.
        seed: Seed of the map.
        perplexity: About how many neighbors a state has; less than the number of states, 2n. By default 30, or a third
            of the other states if that is less.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: The shapes differ, some number is not finite, or there are too few states for the perplexity.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ImportError("t-SNE needs the `scikit-learn` package; pip install 'factpatch[evaluate]'.") from None
    _check(before, after)
    if perplexity is None:
        perplexity = min(30.0, (2 * len(before) - 1) / 3)
    if not 0 < perplexity < 2 * len(before):
        raise ValueError(
            f"perplexity={perplexity:g}: must be above 0 and below the number of states, {2 * len(before)}; give more "
            "prompts or another perplexity."
        )
    states: Any = torch.cat([before, after]).cpu().numpy()
    places = torch.from_numpy(TSNE(perplexity=perplexity, random_state=seed).fit_transform(states))
    return places[: len(before)], places[len(before) :]


def _check(before: Tensor, after: Tensor) -> None:
    if before.dim() != 2 or before.shape != after.shape or len(before) < 2:
        raise ValueError(
            f"before, after: shapes {tuple(before.shape)} and {tuple(after.shape)}; both must be (n, d_value), of the "
            "same n ≥ 2 prompts."
        )
    for name, states in (("before", before), ("after", after)):
        if not states.isfinite().all():
            raise ValueError(f"{name}: some hidden states are not finite; this model is broken.")
