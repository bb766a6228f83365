"""A model and its copies in the workers of a pool: what runs on the one runs on the others, with the same bits.

    driver                                             worker
    ──────                                             ──────
    Replicas(lm, pool).map(task, shards)
      the edited weights, once a map ────────────────▶ loads the model by its name, once, and compares its content
      shards, one by one ────────────────────────────▶ takes over those weights, puts the others back
      results, in the order of the shards ◀─────────── task(lm, shard)

Edited weights travel whole: a layer of an 8B model takes 117 MB, whatever was edited, undone or conditioned, and what
arrives has the bits that were sent. What could differ is how a machine rounds. So each worker also runs a short text
and answers with the content of its hidden states, which has to be that of the others.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from factpatch.model.language_model import LanguageModel, editable_names
from factpatch.model.loading import check_device, load_language_model
from factpatch.model.tokens import tokenize
from factpatch.model.weights import content_hash, model_hash, restore, snapshot
from factpatch.pool import Local, Pool

S = TypeVar("S")
R = TypeVar("R")
Task = Callable[[LanguageModel, S], R]
"""What is done with a shard: a frozen dataclass or a function that pickle can copy; it leaves the model as it was."""
_TEXT = "The capital of France is the city of Paris, and the river that flows through it is the Seine."


class ReplicaError(RuntimeError):
    """A worker has another model, or computes otherwise; the message says what to do."""


@dataclass(frozen=True)
class Named:
    """A model by what a user calls it, for workers to load."""

    name: str
    """As `load_language_model` takes it; a path is absolute, and the same on every machine."""
    device: str | None
    dtype: str
    chat: bool
    content: str
    """The hash of its unedited weights."""
    kind: str
    """The type of device that it lies on here, such as cuda."""
    shared_expert: bool = False
    """Whether the shared expert of a mixture of experts is edited."""


@dataclass(frozen=True)
class _Work(Generic[S, R]):
    """A task on a model with some edited weights."""

    model: Named
    weights: Mapping[int, Tensor]
    """(d_value, d_key) by layer, of those that differ from the unedited model."""
    task: Task[S, R]

    @property
    def key(self) -> str:
        return repr(self.model)

    def open(self) -> _Copy:
        named = self.model
        check_worker(named.kind)
        lm = load_language_model(named.name, device=named.device, dtype=named.dtype, chat=named.chat)
        lm = lm.with_shared_expert() if named.shared_expert else lm
        if model_hash(lm.model) != named.content:
            raise ReplicaError(
                f"workers: the model that a worker loads as {named.name!r} has other weights than the one here. Give "
                "every machine the same files, and begin with the model as it is in them."
            )
        return _Copy(lm)


@dataclass(frozen=True)
class _Here(Generic[S, R]):
    """A task on the driver's own model, which needs no copy and always holds the present weights."""

    lm: LanguageModel
    task: Task[S, R]
    key: str = "here"

    def open(self) -> Callable[[_Here[S, R], S], R]:
        return lambda work, shard: work.task(work.lm, shard)


@dataclass
class _Copy:
    """A worker's model."""

    lm: LanguageModel
    unedited: dict[int, Tensor] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    """The content hash of each edited weight that it holds."""
    taken_over: Mapping[int, Tensor] | None = None
    """The edited weights of the present map; the same object for all of its shards."""
    rounding: str = ""

    def __post_init__(self) -> None:
        self.rounding = rounding(self.lm)

    def __call__(self, work: _Work[S, R], shard: S) -> tuple[str, R]:
        self._take_over(work.weights)
        return self.rounding, work.task(self.lm, shard)

    def _take_over(self, wanted: Mapping[int, Tensor]) -> None:
        if wanted is self.taken_over:
            return
        hashes = {place: content_hash(weight) for place, weight in wanted.items()}
        stale = [place for place, held in self.held.items() if hashes.get(place) != held]
        fresh = [place for place, found in hashes.items() if self.held.get(place) != found]
        weights = self.lm.weights(sorted({*stale, *fresh}))
        self.unedited |= snapshot({place: weights[place] for place in weights if place not in self.unedited})
        restore(weights, {place: wanted.get(place, self.unedited[place]) for place in weights})
        self.held, self.taken_over = hashes, wanted


class Replicas:
    """A model, and as many copies of it as a pool has workers.

    Args:
        lm: The model, as it was loaded; later edits reach the copies with every `map`.
        pool: Runs the tasks. A `Local` one runs them on `lm` itself.

    Raises:
        ValueError: Workers cannot load the model by a name, or it is quantized.
    """

    def __init__(self, lm: LanguageModel, pool: Pool) -> None:
        self.lm, self.pool = lm, pool
        self.named: Named | None = None
        if isinstance(pool, Local):
            return
        if lm.loaded_from is None:
            raise ValueError(
                "workers: the model was given as an object, and workers load it by its name; give its name or "
                "directory, or do without workers."
            )
        if lm.quantized:
            raise ValueError("workers: quantized models run in this process alone; do without workers.")
        name = os.path.abspath(lm.loaded_from) if os.path.exists(lm.loaded_from) else lm.loaded_from
        device = "auto" if lm.spread else None if lm.device.type == "cpu" else lm.device.type
        dtype = str(lm.dtype).removeprefix("torch.")
        self.named = Named(name, device, dtype, lm.frame.chat, model_hash(lm.model), lm.device.type, lm.shared_expert)
        self._unedited = {place: lm.weight_hash(place) for place in editable_names(lm.model, lm.shared_expert)}

    def map(
        self,
        task: Task[S, R],
        shards: Iterable[S],
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[R]:
        """Yield `task(lm, shard)` of each shard, in order.

        Args:
            task: Must not depend on anything but the model and the shard.
            shards: Cut without regard to the number of workers, so that the results do not depend on it.
            progress: Called with the place of each shard that is done.

        Raises:
            ReplicaError: A worker has other weights, or rounds otherwise than the others.
            WorkerDied: A shard ended several workers.
        """
        if self.named is None:
            yield from self.pool.map(_Here(self.lm, task), shards, progress)
            return
        expected = None
        for found, result in self.pool.map(_Work(self.named, self._edited(), task), shards, progress):
            expected = expected or found
            if found != expected:
                raise ReplicaError(
                    "workers: two of them round differently, since their processors or numbers of threads differ, so "
                    "the result would depend on which of them did what. Use machines of one kind, with as many "
                    "threads a worker (OMP_NUM_THREADS)."
                )
            yield result

    def _edited(self) -> dict[int, Tensor]:
        """The weights that are not as they were."""
        places = [place for place, before in self._unedited.items() if self.lm.weight_hash(place) != before]
        return {place: weight.cpu().contiguous() for place, weight in self.lm.weights(places).items()}


def check_worker(device: str) -> None:
    """Raise ReplicaError unless a type of device, or one of them, can be used in a worker."""
    try:
        check_device(device)
    except ValueError as error:
        raise ReplicaError(
            f"workers: one on {platform.node()} has no {device} as the command that started it has: {error} On Ray, "
            "a worker sees the GPUs that it asks for: --workers 'ray://HOST:PORT?gpus=1'."
        ) from error


def rounding(lm: LanguageModel) -> str:
    """The content of a model's hidden states on a short text: equal where the same work gives the same bits."""
    with torch.inference_mode(), lm.quiet():
        return content_hash(lm.body(input_ids=torch.tensor(tokenize(lm.tokenizer, [_TEXT]), device=lm.device)))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads: the order of summation depends on it, and so the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
