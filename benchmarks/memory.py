"""What one batch of facts takes of memory, on models that need not be there: an allocation plan, and its check.

The plan runs the editor's own code on fake tensors, which have shapes and no contents, and follows every storage that
is made: freezing prefixes, two steps of the value optimization and reading keys at the first boundary layer, above
which most layers lie. Micro-batches are those that the editor chooses on a device with `--memory` GB. What solving and
writing take is measured on a small weight and scaled. Statistics and solve are on the CPU.

    python benchmarks/memory.py llama-3-8b
    python benchmarks/memory.py llama-1b --depth 4 --layers 0 2 --limit 4 --dtype float32 --steps 3 --check

With `--check` a model of that shape is made with random weights on `--device`, both boundary layers are optimized, and
the measurement is printed beside the plan: on a CPU the storages followed in the same way and the growth of the
resident memory, elsewhere the peak of PyTorch's allocator.
"""

from __future__ import annotations

import argparse
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from factpatch import Fact, HiddenState, Ridge, load_facts
from factpatch.model.embedded import embedded_directory
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import DTYPES
from factpatch.model.packed import packed_attention
from factpatch.model.precision import PRECISIONS, computing, precision_for
from factpatch.model.weights import snapshot
from factpatch.patch.history import write
from factpatch.patch.shift import LowRank
from factpatch.strategies.least_squares import EarlierKeys
from factpatch.values import budget
from factpatch.values.budget import tokens_to_freeze
from factpatch.values.descent import Descent, Loss
from factpatch.values.frozen import freeze
from factpatch.values.optimize import optimize_values
from factpatch.values.reading import SubjectRows, read_keys, read_values
from factpatch.values.rows import optimization_rows

# Published shapes, and the boundary layers of their presets.
SHAPES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "llama-3-8b": (
        "llama",
        (4, 8),
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        },
    ),
    "llama-1b": (
        "llama",
        (3, 5),
        {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        },
    ),
    "gpt-j-6b": (
        "gptj",
        (3, 8),
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400},
    ),
}  # fmt: skip
DEPTH = {"llama": "num_hidden_layers", "gptj": "n_layer"}
# Tokens before the subject, of it, behind it, and of the target: tenths of the first 1,000 CounterFact facts.
LENGTHS = (
    (0, 0, 0, 0, 0, 0, 0, 1, 2, 4),
    (5, 2, 7, 4, 3, 5, 6, 4, 3, 5),
    (3, 1, 4, 2, 6, 3, 3, 4, 2, 3),
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 2),
)
CONTEXT = 10  # tokens of a generated prefix, of which there are five
SMALL = 512  # the width at which what runs on the CPU is measured


@dataclass(frozen=True)
class Planned:
    """What a plan has found."""

    d_key: int
    d_value: int
    tokens: int
    """Of the largest micro-batch."""
    rows: int
    kept: tuple[int, int]
    """Bytes of the prefixes' keys and values, and of the frozen hidden states."""
    peak: Counter[str]
    """Bytes by what they are for, when there were most."""


class Watch(TorchDispatchMode):
    """Follows the storages that are made while it is on, and what lives at their peak."""

    def __init__(self, vocabulary: int = -1) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.stage = ""
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, Tensor):
                self.follow(tensor)
        return found

    def follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        wide = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
        label, size = "tables of the head" if wide else self.stage, storage.nbytes()
        self._known.add(key)
        self.live[label] += size
        weakref.finalize(storage, self._gone, key, label, size)
        if self.live.total() > self.peak.total():
            self.peak = Counter(self.live)

    def _gone(self, key: int, label: str, size: int) -> None:
        self._known.discard(key)
        self.live[label] -= size

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        before, self.stage = self.stage, stage
        yield
        self.stage = before


