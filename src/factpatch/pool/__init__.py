"""One map over shards: in this process, in processes of its own, or on Ray.

    driver                                      worker, one of several
    ──────                                      ──────────────────────
    work ──pickled once──────────────────────▶  opened = work.open(), unless one of its key is open
    shards ──one by one, as they are needed──▶  opened(work, shard)
    results ◀──in the order of the shards─────

A `Work` says what is opened (a model, say) and is sent again with every map, so that a later one of the same `key`
finds the model open and brings what has changed since. Results do not depend on the number of workers, nor on which
of them die: a shard whose worker died is repeated. Workers live as long as their pool, and no longer than the driver.

- `base`: the protocol, `Pool`, and `WorkerDied`
- `local`, `processes`, `on_ray`: the three backends
- `dispatch`: what the two with workers share; they add how a worker is started, told and listened to
- `worker`: what runs in a worker, the same in both
"""

from __future__ import annotations

import os

from factpatch.pool.base import Opened, Pool, Work, WorkerDied
from factpatch.pool.local import Local
from factpatch.pool.on_ray import OnRay
from factpatch.pool.processes import Processes

__all__ = ["Local", "OnRay", "Opened", "Pool", "Processes", "Work", "WorkerDied", "pool_from"]


def pool_from(text: str | int | None, threads: int | None = None) -> Pool:
    """Return the pool that a text names.

    How many threads a worker takes does not follow from the number of workers, as results must not: the order of a sum
    depends on it.

    Args:
        text: `4` for as many processes on this machine, `ray:4` for as many workers of a Ray that is started on it,
            `ray://HOST:PORT` for a cluster, also with `?workers=N&gpus=G`; 0, 1 or None for this process alone.
        threads: How many threads each worker takes; by default what the environment variable OMP_NUM_THREADS says, or
            one.

    Raises:
        ValueError: The text names none.
        ImportError, ConnectionError, RuntimeError: See `OnRay`.
    """
    given = "1" if text is None else str(text).strip()
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = threads or (int(said) if said.isdecimal() else 0) or 1
    if given.startswith("ray://"):
        return OnRay(given, threads=threads)
    kind, _, number = given.rpartition(":")
    if not number.isdecimal() or kind not in ("", "ray") or (kind and not int(number)) or given.startswith(":"):
        raise ValueError(
            f"workers={text!r}: give a number of processes (4), ray:N for workers of a Ray on this machine (ray:4), "
            "or a cluster (ray://HOST:PORT, ray://HOST:PORT?workers=N&gpus=G)."
        )
    if kind:
        return OnRay(int(number), threads=threads)
    return Processes(int(number), threads) if int(number) > 1 else Local(threads)
