"""`factpatch plan`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.models import INNER, WIDTH


def test_plan_prints_sizes_and_times_and_writes_them(run: Run, model_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    shown = run.ok("plan", model_directory, "--workers", 3, "--facts", 40, "--device", "cpu", "--json", out).output
    for part in ("memory of", "through the driver's link", "seconds of", "values (shared)", "Amdahl", f"Plan: {out}"):
        assert part in shown
    record = json.loads(out.read_text("utf-8"))
    assert record["model"]["d_key"] == INNER
    assert record["batch"]["shards"] == 10
    weights = (model_directory / "model.safetensors").stat().st_size
    assert 0 < weights - record["bytes"]["edit"]["worker"]["weights"] < 20_000  # a file has a header
    layers = len(record["batch"]["written_layers"])
    assert record["bytes"]["edit"]["worker"]["edited layers as they came"] == layers * INNER * WIDTH * 4
    assert [point["workers"] for point in record["by_workers"]] == [1, 2, 4, 8, 16, 32, 64]


def test_plan_takes_rates_in_the_units_of_its_options(run: Run, model_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    rates = ("--rate", "2", "--rate64", "1", "--solve-rate", "50", "--network", "100")
    config = model_directory / "config.json"
    shown = run.ok("plan", config, "--workers", 2, "--gpus-per-worker", 2, *rates, "--json", out).output
    assert "a device)" in shown
    assert "ray://HOST:PORT?gpus=2" in " ".join(shown.split())
    machines = json.loads(out.read_text("utf-8"))["machines"]
    found = [machines[name] for name in ("rate", "rate64", "solve_rate", "network")]
    assert found == [2e12, 1e12, 50e9, 12.5e9]


def test_plan_counts_a_mixture_of_experts_and_says_how(run: Run) -> None:
    shown = " ".join(run.ok("plan", "--like", "mixtral-8x7b", "--workers", 2).output.split())
    assert "8 experts: what is planned is an edit of a dense model of that size" in shown
    assert "93.4 GB" in shown


def test_plan_refuses_what_it_cannot_count(run: Run, model_directory: Path, tmp_path: Path) -> None:
    run.refused("MODEL, --like: give one of them", "plan", "--workers", 2)
    run.refused("MODEL, --like: give one of them", "plan", model_directory, "--like", "llama-3-8b", "--workers", 2)
    run.refused("Did you mean 'llama-3-8b'", "plan", "--like", "llama-3-b", "--workers", 2)
    run.refused("no such directory or file", "plan", tmp_path / "absent", "--workers", 2)
    run.refused("has no config.json", "plan", tmp_path, "--workers", 2)
    run.refused("--method: method='ultraedit'", "plan", model_directory, "--method", "ultraedit", "--workers", 2)
    run.refused("--rate 0.0: must be positive", "plan", model_directory, "--rate", 0, "--workers", 2)
    run.refused("--dtype int3: no such dtype", "plan", model_directory, "--dtype", "int3", "--workers", 2)
    run.refused("Invalid value for '--workers'", "plan", model_directory, "--workers", 0)
    run.refused("Missing option", "plan", model_directory)
    broken = tmp_path / "config.json"
    broken.write_text("{", "utf-8")
    run.refused("cannot be read", "plan", broken, "--workers", 2)
    broken.write_text('{"model_type": "t5"}', "utf-8")
    run.refused("no causal language model", "plan", broken, "--workers", 2)
