"""Fine-tuning of some parameters on facts: the loop that full and low-rank fine-tuning share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factpatch.evaluation.probabilities import Request, target_positions
from factpatch.facts import Fact
from factpatch.lab.rivals.rival import Descent
from factpatch.model.batching import batches, padded
from factpatch.model.language_model import LanguageModel


@dataclass(frozen=True)
class Lesson:
    """The tokens of a fact, the last of which are learned."""

    ids: list[int]
    start: int
    """Index of the first token that is learned."""


def lessons(lm: LanguageModel, facts: Sequence[Fact], end_token: bool) -> list[Lesson]:
    """Return each fact as tokens: its prompt, framed as the model is asked, its new object, and perhaps the end token.

    Raises:
        ValueError: A fact cannot be tokenized, or the tokenizer has no end token.
    """
    end = lm.tokenizer.eos_token_id
    if end_token and end is None:
        raise ValueError("end_token=True: the tokenizer has no end token (eos_token); set end_token to false.")
    found = target_positions(lm, [Request(fact.text, fact.target_new, fact.space) for fact in facts])
    return [Lesson([*ids, end] if end_token else ids, start) for ids, start in found]


def descend(
    lm: LanguageModel, parameters: Sequence[nn.Parameter], taught: Sequence[Lesson], rival: Descent, seed: int
) -> float:
    """Fine-tune parameters in place with Adam: the loss is the mean NLL of all learned tokens of a mini-batch.

    Parameters in 16 bits have copies in float32 that Adam moves; the model sees them rounded. Adam begins anew.

    Args:
        seed: Of the order of the facts, which is drawn anew in every epoch.

    Returns:
        The mean loss over the last epoch, in nats per token.

    Raises:
        FloatingPointError: The loss is not finite; the parameters have been changed already.
    """
    masters = [parameter.detach().to(lm.work_dtype) for parameter in parameters]
    optimizer = torch.optim.Adam(masters, lr=rival.learning_rate)
    order = torch.Generator().manual_seed(seed)
    last = math.nan
    with lm.quiet(), _trained(parameters), torch.enable_grad():
        for epoch in range(rival.epochs):
            losses = []
            drawn = torch.randperm(len(taught), generator=order).tolist()
            for first in range(0, len(drawn), rival.batch_size):
                chosen = drawn[first : first + rival.batch_size]
                gradients, loss = _gradients(lm, parameters, [taught[index] for index in chosen])
                if not math.isfinite(loss) or not all(bool(torch.isfinite(one).all()) for one in gradients):
                    raise FloatingPointError(
                        f"{rival.name}: the loss of epoch {epoch + 1}, or its gradient, is not finite"
                    )
                for master, gradient in zip(masters, gradients, strict=True):
                    master.grad = gradient.to(master.dtype)
                optimizer.step()
                _show(parameters, masters)
                losses.append(loss)
            last = math.fsum(losses) / len(losses)
    return last


def _gradients(
    lm: LanguageModel, parameters: Sequence[nn.Parameter], some: Sequence[Lesson]
) -> tuple[list[Tensor], float]:
    """The gradient of the mean NLL of all learned tokens, and that mean; in pieces that fit into memory."""
    count = sum(len(lesson.ids) - lesson.start for lesson in some)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    loss = 0.0
    for piece in batches([len(lesson.ids) for lesson in some]):
        nll = _nll(lm, [some[index] for index in piece]) / count
        for sum_, gradient in zip(total, torch.autograd.grad(nll, parameters), strict=True):
            sum_.add_(gradient)
        loss += float(nll.detach())
    return total, loss


def _nll(lm: LanguageModel, some: Sequence[Lesson]) -> Tensor:
    """The sum of the NLL of all learned tokens."""
    ids, mask = padded([lesson.ids for lesson in some], lm.device)
    learned = mask.bool()
    for row, lesson in enumerate(some):
        learned[row, : lesson.start] = False
    # Padding stands after the texts, where nothing causal sees it. The last token is predicted only.
    hidden = lm.body(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False)
    read = learned[:, 1:]
    log_probability = lm.log_probabilities(hidden[read.to(hidden.device)])
    labels = ids[:, 1:][read].to(log_probability.device)
    return -log_probability.gather(-1, labels[:, None]).sum()


def _show(parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    """Let the model see what Adam has moved."""
    with torch.no_grad():
        for parameter, master in zip(parameters, masters, strict=True):
            parameter.copy_(master)


@contextmanager
def _trained(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach these parameters alone."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
