"""Copies of a model in workers: the same bits as here, whatever is edited, whoever dies, and clear errors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from tests.editors import input_moments, second_moments
from tests.models import SENTENCES, save_tiny, tiny_model, tiny_tokenizer
from torch import Tensor

from factpatch import Editor, Fact, verify
from factpatch.evaluation.readings import Reading
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.replicas import ReplicaError, Replicas, threads
from factpatch.model.weights import content_hash
from factpatch.pool import Local, OnRay, Pool, Processes
from factpatch.statistics.corpus import corpus_from
from factpatch.statistics.second_moment import SecondMoment
from factpatch.strategies import HiddenState
from factpatch.values.shards import InShards

BACKENDS = ("1 process", "2 processes", "ray")
FACTS = tuple(
    Fact("The mother tongue of {} is", subject, new)
    for subject, new in (
        ("Danielle Darrieux", "English"), ("Messi", "Finnish"), ("Finland", "Rome"), ("Ada Lovelace", "football"),
        ("Tokyo", "Vienna"), ("Steve Jobs", "the"), ("Apple", "Messi"),
    )
)  # fmt: skip
SETTINGS = {"target.steps": 3, "target.learning_rate": 0.3, "solver.weight": 5.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replicas") / "tiny"
    save_tiny(path, "llama")
    return path


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, Pool]]:
    made: dict[str, Pool] = {}
    yield made
    for pool in made.values():
        pool.close()


@pytest.fixture(params=BACKENDS)
def pool(request: pytest.FixtureRequest, pools: dict[str, Pool]) -> Pool:
    name = request.param
    if name == "ray":
        pytest.importorskip("ray", reason="Ray is an extra: pip install 'factpatch[ray]'")
    if name not in pools:
        makers = {"1 process": lambda: Processes(1, 1), "2 processes": lambda: Processes(2, 1)}
        pools[name] = makers[name]() if name in makers else OnRay(2, threads=1)
    return pools[name]


def edited(folder: Path, pool: Pool) -> tuple[list[str], tuple[Reading, ...]]:
    """The hashes of the weights after two batches, and what the edited model says then."""
    with threads(pool.threads):
        editor = Editor(
            str(folder), method="memit-blue", critical_layers=(1, 2), corpus=SENTENCES * 30, corpus_tokens=1500,
            settings=SETTINGS, progress=False, pool=pool,
        )  # fmt: skip
        editor.edit(FACTS[:6])
        editor.edit([replace(FACTS[6], target_new="English")])
        editor.undo()
        editor.edit(FACTS[6:])
        found = verify(editor.lm, None, FACTS, replicas=editor.replicas)
        return [editor.lm.weight_hash(layer) for layer in (1, 2)], found.after


def test_edits_and_what_is_said_have_the_same_bits_whoever_computes_them(folder: Path, pool: Pool) -> None:
    assert edited(folder, pool) == edited(folder, Local())


def test_workers_hold_what_makes_keys_too(folder: Path, pool: Pool) -> None:
    with threads(pool.threads):
        editor = Editor(
            str(folder), method="neurons", critical_layers=(1, 2), progress=False, pool=pool,
            second_moments={**second_moments(layers=(1, 2)), **input_moments(layers=(1, 2))},
            settings={"target.steps": 3, "target.learning_rate": 0.3, "target.apart": False, "solver.searched": 0},
        )  # fmt: skip
        unedited = verify(editor.lm, None, FACTS).after
        editor.edit(FACTS[:3])
        found = verify(editor.lm, None, FACTS, replicas=editor.replicas).after
        assert found == verify(editor.lm, None, FACTS, replicas=Replicas(editor.lm, Local())).after
        assert found != unedited


def test_second_moments_have_the_same_bits_and_nearly_those_of_one_pass(folder: Path, pool: Pool) -> None:
    lm = load_language_model(str(folder))
    corpus = corpus_from(SENTENCES * 20)

    def read(replicas: Replicas | None) -> dict[int, Tensor]:
        moments = SecondMoment.read(lm, [1, 3], corpus, 900, cache=False, replicas=replicas)
        return {layer: moment.matrix for layer, moment in moments.items()}

    with threads(pool.threads):
        alone, local, shared = read(None), read(Replicas(lm, Local())), read(Replicas(lm, pool))
    for layer in (1, 3):
        assert content_hash(shared[layer]) == content_hash(local[layer])
        torch.testing.assert_close(shared[layer], alone[layer], rtol=1e-5, atol=1e-7)


@dataclass(frozen=True)
class HashOf:
    layer: int

    def __call__(self, lm: LanguageModel, shard: Sequence[str]) -> str:
        return lm.weight_hash(self.layer)


@dataclass(frozen=True)
class DieOnce:
    """Ends the first worker that gets a shard."""

    mark: str

    def __call__(self, lm: LanguageModel, shard: int) -> str:
        if shard == 2 and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return lm.weight_hash(1)


def test_a_worker_that_dies_is_replaced_by_one_with_the_same_edits(folder: Path, tmp_path: Path) -> None:
    lm = load_language_model(str(folder))
    with Processes(2, 1) as pool:
        replicas = Replicas(lm, pool)
        before = lm.weight_hash(1)
        lm.weight(1).mul_(2)
        task = DieOnce(str(tmp_path / "died"))
        assert set(replicas.map(task, range(6))) == {lm.weight_hash(1)}
        assert (tmp_path / "died").exists()
        lm.weight(1).div_(2)
        assert lm.weight_hash(1) == before
        assert set(replicas.map(HashOf(1), ["a", "b"])) == {before}


def test_a_model_that_workers_cannot_load_is_refused(folder: Path) -> None:
    lm = LanguageModel(tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(ValueError, match="by its name"), Processes(2, 1) as pool:
        Replicas(lm, pool)
    assert list(Replicas(lm, Local()).map(HashOf(0), ["a"])) == [lm.weight_hash(0)]


def test_workers_with_other_weights_are_refused(folder: Path) -> None:
    lm = load_language_model(str(folder))
    lm.weight(0).mul_(2)
    with Processes(1, 1) as pool, pytest.raises(ReplicaError, match="other weights"):
        list(Replicas(lm, pool).map(HashOf(0), ["a"]))


def test_workers_that_round_differently_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_language_model(str(folder))
    with Processes(1, 1) as pool:
        replicas = Replicas(lm, pool)
        answers = iter([("one", "a"), ("other", "b")])
        monkeypatch.setattr(pool, "map", lambda work, shards, progress: answers)
        with pytest.raises(ReplicaError, match="round differently"):
            list(replicas.map(HashOf(0), ["a", "b"]))


class Killer:
    """As a progress callback: kills one of this process's workers when it is called for the given time."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.killed: list[int] = []

    def __call__(self, done: int) -> None:
        self.left -= done > 0  # a pass begins with 0
        if self.left == 0 and not self.killed:
            workers = [child for child in psutil.Process().children() if "factpatch.pool" in " ".join(child.cmdline())]
            workers[-1].kill()
            self.killed.append(workers[-1].pid)