def synthetic(count: int) -> tuple[list[Fact], PreTrainedTokenizerFast, tuple[str, ...]]:
    """Facts of CounterFact's lengths, a tokenizer for which a word is a token, and contexts of the usual length."""
    numbers = iter(range(10**9))

    def words(length: int) -> str:
        return " ".join(f"w{next(numbers) % 20000}" for _ in range(length))

    facts = []
    for before, subject, after, target in islice(cycle(zip(*LENGTHS, strict=True)), count):
        prompt = " ".join(part for part in (words(before), "{}", words(after)) if part)
        facts.append(Fact(prompt, words(subject), words(target)))
    vocabulary = {word: index for index, word in enumerate(("[UNK]", ".", *(f"w{number}" for number in range(20000))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    contexts = ("{}", *(f"{words(CONTEXT)}. {{}}" for _ in range(5)))
    return facts, PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"), contexts


def given(path: Path, count: int) -> tuple[list[Fact], Any, tuple[str, ...]]:
    """Facts of a file, with the tokenizer of the embedded model."""
    tokenizer = AutoTokenizer.from_pretrained(str(embedded_directory("smollm2-135m")), trust_remote_code=False)
    contexts = ("{}", *(f"{start} is one of those that are not as others are. {{}}" for start in "ABCDE"))
    return load_facts(path, count), tokenizer, contexts


def build(shape: str, depth: int | None, dtype: torch.dtype) -> Any:
    """The model, on the device and with the weights of the context it is built in."""
    family, _, numbers = SHAPES[shape]
    config = AutoConfig.for_model(family, **{**numbers, **({} if depth is None else {DEPTH[family]: depth})})
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)


def size(tensors: Sequence[Tensor]) -> int:
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def gigabytes(number: float) -> str:
    return f"{number / 1e9:8.2f} GB"


def plan(options: argparse.Namespace, facts: Sequence[Fact], tokenizer: Any, contexts: Sequence[str]) -> Planned:
    layer, target = options.layers[0], HiddenState()
    with FakeTensorMode(), Watch() as watch:
        with watch.during("weights"):
            lm = LanguageModel(build(options.shape, options.depth, options.dtype), tokenizer)
        watch.peak, watch.vocabulary = Counter(), lm.config.vocab_size
        with watch.during("copies of the weights to edit"):
            # The editor keeps one to undo with, and one of this batch.
            copies = [snapshot(lm.weights(options.layers)) for _ in range(2)]
        free = patch.object(budget, "free_memory", lambda device: int(options.memory * 1e9) - watch.live.total())
        precise = computing(lm, precision_for(lm, options.precision))
        with free, lm.quiet(), packed_attention(lm), precise as seen:
            # As `optimize_values` does it, without its look at the stops, which would read something.
            with watch.during("frozen keys, values and hidden states; δ, Adam"):
                present = read_values(lm, SubjectRows.of(lm, facts, contexts[:1]), layer, target.site)
                present = present[:, None].to(seen.work_dtype)
                rows = optimization_rows(seen, facts, contexts)
                frozen = freeze(seen, rows, layer, tokens_to_freeze(seen, rows))
                norm = torch.linalg.vector_norm(present, dim=-1)
                descent = Descent(Loss(seen, frozen, layer, target, present, norm, options.tokens))
                del frozen
            with watch.during("activations of a micro-batch"):
                descent.step()
                descent.step()
        groups = descent.loss.parts[0].groups
        pool = groups[0].pool
        kept = size([*pool.keys.values(), *pool.values.values()]), size([one.hidden for one in groups])
        tokens = max(group.packing.tokens for group in groups)
        with watch.during("keys of the facts"):
            del descent, groups, pool
            read_keys(lm, SubjectRows.of(lm, facts, contexts), layer)
        del copies
    return Planned(lm.d_key, lm.d_value, tokens, len(rows), kept, watch.peak)


def on_the_cpu(planned: Planned, facts: int) -> tuple[float, float]:
    """Bytes of a prepared layer, and at most while one is prepared, solved and written; beside second moments."""
    d_value, n = max(1, SMALL * planned.d_value // planned.d_key), max(1, facts * SMALL // planned.d_key)
    moment, keys, residual = torch.eye(SMALL, dtype=torch.float64), torch.ones(n, SMALL), torch.ones(n, d_value)
    weight = torch.zeros(d_value, SMALL)
    with Watch() as watch:
        memory = EarlierKeys(Ridge().prepare(moment))
        prepared = watch.live.total()
        shift = memory.solve(keys, residual)
        write({0: weight}, {0: LowRank(shift.up.float(), shift.down.float())}, torch.float32)
    scale = (planned.d_key / SMALL) ** 2
    return prepared * scale, watch.peak.total() * scale


def report(options: argparse.Namespace, planned: Planned, facts: int) -> None:
    rows, layers = planned.rows, options.layers
    print(
        f"{options.shape}, {str(options.dtype).removeprefix('torch.')}, {facts} facts in {rows} rows, boundary layers "
        f"{layers[0]} and {layers[1]}, micro-batches of at most {planned.tokens} tokens"
    )
    for label, number in planned.peak.items():
        print(f"{gigabytes(number)}  {label}")
        if label.startswith("frozen"):
            print(f"{gigabytes(planned.kept[0])}    of them keys and values of prefixes")
            print(f"{gigabytes(planned.kept[1])}    of them hidden states")
    total = planned.peak.total()
    verdict = "below" if total < options.memory * 1e9 else "NOT below"
    print(f"{gigabytes(total)}  at the peak on the device: {verdict} {options.memory:g} GB")
    prepared, most = on_the_cpu(planned, facts)
    moments = len(layers) * planned.d_key**2 * 8
    print(f"{gigabytes(moments)}  second moments on the CPU, until they are prepared")
    print(f"{gigabytes(len(layers) * prepared)}  what solving needs of both layers, on the CPU")
    print(f"{gigabytes(most)}  at most to prepare, solve and write one layer")


@contextmanager
def resident() -> Iterator[Callable[[], int]]:
    """Gives the most bytes by which the process has grown inside."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    most = before

    def sample() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: most - before
    finally:
        done.set()
        thread.join()


def check(
    options: argparse.Namespace,
    planned: Planned,
    facts: Sequence[Fact],
    tokenizer: Any,
    contexts: Sequence[str],
) -> None:
    """Run the same for real and print its peak above the weights beside the plan's."""
    device = torch.device(options.device)
    with device:
        lm = LanguageModel(build(options.shape, options.depth, options.dtype).requires_grad_(False), tokenizer)
    target, precision = HiddenState(steps=options.steps), precision_for(lm, options.precision)
    backend: Any = getattr(torch, device.type, None)
    allocator = backend if hasattr(backend, "max_memory_allocated") else None
    watch = Watch(lm.config.vocab_size)
    with watch.during("weights"):
        for weight in lm.model.state_dict().values():
            watch.follow(weight)
    if allocator is not None:
        allocator.reset_peak_memory_stats(device)
    with resident() as grown, watch if allocator is None else nullcontext():
        copies = [snapshot(lm.weights(options.layers)) for _ in range(2)]
        for layer in options.layers:
            start = time.perf_counter()
            found = optimize_values(
                lm, facts, layer, target, contexts, tokens_at_once=planned.tokens, precision=precision
            )
            evaluations = int(found.evaluations.max())  # waits for the device
            seconds = time.perf_counter() - start
            print(f"layer {layer}: {seconds:.1f} s, {evaluations} evaluations")
            read_keys(lm, SubjectRows.of(lm, facts, contexts), layer)
        del copies
    expected = planned.peak.total() - planned.peak["weights"]
    weights = watch.live["weights"]
    measured = {"storages followed": watch.peak.total() - weights, "growth of the process": grown()}
    if allocator is not None:
        measured = {"peak of the allocator": allocator.max_memory_allocated(device) - weights}
    print(f"{gigabytes(expected)}  planned above the weights")
    for label, number in measured.items():
        print(f"{gigabytes(number)}  {label}, measured: {number / expected:.2f} of the plan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--depth", type=int, help="fewer layers than the shape has")
    parser.add_argument("--layers", type=int, nargs=2, help="boundary layers; those of the preset by default")
    parser.add_argument(
        "--facts", type=Path, help="CounterFact facts, in the embedded model's tokens; else synthetic ones"
    )
    parser.add_argument("--limit", type=int, default=100, help="how many facts")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--precision", choices=PRECISIONS, help="of the optimization; by default that of the dtype")
    parser.add_argument("--memory", type=float, default=24.0, help="of the device, in GB of 10^9 bytes")
    parser.add_argument("--tokens", type=int, help="tokens of a micro-batch; by default what the editor would choose")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", default="cpu", help="for --check")
    parser.add_argument("--steps", type=int, default=25, help="for --check: evaluations at most")
    options = parser.parse_args()
    options.dtype = DTYPES[options.dtype]
    options.layers = options.layers or SHAPES[options.shape][1]
    facts, *rest = synthetic(options.limit) if options.facts is None else given(options.facts, options.limit)
    planned = plan(options, facts, *rest)
    report(options, planned, len(facts))
    if options.check:
        check(options, planned, facts, *rest)


if __name__ == "__main__":
    main()
