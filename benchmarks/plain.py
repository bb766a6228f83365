"""The published procedure, plainly: what factpatch is measured against.

One fact at a time; every layer, every token and the whole output head at every step; dense float64 solves; one pass
over the corpus for each layer; one record at a time in evaluation. Written from the papers' formulas to be read in one
go, and right: benchmarks/speed.py compares its results with factpatch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factpatch import Fact


@dataclass(frozen=True)
class Settings:
    """MEMIT's and BLUE's settings, by the names they have in factpatch."""

    critical_layers: tuple[int, ...]
    contexts: tuple[str, ...]
    weight: float
    steps: int = 25
    learning_rate: float = 0.5
    clamp: float = 0.75
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    stop_loss: float = 0.05


def last_token(tokenizer: Any, text: str, character: int) -> int:
    """The last token that stands for a character."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(index for index, (start, end) in enumerate(offsets) if start <= character < end)


def subject_rows(tokenizer: Any, fact: Fact, contexts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The prompt in every context, and the place of the subject's last token in each."""
    texts = [context.replace("{}", fact.text, 1) for context in contexts]
    ends = [context.index("{}") + fact.subject_end for context in contexts]
    return texts, [last_token(tokenizer, text, end) for text, end in zip(texts, ends, strict=True)]


def encode(model: Any, tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right").to(model.device)


def optimize_value(model: Any, tokenizer: Any, fact: Fact, layer: int, settings: Settings) -> tuple[Tensor, int]:
    """The target value of one fact at one layer, and the number of loss evaluations. Source: MEMIT, eq. 15."""
    target = tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"]
    wanted = torch.tensor(target, device=model.device)[:, None]
    texts, places = subject_rows(tokenizer, fact, settings.contexts)
    texts = [text + tokenizer.decode(target[:-1]) for text in texts]
    texts.append(f"{fact.subject} is a")
    places.append(last_token(tokenizer, texts[-1], len(fact.subject) - 1))
    batch = encode(model, tokenizer, texts)
    rows, ends = torch.arange(len(texts), device=model.device), batch["attention_mask"].sum(dim=1)
    block = model.model.layers[layer]
    delta = torch.zeros(model.config.hidden_size, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    start: Tensor | None = None
    reference: Tensor | None = None

    def add(module: Any, args: Any, output: Any) -> Any:
        nonlocal start
        hidden = output[0] if isinstance(output, tuple) else output
        if start is None:
            start = hidden[0, places[0]].detach().clone()
        hidden = hidden.clone()
        hidden[rows, places] = hidden[rows, places] + delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    evaluation = 0
    while True:
        evaluation += 1
        handle = block.register_forward_hook(add)
        try:
            # As published: the model's own head on every position, and then once more on the last layer's output.
            result = model(**batch, output_hidden_states=True, use_cache=False)
        finally:
            handle.remove()
        scores = model.get_output_embeddings()(result.hidden_states[-1]).log_softmax(dim=-1)
        read = torch.stack(
            [scores[row, ends[row] - len(target) : ends[row]].gather(1, wanted).mean() for row in rows[:-1].tolist()]
        )
        present = result.logits[-1, places[-1]].log_softmax(dim=-1)
        if reference is None:
            reference = present.detach()
        kl = (present.exp() * (present - reference)).sum()
        assert start is not None
        decay = settings.weight_decay * delta.norm() / start.norm() ** 2
        loss = -read.mean() + settings.kl_factor * kl + decay
        if float(loss) < settings.stop_loss or evaluation == settings.steps:
            return start + delta.detach(), evaluation
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        largest = settings.clamp * start.norm()
        with torch.no_grad():
            if delta.norm() > largest:
                delta.mul_(largest / delta.norm())


def read_layer(model: Any, tokenizer: Any, fact: Fact, layer: int, contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """One fact's key in a layer, (d_key,), and what the block puts out on the bare prompt, (d_value,)."""
    texts, places = subject_rows(tokenizer, fact, contexts)
    found: dict[str, Tensor] = {}
    block = model.model.layers[layer]
    handles = [
        block.mlp.down_proj.register_forward_pre_hook(lambda module, args: found.update(keys=args[0])),
        block.register_forward_hook(
            lambda module, args, output: found.update(out=output[0] if isinstance(output, tuple) else output)
        ),
    ]
    try:
        with torch.no_grad():
            model(**encode(model, tokenizer, texts), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    keys = found["keys"][torch.arange(len(texts)), places]
    key = (keys[0] + keys[1:].mean(dim=0)) / 2 if len(texts) > 1 else keys[0]
    return key, found["out"][0, places[0]]


def solve_ridge(keys: Tensor, residual: Tensor, second_moment: Tensor, weight: float, earlier: Tensor) -> Tensor:
    """Δ = Rᵀ K (λ C₀ + K_pᵀ K_p + Kᵀ K)⁻¹, densely in float64. Source: MEMIT, eq. 14."""
    keys, residual = keys.double(), residual.double()
    every = torch.cat([keys, earlier.double()])
    system = torch.addmm(second_moment.to(keys), every.T, every, beta=weight)
    return torch.linalg.solve(system, keys.T @ residual).T


def solve_null_space(keys: Tensor, residual: Tensor, projector: Tensor, l2: float, earlier: Tensor) -> Tensor:
    """Δᵀ = (P (Kᵀ K + K_pᵀ K_p) + L2 I)⁻¹ P Kᵀ R, densely in float64. Source: AlphaEdit, eq. 14."""
    keys, residual = keys.double(), residual.double()
    every = torch.cat([keys, earlier.double()])
    system = projector @ (every.T @ every)
    system.diagonal().add_(l2)
    return torch.linalg.solve(system, projector @ (keys.T @ residual)).T


def edit_blue(model: Any, tokenizer: Any, facts: Sequence[Fact], moments: dict[int, Tensor], settings: Settings) -> Any:
    """MEMIT with BLUE, one batch, in place: the first critical layer, then the last, each toward its own targets.

    Returns:
        By layer, the target values, (n, d_value), and the loss evaluations of each fact.
    """
    found = {}
    for layer in dict.fromkeys((settings.critical_layers[0], settings.critical_layers[-1])):
        outcome = [optimize_value(model, tokenizer, fact, layer, settings) for fact in facts]
        targets = torch.stack([value for value, _ in outcome])
        read = [read_layer(model, tokenizer, fact, layer, settings.contexts) for fact in facts]
        keys, present = (torch.stack(part) for part in zip(*read, strict=True))
        shift = solve_ridge(keys, targets - present, moments[layer], settings.weight, keys[:0])
        with torch.no_grad():
            model.model.layers[layer].mlp.down_proj.weight.add_(shift.to(targets))
        found[layer] = (targets, [evaluations for _, evaluations in outcome])
    return found


def second_moment(model: Any, windows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """E[k kᵀ] of one layer, float64, from a pass of its own through the whole model, one window at a time."""
    width = model.config.intermediate_size
    total, count = torch.zeros(width, width, dtype=torch.float64, device=model.device), 0

    def add(module: Any, args: Any) -> None:
        nonlocal count
        keys = args[0][0].double()
        total.add_(keys.T @ keys)
        count += len(keys)

    handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(add)
    try:
        with torch.no_grad():
            for window in windows:
                model(input_ids=torch.tensor([list(window)], device=model.device), use_cache=False)
    finally:
        handle.remove()
    return total / count


def nll(model: Any, tokenizer: Any, prompt: str, target: str) -> float:
    """Nats per token of one target behind one prompt."""
    whole = tokenizer(f"{prompt} {target}", return_tensors="pt", return_offsets_mapping=True)
    offsets = whole.pop("offset_mapping")[0].tolist()
    whole = whole.to(model.device)
    first = next(index for index, (_, end) in enumerate(offsets) if end > len(prompt))
    with torch.no_grad():
        scores = model(**whole, use_cache=False).logits[0].log_softmax(dim=-1)
    ids = whole["input_ids"][0]
    return -float(scores[torch.arange(first - 1, len(ids) - 1), ids[first:]].mean())


def evaluate(model: Any, tokenizer: Any, fact: Fact) -> list[float]:
    """NLL of both objects behind the prompt, the paraphrases and the neighbors of one fact, one after another."""
    prompts = [(fact.text, fact.target_true), *((text, fact.target_true) for text in fact.paraphrases)]
    prompts += [(neighbor.prompt, neighbor.target_true) for neighbor in fact.neighbors]
    return [
        nll(model, tokenizer, prompt, target)
        for prompt, true in prompts
        for target in (fact.target_new, true)
        if target is not None
    ]
