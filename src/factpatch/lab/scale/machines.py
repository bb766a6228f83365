"""How fast workers, their driver and the network between them are: guesses to replace, each with where it is from."""

from __future__ import annotations

from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Machines:
    """Some workers and a driver of the same kind."""

    workers: int = 1
    gpus_per_worker: int = 1
    """Over how many devices a worker's copy is spread, one running after the other: for memory, not for speed."""
    rate: float = 400 * TERA
    """Operations a second of a worker on the model, and of the driver. Not measured: 40 % of what the vendor names for
    an H100 in bfloat16, 989."""
    rate64: float = 27 * TERA
    """The same in float64, for second moments. Not measured: 40 % of the vendor's 67."""
    solve_rate: float = 30 * GIGA
    """Operations a second of the driver's CPU in a solve, in float64. Measured: docs/performance.md, one thread."""
    network: float = 10 * GIGA / 8
    """Bytes a second through the driver's link, which all workers share. Nominal: 10 Gbit/s."""
    copying: float = 1.8 * GIGA
    """Bytes a second at which a process hashes weights, the slowest of what is done to them on their way. Measured:
    benchmarks/scale.py, docs/scale.md."""
    host: float = 5 * GIGA
    """Bytes a second at which a process adds sums from a device to those in its memory. Not measured."""
    latency: float = 0.001
    """Seconds from a result to the next shard's beginning. Measured: benchmarks/scale.py, docs/scale.md."""


KINDS = {
    "cuda": Machines(),
    # The value optimization of SmolLM2-135M on two cores, docs/performance.md; float64 at half of that, not measured.
    "cpu": Machines(rate=79 * GIGA, rate64=40 * GIGA),
}
"""The defaults, by the kind of device."""
