"""The error of a shift whose residual was distributed, and the bound on it: the paper's theorem 4.1 and lemma 4.2.

A layer whose direct residual is R* gets a share s of the residual R of a later layer instead. Both shifts have the same
Q, so that with facts as rows Δ* − Δ = (R* − sR)ᵀ Q, and by the triangle inequality

    ‖Δ* − Δ‖ ≤ ‖R* − sR‖ ‖Q‖ ≤ (‖R* − R‖ + (1 − s) ‖R‖) ‖Q‖ = (‖R* − R‖ + (1/s − 1) ‖sR‖) ‖Q‖ .

With m layers left, the even share s = 1/m makes 1/s − 1 = m − 1, which is the paper's L − l; the square root's share
s = 1/√m makes it √m − 1. All norms are spectral.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from statistics import median

import torch
from torch import Tensor

from factpatch.editor import Editor
from factpatch.lab.analysis.findings import Finding, Findings, Place, findings_of
from factpatch.lab.analysis.study import SPREADS, Study, undone
from factpatch.lab.drawing.charts import Panel
from factpatch.lab.drawing.shapes import Curve, lines
from factpatch.patch.shift import LowRank, decomposed
from factpatch.strategies.memory import Memory, Traces
from factpatch.values.reading import SubjectRows, read_keys

DISTANCE, SIZE, EARLIER = "distance", "batch size", "earlier edits"
ALONG = {DISTANCE: "distance", SIZE: "size", EARLIER: "earlier"}
"""The field of `Place` that each part varies."""


def bound(study: Study) -> Findings:
    """Compare both sides for the shifts that an edit of one layer alone gives, and vary what matters in the paper.

    - distance: all facts in one batch, with the residual of every later critical layer;
    - batch size: ever larger batches, as many of each size as the facts give;
    - earlier edits: one batch after another is edited at all critical layers, and preserved; after each of them, both
      sides for one more batch, always the same one, on the weights as they are then and with the keys of all earlier
      batches in Q (the paper's Q′).
    """
    study.editor.prepare()  # all layers at once
    numbers = (*_by_distance(study), *_by_size(study), *_by_earlier_edits(study))
    return Findings(numbers, tuple(_notes(study)))


def sides(exact: Tensor, last: Tensor, share: float, solved: Tensor) -> dict[str, float]:
    """Both sides of the bound, and their parts.

    Args:
        exact: R*, (n, d_value).
        last: R, (n, d_value).
        share: s, in (0, 1].
        solved: Q, (n, d_key): a solver's shift for a residual is (residual)ᵀ Q.

    Returns:
        `error` ‖Δ* − Δ‖, `relative` to ‖Δ*‖, `bound`, `ratio` of error and bound (NaN if both are zero), `apart`
        ‖R* − R‖, `kept_back` (1/s − 1)‖sR‖, and `amplification` ‖Q‖.
    """
    actual = share * last
    error = _norm(LowRank((exact - actual).T, solved))
    apart, kept_back = _spectral(exact - last), (1 / share - 1) * _spectral(actual)
    amplification = _spectral(solved)
    limit = (apart + kept_back) * amplification
    return {
        "error": error,
        "relative": _ratio(error, _norm(LowRank(exact.T, solved))),
        "bound": limit,
        "ratio": _ratio(error, limit),
        "apart": apart,
        "kept_back": kept_back,
        "amplification": amplification,
    }


def holds(error: float, limit: float) -> bool:
    """Whether the bound holds, apart from rounding in float64."""
    return error <= limit * (1 + 1e-9)


def solve_for(memory: Memory, keys: Tensor) -> Tensor:
    """Q, (n, d_key), of keys, (n, d_key): what the solver makes of residuals that are the identity."""
    return memory.solve(keys, torch.eye(len(keys), dtype=torch.float64)).matrix().cpu()


def batch_sizes(facts: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... and the number of facts itself."""
    found = [size * 10**power for power in range(len(str(facts))) for size in (1, 2, 5)]
    return [*(size for size in found if size < facts), facts]


def _by_distance(study: Study) -> Iterator[Finding]:
    keys, everything = _keys(study), slice(0, len(study.facts))
    for place, layer in enumerate(study.layers):
        solved = solve_for(study.editor.memory(layer), keys[layer])
        for last, spread in product(study.layers[place:], study.spreads):
            found = sides(study.residual(layer), study.residual(last), study.share(spread, layer, last), solved)
            yield from _findings(study, DISTANCE, layer, spread, everything, found, last=last)


def _by_size(study: Study) -> Iterator[Finding]:
    keys, facts = _keys(study), len(study.facts)
    for size, layer in product(batch_sizes(facts), study.layers):
        memory = study.editor.memory(layer)
        exact, last = study.residual(layer), study.residual(study.last)
        for batch in _batches(facts, size):
            solved = solve_for(memory, keys[layer][batch])
            for spread in study.spreads:
                found = sides(exact[batch], last[batch], study.share(spread, layer), solved)
                yield from _findings(study, SIZE, layer, spread, batch, found)


def _by_earlier_edits(study: Study) -> Iterator[Finding]:
    *batches, probe = _batches(len(study.facts), study.batch_size) or [slice(0, len(study.facts))]
    facts = study.facts[probe]
    for spread in study.spreads:
        with undone(study.editor.with_spread(SPREADS[spread])) as editor:
            memories = {layer: editor.memory(layer) for layer in study.layers}
            subjects = SubjectRows.of(study.lm, facts, editor.contexts)
            for batch in (None, *batches):
                if batch is not None:
                    editor.edit(study.facts[batch])
                exact = {layer: editor.target_values(facts, layer).delta.double().cpu() for layer in study.layers}
                for layer in study.layers:
                    keys, earlier = read_keys(study.lm, subjects, layer).cpu().double(), _earlier(editor, layer)
                    memories[layer].follow(earlier)
                    solved = solve_for(memories[layer], keys)
                    found = sides(exact[layer], exact[study.last], study.share(spread, layer), solved)
                    found["amplification_alone"] = _spectral(solve_for(editor.memory(layer), keys))
                    before = sum(len(traces["keys"]) for traces in earlier)
                    yield from _findings(study, EARLIER, layer, spread, probe, found, earlier=before)


def _batches(facts: int, size: int) -> list[slice]:
    """Whole batches of successive facts."""
    return [slice(start, start + size) for start in range(0, facts - size + 1, size)]


def _earlier(editor: Editor, layer: int) -> list[Traces]:
    """What the editor's solver remembers of each batch in a layer."""
    return [edit.traces[layer] for edit in editor.edits]


def _keys(study: Study) -> dict[int, Tensor]:
    """The keys of all facts on unedited weights by layer, (n, d_key), float64 on the CPU."""
    subjects = SubjectRows.of(study.lm, study.facts, study.editor.contexts)
    return {layer: read_keys(study.lm, subjects, layer).cpu().double() for layer in study.layers}


def _findings(
    study: Study,
    part: str,
    layer: int,
    spread: str,
    batch: slice,
    found: Mapping[str, float],
    last: int | None = None,
    earlier: int = 0,
) -> Iterator[Finding]:
    last = study.last if last is None else last
    distance = study.layers.index(last) - study.layers.index(layer)
    place = Place(layer, None, spread, part, last, distance, batch.stop - batch.start, earlier)
    name = f"all {batch.stop} facts" if part == DISTANCE else f"facts {batch.start + 1} to {batch.stop}"
    for measure, value in found.items():
        yield from findings_of(place, measure, [name], [value])


def _notes(study: Study) -> Iterator[str]:
    facts = len(study.facts)
    if facts < 2 * study.batch_size:
        yield (
            f"{facts} facts make no second batch of {study.batch_size}, so nothing is known of earlier edits; give "
            "more facts, or smaller batches."
        )
    if len(study.layers) < 2:
        yield f"The only critical layer is {study.last}: nothing is distributed, and both sides are zero."


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def _norm(shift: LowRank) -> float:
    return float(decomposed(shift)[1][0])


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("nan")


_SIDES = {"error": "‖Δ* − Δ‖", "bound": "bound"}
_GAIN = {"amplification": "‖Q‖"}
_GAINS = {"amplification": "‖Q′‖", "amplification_alone": "‖Q‖, no earlier keys"}


def panels(findings: Findings) -> list[Panel]:
    """Both sides by distance, batch size and earlier edits; and ‖Q‖, which the paper says grows with the latter two."""
    last, first = max(findings.among("last")), min(findings.among("layer"))
    left, size, earlier = "layers left − 1", "facts in the batch", "facts edited before"
    shown: tuple[tuple[str, str, str, Mapping[str, str], dict[str, int]], ...] = (
        (f"Residual distributed from layer {last}", left, DISTANCE, _SIDES, {"last": last}),
        (f"Layer {first}, ever later residuals", left, DISTANCE, _SIDES, {"layer": first}),
        (f"Layer {first}, batches of a size", size, SIZE, _SIDES, {"layer": first}),
        (f"Layer {first}, after other edits", earlier, EARLIER, _SIDES, {"layer": first}),
        (f"‖Q‖ at layer {first}, by batch", size, SIZE, _GAIN, {"layer": first}),
        (f"‖Q‖ at layer {first}, by edits", earlier, EARLIER, _GAINS, {"layer": first}),
    )
    drawn = []
    for title, x, part, measures, where in shown:
        spreads = findings.among("spread")
        # On unedited weights, ‖Q‖ does not depend on the spread.
        curves = [
            Curve(name if measures is _GAIN else f"{name}, {spread}", points)
            for spread in (spreads[:1] if measures is _GAIN else spreads)
            for measure, name in measures.items()
            if len(points := findings.curve(measure, ALONG[part], part=part, spread=spread, **where)) > 1
        ]
        if curves:
            drawn.append(lines(title, x, "spectral norm", curves, log_x=part == SIZE))
    return drawn


def in_words(findings: Findings) -> list[str]:
    """Whether the bound holds, how tight it is and how both sides grow."""
    values = {
        name: {(one.place, one.of): one.value for one in findings.numbers if one.measure == name}
        for name in ("error", "bound", "ratio")
    }
    pairs = [(error, values["bound"][case]) for case, error in values["error"].items()]
    held = sum(error is not None and limit is not None and holds(error, limit) for error, limit in pairs)
    found = [f"The bound holds in {held} of {len(pairs)} cases."]
    ratios = [value for value in values["ratio"].values() if value is not None]
    if ratios:
        found.append(
            f"Where it is not zero, the error is {100 * min(ratios):.0f} to {100 * max(ratios):.0f} % of the bound, "
            f"{100 * median(ratios):.0f} % in the median."
        )
    last, first = max(findings.among("last")), min(findings.among("layer"))
    for spread in findings.among("spread"):
        for part, where, what in (
            (DISTANCE, {"last": last}, f"By distance from layer {last}"),
            (DISTANCE, {"layer": first}, f"At layer {first}, by distance of the residual"),
            (SIZE, {"layer": first}, f"At layer {first}, by batch size"),
            (EARLIER, {"layer": first}, f"At layer {first}, by facts edited before"),
        ):
            gains = _GAINS if part == EARLIER else _GAIN
            courses = [
                f"{name} " + ", ".join(f"{mean.value:.3g} at {place}" for place, mean in points)
                for measure, name in {**_SIDES, "relative": "‖Δ* − Δ‖ / ‖Δ*‖", **gains}.items()
                # A single point shows no growth.
                if len(points := findings.curve(measure, ALONG[part], part=part, spread=spread, **where)) > 1
            ]
            if courses:
                found.append(f"{what}, {spread}: {'; '.join(courses)}.")
    return found
