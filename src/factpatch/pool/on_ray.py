"""Workers as actors of Ray: on this machine, or on all machines of a cluster.

Ray is imported here alone, and only when a pool is made: it is an extra.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from factpatch.pool.base import WorkerDied, cores, positive
from factpatch.pool.dispatch import SHORT_OF_MEMORY, Died, Worker, WorkerPool
from factpatch.pool.worker import Actor, Reply, packed
from factpatch.support.words import cut, printable

logger = logging.getLogger(__name__)

FORMS = "ray://HOST:PORT, with ?workers=N, ?gpus=G or ?workers=N&gpus=G behind it for N workers of G GPUs each"
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_LONGEST_REASON = 160
_INSTALL = "Install this factpatch, and the modules of the work, on every machine of the cluster."


class OnRay(WorkerPool["_Actor"]):
    """Maps in actors of Ray, each of which asks Ray for one CPU, and for GPUs if it should have some.

    A Ray that this process uses already is used, and left as it is; one that is started or connected to here ends with
    the pool, or with the process.

    Args:
        where: A number of workers for a Ray on this machine, which is started unless this process uses one; or the
            address of a cluster: `ray://HOST:PORT` of its client server, with `?workers=N` to take fewer than all of
            its CPUs and `?gpus=G` for G GPUs a worker; or, on one of its own machines, `HOST:PORT` or `auto`.
        workers: How many workers a cluster is asked for, unless the address says so; by default one for each CPU, or
            as many as its GPUs suffice for.
        threads: How many threads each takes; by default an equal share of the CPUs.
        gpus: How many GPUs each has to itself, unless the address says so; Ray hides the others from it.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: Nothing answers at the address.
        RuntimeError: Ray does not start, is connected to another address, or has too few CPUs or GPUs.
    """

    def __init__(self, where: int | str, workers: int | None = None, threads: int | None = None, gpus: int = 0) -> None:
        place = _place(where, workers, gpus)
        self._ray = _imported()
        self._connected = _connect(self._ray, place)
        try:
            cpus = int(self._ray.cluster_resources().get("CPU", 0))
            self._gpus = place.gpus
            number = place.workers or cpus
            if place.gpus:
                number = _with_gpus(where, self._ray.nodes(), place, number)
            if not number:
                raise RuntimeError(f"{where}: this Ray has no CPUs; start a node with `ray start --num-cpus=N`.")
            here = cores() if place.address is None else cpus
            super().__init__(number, max(1, here // number) if threads is None else threads)
            self._remote_actor = self._ray.remote(Actor)
            self._waiting_since: float | None = None
        except BaseException:
            self._disconnect()
            raise

    def _share(self, work: bytes) -> Any:
        with _storing(self._ray):
            return self._ray.put(work)

    def _start(self) -> _Actor:
        # Ray would fill one machine first, and the threads of a worker are an equal share of all machines' CPUs.
        options = self._remote_actor.options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        try:
            return _Actor(self._ray, options.remote(self.threads))
        except ImportError as error:  # the client server reads the class before it passes it on
            raise WorkerDied(f"a worker {_unstarted(error).how}. {_INSTALL}") from None

    def _events(self, wait: bool) -> Iterator[tuple[_Actor, Reply | Died]]:
        actors = {actor.answer: actor for actor in self._crew if actor.answer is not None}
        if not actors:
            return
        ready, _ = self._ray.wait(list(actors), num_returns=len(actors), timeout=0)
        if not ready and wait:
            self._say_what_is_waited_for()
            ready, _ = self._ray.wait(list(actors), num_returns=1, timeout=_LOOK_SECONDS)
        for answer in ready:
            yield actors[answer], actors[answer].reply()

    def _say_what_is_waited_for(self) -> None:
        """Log once that Ray has had no CPU for a worker for a while."""
        if any(actor.ready for actor in self._crew):
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > _PATIENCE_SECONDS:
            self._waiting_since = float("inf")
            logger.warning(
                "Ray has started no worker for %d seconds; `ray status` shows whether its CPUs, or GPUs, are taken.",
                _PATIENCE_SECONDS,
            )

    def close(self) -> None:
        super().close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._ray.shutdown()


class _Actor(Worker):
    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor
        self.answer: Any = actor.ready.remote()

    def send(self, work: Any, shard: bytes) -> None:
        with _storing(self._ray):
            self.answer = self._actor.answer.remote(work, shard)

    def reply(self) -> Reply | Died:
        """Take the answer that has come, or say how the actor ended."""
        answer, self.answer = self.answer, None
        errors = self._ray.exceptions
        deaths = (
            errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError,
            errors.ObjectLostError,
        )  # fmt: skip
        try:
            with _storing(self._ray):
                return Reply(*self._ray.get(answer))
        except deaths as error:
            return _death(error) if self.ready else _unstarted(error)
        except Exception as error:
            return Reply("error", packed(error), []) if self.ready else _unstarted(error)

    def stop(self) -> None:
        with suppress(Exception):  # it ends with its job too
            if self._ray.is_initialized():
                self._ray.kill(self._actor)


class _Place(NamedTuple):
    """A Ray to work on: its address, None for one on this machine, how many workers, and how many GPUs for each."""

    address: str | None
    workers: int | None
    gpus: int


def _place(where: int | str, workers: int | None, gpus: int) -> _Place:
    if isinstance(where, int):
        return _Place(None, positive("where", where), gpus)
    if workers is not None:
        positive("workers", workers)
    if gpus:
        positive("gpus", gpus)
    if where == "auto":
        return _Place(where, workers, gpus)
    parts = urlsplit(where if "://" in where else f"//{where}")
    query = parse_qs(parts.query, keep_blank_values=True)
    try:
        port = parts.port
        numbers = {name: int(texts[0]) for name, texts in query.items() if name in ("workers", "gpus")}
    except ValueError:
        port, numbers = None, {}
    known = parts.scheme in ("", "ray") and parts.hostname and port and parts.path in ("", "/")
    if not known or set(query) != set(numbers) or any(number < 1 for number in numbers.values()):
        raise ValueError(f"{where!r} is not the address of a Ray; give {FORMS}, both from 1 on.")
    address = f"{parts.scheme}://{parts.netloc}" if parts.scheme else parts.netloc
    return _Place(address, numbers.get("workers", workers), numbers.get("gpus", gpus))


def _with_gpus(where: int | str, nodes: Iterable[Mapping[str, Any]], place: _Place, number: int) -> int:
    """How many workers there are if each has its GPUs, which are those of one node."""
    held = [int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
    suffice = sum(gpus // place.gpus for gpus in held)
    if suffice < (place.workers or 1):
        raise RuntimeError(
            f"{where}: the nodes of this Ray have {', '.join(map(str, held))} GPUs, enough for {suffice} workers of "
            f"{place.gpus} each; ask for fewer."
        )
    return min(number, suffice)


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ImportError("workers on Ray need the `ray` package; pip install 'factpatch[ray]'.") from None
    return ray


def _connect(ray: Any, place: _Place) -> bool:
    """Start Ray or connect to it, unless this process uses one already; return whether it did not."""
    if ray.is_initialized():
        if place.address not in (None, "auto"):
            raise RuntimeError(
                f"{place.address}: this process uses a Ray already. Call ray.shutdown() first, or give a number of "
                "workers to use that one."
            )
        return False
    if place.address is not None:
        _connect_to(ray, place.address)
        return True
    try:
        # Its workers can import what this process can, and nothing about it is reported to Ray's developers.
        with _environment(PYTHONPATH=os.pathsep.join(map(str, sys.path)), RAY_USAGE_STATS_ENABLED="0"), _quiet():
            ray.init(
                address="local",
                num_cpus=place.workers,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
    except Exception as error:
        ray.shutdown()
        raise RuntimeError(
            f"Ray does not start on this machine: {_reason(error)} Its logs are in "
            f"/tmp/ray/session_latest/logs; {place.workers} processes do without it."
        ) from error
    return True


def _connect_to(ray: Any, address: str) -> None:
    """Connect to a cluster, if there is one."""
    advice = "Start one with `ray start --head`; its client server has port 10001, for ray://HOST:10001."
    if address != "auto":
        parts = urlsplit(address if "://" in address else f"//{address}")
        try:
            # Ray itself would try for minutes.
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_ANSWER_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"{address} does not answer: {error}. {advice}") from None
    try:
        with _quiet():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ImportError as error:
        raise ImportError(f"{address}: {error}; pip install 'factpatch[ray]'.") from None
    except Exception as error:
        ray.shutdown()
        raise ConnectionError(f"{address}: no Ray to work on: {_reason(error)} {advice}") from error


def _reason(error: BaseException) -> str:
    """What an error says, and what the first of its causes says: a token that is missing, say."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    texts = [printable(str(each)).rstrip(".") for each in dict.fromkeys((error, first))]
    return f"{': '.join(texts)}."


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from announcing itself."""
    log = logging.getLogger("ray")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _storing(ray: Any) -> Iterator[None]:
    """Say what to do when Ray has no room for what is sent."""
    try:
        yield
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        raise RuntimeError(
            f"Ray's object store is full: {cut(printable(str(error)), 300)} Map smaller shards, or give it more with "
            "`ray start --object-store-memory=BYTES`."
        ) from error


def _death(error: Exception) -> Died:
    text = printable(str(error))
    reason = text.partition("The actor is dead because ")[2] or text  # after a list of ids
    return Died(None, f"died on Ray ({reason[:_LONGEST_REASON]} …)", SHORT_OF_MEMORY if "memory" in text else "")


def _unstarted(error: Exception) -> Died:
    lines = str(error).strip().splitlines() or [type(error).__name__]  # the last is that of a traceback
    return Died(None, f"could not start on Ray: {printable(lines[-1])[:_LONGEST_REASON]}".rstrip("."), _INSTALL)