@pytest.mark.long
@pytest.mark.slow
def test_kills_in_each_of_the_three_change_nothing_and_leave_no_process(folder: Path) -> None:
    corpus = corpus_from(SENTENCES * 20)
    target = HiddenState(steps=3, learning_rate=0.3)

    def all_three(pool: Pool, killers: Sequence[Killer | None]) -> tuple[str, str, tuple[Reading, ...]]:
        lm = load_language_model(str(folder))
        replicas = Replicas(lm, pool)
        moments, values, asking = ({} if killer is None else {"progress": killer} for killer in killers)
        (moment,) = SecondMoment.read(lm, [1], corpus, 900, cache=False, replicas=replicas, **moments).values()
        found = InShards(replicas)(lm, FACTS * 3, 1, target, ("{}",), **values)
        said = verify(lm, None, FACTS * 3, replicas=replicas, **asking)
        return content_hash(moment.matrix), content_hash(found.values), said.after

    killers = [Killer(1), Killer(2), Killer(2)]
    before = set(psutil.Process().children())
    with threads(1):
        expected = all_three(Local(), [None, None, None])
        with Processes(2, 1) as pool:
            assert all_three(pool, killers) == expected
    assert [len(killer.killed) for killer in killers] == [1, 1, 1]
    _, alive = psutil.wait_procs([one for one in psutil.Process().children() if one not in before], timeout=10)
    assert not alive
