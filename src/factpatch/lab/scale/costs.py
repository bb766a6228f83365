"""Memory, bytes sent and seconds: what a batch and a pass take on some machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from factpatch.lab.scale.machines import Machines
from factpatch.lab.scale.simulate import COUNTS, Point, map_seconds, sweep
from factpatch.lab.scale.work import Batch, Pass
from factpatch.model.batching import TOKEN_BUDGET

Parts = dict[str, float]
"""Bytes, or seconds, by what they are for."""


@dataclass(frozen=True)
class Costs:
    """What the same work takes of each kind."""

    batch: Batch
    text: Pass
    machines: Machines
    dtype: str | None = None
    """Of the weights; by default the checkpoint's."""

    @property
    def sent(self) -> int:
        """Bytes of edited weights that each worker gets with every map: whole, since a later batch may undo them."""
        return len(self.batch.written) * self.batch.shape.edited(self.dtype)

    # Memory, in bytes. What a micro-batch keeps for its backward pass comes on top: it takes what fits.

    def worker(self) -> Parts:
        """Of a worker that finds values: its weights on the device (over all of them), the rest in memory or there."""
        return {
            "weights": self.batch.shape.weights(self.dtype),
            "edited layers as they were": self.sent,
            "edited layers as they came": self.sent,
        }

    def driver(self) -> Parts:
        """Of the driver: it holds the model too, and a solver's systems in float64 (L of C₀, and of later batches)."""
        return {
            "weights": self.batch.shape.weights(self.dtype),
            "edited layers as they were": self.sent,
            "edited layers on their way": 2 * self.sent,
            "solver": 2 * len(self.batch.written) * self.batch.shape.second_moment(),
        }

    def worker_of_moments(self) -> Parts:
        """Of a worker that sums k kᵀ: the sums of a shard, and the same pickled."""
        return {"weights": self.batch.shape.weights(self.dtype), "sums": self.text.sums + self.text.returned}

    def driver_of_moments(self) -> Parts:
        """Of the driver: its sums, those that it adds, and those of one shard for each worker that wait."""
        waiting = min(self.machines.workers, self.text.shards) if self.machines.workers > 1 else 0
        return {
            "weights": self.batch.shape.weights(self.dtype),
            "sums": self.text.sums + (self.text.returned if waiting else 0),
            "results that wait": waiting * self.text.returned,
        }

    # Bytes through the driver's link.

    def batch_traffic(self) -> Parts:
        """Of one batch: the edited weights to every worker with every map, and two rows of d_value a fact back."""
        if self.machines.workers == 1:
            return {"edited weights": 0, "values": 0}
        maps = len(self.batch.targets)
        return {
            "edited weights": maps * self._taking_part() * self.sent,
            "values": maps * self.batch.facts * 2 * self.batch.shape.d_value * 4,
        }

    def text_traffic(self) -> Parts:
        """Of a pass: the sums of every shard."""
        return {"sums": self.text.shards * self.text.returned if self.machines.workers > 1 else 0}

    def _taking_part(self) -> int:
        return min(self.machines.workers, len(self.batch.shards))

    # Seconds.

    def batch_seconds(self) -> Parts:
        """Of one batch, by part; second moments and their factors are there already."""
        there = self.machines
        one = {layer: self.batch.value_operations(layer) / there.rate for layer in self.batch.targets}
        work = [[facts * one[layer] for facts in self.batch.shards] for layer in self.batch.targets]
        shared = sum(map_seconds(shards, there.workers) for shards in work)
        parts = {"values (shared)": shared}
        if there.workers > 1:
            parts |= self._overhead(work, shared)
        return parts | self.serial_seconds()

    def _overhead(self, work: list[list[float]], shared: float) -> Parts:
        """What maps take beyond the work: the driver hashes every layer to see which are edited and pickles those, and
        each worker hashes what it was sent, once a map."""
        there, batch = self.machines, self.batch
        every = batch.shape.layers * batch.shape.edited(self.dtype)
        hashing = len(work) * (every + self.sent) / there.copying
        checked = len(work) * self.sent / there.copying
        with_all = checked + sum(
            map_seconds(shards, there.workers, self.sent / there.network, there.latency) for shards in work
        )
        return {"sending and checking weights": with_all - shared, "hashing weights (driver)": hashing}

    def serial_seconds(self) -> Parts:
        """Of a batch: what the driver does alone."""
        return {
            "keys and residuals (driver)": self.batch.reading_operations() / self.machines.rate,
            "solves (driver)": self.batch.solve_operations() / self.machines.solve_rate,
        }

    def shared_fraction(self) -> float:
        """Amdahl's share: what part of a batch in one process is work that workers share."""
        values = self.batch.facts * sum(map(self.batch.value_operations, self.batch.targets)) / self.machines.rate
        return values / (values + sum(self.serial_seconds().values()))

    def text_seconds(self) -> Parts:
        """Of a pass, by part."""
        there, text = self.machines, self.text
        runs = -(-text.tokens // TOKEN_BUDGET)
        # Half of a matrix, at and below its diagonal, comes from the device with every batch of text.
        moved = runs * text.sums / 2 / there.host
        alone = text.forward_operations() / there.rate + text.product_operations() / there.rate64 + moved
        shards = [alone / text.shards] * text.shards
        shared = map_seconds(shards, there.workers)
        parts = {"keys and their products (shared)": shared}
        if there.workers > 1:
            reply = text.returned / min(there.network, there.copying)
            with_all = map_seconds(shards, there.workers, 0.0, there.latency, reply)
            parts["sending and adding sums"] = with_all - shared
        return parts

    def factor_seconds(self) -> float:
        """Once for each process: factoring the second moments."""
        return self.batch.factor_operations() / self.machines.solve_rate

    def by_workers(self, counts: tuple[int, ...] = COUNTS) -> list[Point]:
        """The seconds of a batch by the number of workers; those of `machines` do not count."""

        def seconds(workers: int) -> float:
            there = replace(self.machines, workers=workers)
            return sum(replace(self, machines=there).batch_seconds().values())

        return sweep(seconds, counts)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON-able data: bytes, seconds, and what they were computed from."""
        shape = asdict(self.batch.shape)
        del shape["config"]
        return {
            "model": {**shape, "dtype": self.dtype or self.batch.shape.dtype},
            "batch": {
                "facts": self.batch.facts,
                "shards": len(self.batch.shards),
                "evaluations": self.batch.evaluations,
                "tokens": asdict(self.batch.tokens),
                "written_layers": self.batch.written,
                "target_layers": self.batch.targets,
            },
            "second_moment": {"tokens": self.text.tokens, "shards": self.text.shards, "layers": list(self.text.layers)},
            "machines": asdict(self.machines),
            "bytes": {
                "edit": {"worker": self.worker(), "driver": self.driver(), "sent": self.batch_traffic()},
                "second_moment": {
                    "worker": self.worker_of_moments(),
                    "driver": self.driver_of_moments(),
                    "sent": self.text_traffic(),
                },
            },
            "seconds": {
                "edit": self.batch_seconds(),
                "second_moment": self.text_seconds(),
                "factor": self.factor_seconds(),
            },
            "shared_fraction": self.shared_fraction(),
            "by_workers": [asdict(point) for point in self.by_workers()],
        }
