"""`factpatch plan`: what editing with workers would take, from a model's config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.filesize import decimal

from factpatch.cli import checks, options, render
from factpatch.support.files import write_json
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.lab.scale.costs import Costs
    from factpatch.lab.scale.machines import Machines


@options.documented
def plan(
    workers: Annotated[int, typer.Option(min=1, metavar="N")],
    model: options.OptionalModel = None,
    like: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    gpus_per_worker: Annotated[int, typer.Option(min=1, metavar="G")] = 1,
    facts: Annotated[int, typer.Option(min=1, metavar="N")] = 100,
    contexts: Annotated[int, typer.Option(min=1, metavar="C")] = 6,
    method: Annotated[str, typer.Option(metavar="NAME")] = "memit-blue",
    tokens: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="D")] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option()] = "cuda",
    rate: Annotated[float | None, typer.Option(metavar="TFLOP/S")] = None,
    rate64: Annotated[float | None, typer.Option("--rate64", metavar="TFLOP/S")] = None,
    solve_rate: Annotated[float | None, typer.Option(metavar="GFLOP/S")] = None,
    network: Annotated[float | None, typer.Option(metavar="GBIT/S")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", callback=checks.new_file)] = None,
) -> None:
    """Show what workers would take of memory, network and time, before there are any.

    Reads a model's config, and neither its weights nor the network. Sizes are exact. Times are those of so many
    operations at so many a second, which are guesses until you give your own: expect them within a factor of two.

    Args:
        model: A directory, a config.json, an embedded model, or an id of the Hugging Face Hub whose config is in the
            cache.
        like: Plan for a model whose config is shipped instead: llama-3-8b, llama-3-70b or mixtral-8x7b.
        workers: How many workers share the work. 1 is this process alone.
        gpus_per_worker: Over how many devices a copy of the model is spread, one running after the other.
        facts: How many facts a batch has.
        contexts: In how many contexts a fact is optimized. Default: the published six.
        method: The method, with the layers and steps of the model's preset or of the nearest one.
        tokens: How many tokens the second moment reads. Default: the preset's, or 5 per key dimension.
        dtype: The dtype of the weights. Default: what the config says.
        device: What workers compute on, which decides the size of shards and the rates below.
        rate: Operations of a worker on the model. Default: 400 for cuda, which is 40 % of what the vendor names for an
            H100 in bfloat16, not measured; 0.079 for cpu, measured on two cores.
        rate64: The same in float64. Default: 27 for cuda, 40 % of the vendor's; 0.04 for cpu; neither measured.
        solve_rate: Operations of the driver's CPU in a solve, in float64. Default: 30, measured on one thread.
        network: The driver's link. Default: 10, nominal.
        json: Also write all numbers to this file, in bytes and seconds.
    """
    if (model is None) == (like is None):
        raise checks.BadArgumentError("MODEL, --like: give one of them, and not both.")
    rates = {"--rate": rate, "--rate64": rate64, "--solve-rate": solve_rate, "--network": network}
    for name, value in rates.items():
        if value is not None and not 0 < value < float("inf"):
            raise checks.BadArgumentError(f"{name} {value}: must be positive and finite.")

    from factpatch.lab.scale.costs import Costs
    from factpatch.lab.scale.machines import GIGA, KINDS, TERA
    from factpatch.lab.scale.shape import DTYPES, shape_like, shape_named
    from factpatch.lab.scale.work import batch_of, pass_of
    from factpatch.support.words import suggestion

    if dtype is not None and dtype not in DTYPES:
        raise checks.BadArgumentError(f"--dtype {dtype}: no such dtype.{suggestion(dtype, DTYPES)}")
    with checks.argument("MODEL" if like is None else "--like"):
        shape = shape_named(str(model)) if like is None else shape_like(like)
    with checks.argument("--method"):
        batch = batch_of(shape, method, facts, contexts, device)
    units = {"rate": (rate, TERA), "rate64": (rate64, TERA), "solve_rate": (solve_rate, GIGA)}
    given = {name: value * unit for name, (value, unit) in units.items() if value is not None}
    if network is not None:
        given["network"] = network * GIGA / 8
    machines = replace(KINDS[device], workers=workers, gpus_per_worker=gpus_per_worker, **given)
    costs = Costs(batch, pass_of(batch, tokens), machines, dtype)
    _show(costs)
    if json is not None:
        write_json(json, costs.to_dict())
        render.written(Plan=json)


def _show(costs: Costs) -> None:
    shape, batch, machines = costs.batch.shape, costs.batch, costs.machines
    render.say(
        f"{shape.name}: {shape.parameters:,} parameters in {costs.dtype or shape.dtype}, {shape.layers} layers, d_key "
        f"{shape.d_key}, d_value {shape.d_value}",
        "bold",
    )
    render.say(
        f"{counted(batch.facts, 'fact')} in {counted(len(batch.shards), 'shard')}, values at layers "
        f"{render.numbers(batch.targets)}, writes to {render.numbers(batch.written)}; second moments of "
        f"{costs.text.tokens:,} tokens in {counted(costs.text.shards, 'shard')}"
    )
    if shape.experts:
        render.paragraph(
            f"A mixture of {shape.experts} experts: what is planned is an edit of a dense model of that size. Sizes "
            f"are of all experts of a layer, times of the {shape.passed} that a token passes and of one solve a layer."
        )
    if machines.gpus_per_worker > 1:
        render.paragraph(
            f"Weights of a worker are spread over {machines.gpus_per_worker} devices: --device auto with --workers "
            f"'ray://HOST:PORT?gpus={machines.gpus_per_worker}'. This says what each holds."
        )
    _memory(costs)
    rows = {"a batch": costs.batch_traffic(), "second moments": costs.text_traffic()}
    made = render.table("through the driver's link", *("what", "size"))
    for work, parts in rows.items():
        for what, size in parts.items():
            made.add_row(work, what, decimal(int(size)))
    render.screen.print(made)
    _times(costs)
    _advice(costs)


def _memory(costs: Costs) -> None:
    made = render.table("memory of", "what", "size")
    over = costs.machines.gpus_per_worker
    for who, parts in {
        "a worker, editing": costs.worker(),
        "the driver, editing": costs.driver(),
        "a worker, second moments": costs.worker_of_moments(),
        "the driver, second moments": costs.driver_of_moments(),
    }.items():
        for what, size in parts.items():
            spread = f" ({decimal(-(-int(size) // over))} a device)" if what == "weights" and over > 1 else ""
            made.add_row(who, what, decimal(int(size)) + spread)
        made.add_row("", "in all", decimal(int(sum(parts.values()))), style="bold")
    render.screen.print(made)
    render.say("Activations come on top: micro-batches take up to half of what is free.")


def _times(costs: Costs) -> None:
    made = render.table("seconds of", "what", "")
    made.columns[-1].justify = "right"
    factor = {"factoring (driver, once)": costs.factor_seconds()}
    for work, parts in {"a batch": costs.batch_seconds(), "second moments": costs.text_seconds() | factor}.items():
        _add(made, work, parts)
    render.screen.print(made)
    render.say(_basis(costs.machines), "dim")


def _add(made: object, work: str, parts: Mapping[str, float]) -> None:
    from rich.table import Table

    assert isinstance(made, Table)
    for what, took in parts.items():
        made.add_row(work, what, f"{took:,.1f}")
    made.add_row("", "in all", f"{sum(parts.values()):,.1f}", style="bold")


def _basis(machines: Machines) -> str:
    return (
        f"At {machines.rate / 1e12:g} TFLOP/s a worker ({machines.rate64 / 1e12:g} in float64), "
        f"{machines.solve_rate / 1e9:g} GFLOP/s in solves, {8 * machines.network / 1e9:g} Gbit/s, "
        f"{machines.copying / 1e9:g} GB/s in hashing."
    )


def _advice(costs: Costs) -> None:
    """What the number of workers can gain at all, and where it ends."""
    from factpatch.lab.scale.simulate import last_that_pays

    share, best = costs.shared_fraction(), last_that_pays(costs.by_workers())
    render.say(
        f"Of a batch in one process, {100 * share:.1f} % is shared, so that no number of workers makes it more than "
        f"{1 / (1 - share):.1f} times as fast (Amdahl)."
    )
    if best.workers == 1:
        render.say("More workers do not pay for batches of this size; one process is best.")
    else:
        render.say(f"More than {best.workers} workers do not pay: these make it {best.speedup:.1f} times as fast.")
