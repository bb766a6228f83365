"""A second model that shares its weights with the first, but for those that are to be edited."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import chain

import torch
from torch import nn

from factpatch.model.experts import weight_name
from factpatch.model.language_model import LanguageModel


def twin(lm: LanguageModel, chat: bool = False) -> LanguageModel:
    """Return a model with modules, a config and a tokenizer of its own, and the very weights of another one.

    Hooks, flags and attention that one of the two is given do not reach the other. Both need no gradients of weights.
    Write to the twin only after `own`: until then it would change the other model too.

    Args:
        lm: The model, in memory as a whole; it is left as it was, but for `requires_grad`.
        chat: Whether the twin is asked in turns of a chat.

    Raises:
        ValueError: A chat is wanted, and the tokenizer has no usable chat template.
    """
    lm.model.requires_grad_(False)
    shared = {id(one): one for one in chain(lm.model.parameters(), lm.model.buffers())}
    made = LanguageModel(deepcopy(lm.model, shared), deepcopy(lm.tokenizer), chat)
    made.loaded_from = lm.loaded_from
    return made


def own(lm: LanguageModel, places: Iterable[int]) -> None:
    """Give a twin weights of its own at some places, with the same content.

    Of a quantized model nothing has to be copied: what is edited lies beside it, in its own modules.
    """
    if lm.quantized:
        return
    with torch.no_grad():
        for place in places:
            projection = lm.projection(place)
            name = weight_name(projection)
            weight = getattr(projection, name)
            assert isinstance(weight, torch.Tensor)
            setattr(projection, name, nn.Parameter(weight.clone(), requires_grad=False))
