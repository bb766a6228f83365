"""LoRA at work: one adapter of peft beside the weights, trained on one batch of facts after another."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from factpatch.facts import Fact, check_batch
from factpatch.lab.rivals.descent import descend, lessons
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.rivals.rival import Lora
from factpatch.model.language_model import LanguageModel
from factpatch.support.files import atomic_write


class Adapted(Learner):
    """A model with an adapter, which is put beside the weights with the first batch and taken away by `reset`.

    Args:
        rival: The settings.
        lm: The model; its weights stay as they are.
        layers: Its critical layers; every layer is adapted.
        seed: Of the adapter's initial weights and of the order of the facts.

    Raises:
        ImportError: peft is not installed.
        ValueError: The model has no modules of these names.
    """

    def __init__(self, rival: Lora, lm: LanguageModel, layers: Sequence[int], seed: int) -> None:
        rival.check_installed()
        from peft import LoraConfig

        self.rival, self.lm, self.seed = rival, lm, seed
        self.config = LoraConfig(
            r=rival.rank,
            lora_alpha=rival.alpha,
            lora_dropout=0.0,
            target_modules=list(rival.targets) or None,
            fan_in_fan_out=lm.architecture.transposed,
        )
        self._adapter: dict[str, nn.Parameter] = {}
        self._peft: Any = None
        self._required: list[nn.Parameter] = []
        self._attach()  # what does not fit is refused at once
        self.reset()

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.rival.settings, "targets": sorted(self.config.target_modules), "chat": self.lm.frame.chat}

    @property
    def num_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._adapter.values())

    def learn(self, facts: Sequence[Fact]) -> None:
        check_batch(facts)
        taught = lessons(self.lm, facts, self.rival.end_token)
        new = self._peft is None
        if new:
            self._attach()
        before = self._copies()
        try:
            descend(self.lm, list(self._adapter.values()), taught, self.rival, self.seed)
        except BaseException:
            self.reset() if new else self._put(before)
            raise

    def save(self, path: Path) -> None:
        tensors = {name: weight.cpu().contiguous() for name, weight in self._copies().items()}
        atomic_write(path, lambda draft: save_file(tensors, draft))

    def restore(self, paths: Sequence[Path]) -> None:
        if paths:
            self._attach()
            self._put(load_file(paths[-1]))

    def reset(self) -> None:
        if self._peft is not None:
            self._peft.unload()
            for parameter in self._required:
                parameter.requires_grad_(True)
        self._peft, self._adapter, self._required = None, {}, []

    def _attach(self) -> None:
        """Put a new adapter beside the weights: B is zero, so that the model says what it said."""
        from peft import get_peft_model

        self._required = [parameter for parameter in self.lm.model.parameters() if parameter.requires_grad]
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
            torch.manual_seed(self.seed)
            self._peft = get_peft_model(self.lm.model, self.config)
        self._adapter = {name: weight for name, weight in self.lm.model.named_parameters() if "lora_" in name}
        self._peft.eval()

    def _copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self._adapter.items()}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._adapter.items():
                weight.copy_(tensors[name])
