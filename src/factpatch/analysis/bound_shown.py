"""What `bound` finds, as curves and in words."""

from __future__ import annotations

from statistics import median

from factpatch.analysis.bound import DISTANCE, EARLIER, SIZE, holds
from factpatch.analysis.panels import Curve, Lines, Panel, curve
from factpatch.analysis.rows import Findings

_SIDES = {"error": "‖Δ* − Δ‖", "bound": "bound"}
_GAINS = {"amplification": "‖Q′‖", "amplification_alone": "‖Q‖, no earlier keys"}


def panels(findings: Findings) -> list[Panel]:
    """Both sides by distance, batch size and earlier edits; and ‖Q‖, which the paper says grows with the latter two."""
    last, first = max(findings.among("last")), min(findings.among("layer"))
    away = f"from layer {last}"
    drawn = (
        _lines(findings, f"Residual distributed {away}", "layers left − 1", "distance", DISTANCE, last=last),
        _lines(
            findings,
            f"Layer {first}, ever later residuals",
            "layers left − 1",
            "distance",
            DISTANCE,
            layer=first,
        ),
        _lines(findings, f"Layer {first}, batches of a size", "facts in the batch", "size", SIZE, layer=first),
        _lines(findings, f"Layer {first}, after other edits", "facts edited before", "earlier", EARLIER, layer=first),
        _by_size(findings, first),
        _by_earlier(findings, first),
    )
    return [panel for panel in drawn if panel.curves]


def _lines(findings: Findings, title: str, x: str, along: str, part: str, **where: int) -> Lines:
    curves = [
        curve(f"{name}, {spread}", findings.curve(measure, along, part=part, spread=spread, **where))
        for spread in findings.among("spread")
        for measure, name in _SIDES.items()
    ]
    return Lines(title, x, "spectral norm", _several(curves), log_x=part == SIZE)


def _by_size(findings: Findings, layer: int) -> Lines:
    """‖Q‖ by the number of facts. It does not depend on the spread: one curve shows it."""
    where = {"part": SIZE, "layer": layer, "spread": findings.among("spread")[0]}
    curves = [curve("‖Q‖", findings.curve("amplification", "size", **where))]
    title = f"‖Q‖ at layer {layer}, by batch"
    return Lines(title, "facts in the batch", "spectral norm", _several(curves), log_x=True)


def _by_earlier(findings: Findings, layer: int) -> Lines:
    """‖Q′‖ with and without the earlier keys. They do depend on the spread, by the weights that keys are read on."""
    curves = [
        curve(f"{name}, {spread}", findings.curve(measure, "earlier", part=EARLIER, spread=spread, layer=layer))
        for spread in findings.among("spread")
        for measure, name in _gains(EARLIER).items()
    ]
    title = f"‖Q‖ at layer {layer}, by edits"
    return Lines(title, "facts edited before", "spectral norm", _several(curves))


def _several(curves: list[Curve]) -> tuple[Curve, ...]:
    """Those with more than one point: a curve of one says nothing of growth."""
    return tuple(one for one in curves if len(one.points) > 1)


def say(findings: Findings) -> list[str]:
    """Whether the bound holds, how tight it is and how both sides grow, in words."""
    found = {(row.place, row.measure, row.of): row.value for row in findings.rows}
    pairs = [(value, found[place, "bound", of]) for (place, name, of), value in found.items() if name == "error"]
    held = sum(error is not None and limit is not None and holds(error, limit) for error, limit in pairs)
    said = [f"The bound holds in {held} of {len(pairs)} cases."]
    ratios = [value for (_, name, _), value in found.items() if name == "ratio" and value is not None]
    if ratios:
        said.append(
            f"Where it is not zero, the error is {100 * min(ratios):.0f} to {100 * max(ratios):.0f} % of the bound, "
            f"{100 * median(ratios):.0f} % in the median."
        )
    last, first = max(findings.among("last")), min(findings.among("layer"))
    for spread in findings.among("spread"):
        for part, along, where, what in (
            (DISTANCE, "distance", {"last": last}, f"By distance from layer {last}"),
            (DISTANCE, "distance", {"layer": first}, f"At layer {first}, by distance of the residual"),
            (SIZE, "size", {"layer": first}, f"At layer {first}, by batch size"),
            (EARLIER, "earlier", {"layer": first}, f"At layer {first}, by facts edited before"),
        ):
            told = [
                f"{name} {_course(findings, measure, along, part=part, spread=spread, **where)}"
                for measure, name in {**_SIDES, "relative": "‖Δ* − Δ‖ / ‖Δ*‖", **_gains(part)}.items()
                if len(findings.curve(measure, along, part=part, spread=spread, **where)) > 1
            ]
            if told:
                said.append(f"{what}, {spread}: {'; '.join(told)}.")
    return said


def _gains(part: str) -> dict[str, str]:
    return _GAINS if part == EARLIER else {"amplification": "‖Q‖"}


def _course(findings: Findings, measure: str, along: str, **where: object) -> str:
    """As `0.12 at 1, 0.31 at 2`: the means, and where along the field each is."""
    return ", ".join(f"{found.value:.3g} at {x}" for x, found in findings.curve(measure, along, **where))
