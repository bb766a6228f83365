"""From the options that describe an edit to an editor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factpatch.cli import checks

if TYPE_CHECKING:
    from factpatch.editor import Editor


def editor_from(how: dict[str, Any], seconds: dict[str, float]) -> Editor:
    """The editor that the arguments describe, those of the command line or those a session has kept."""
    chosen = checks.parse_layers(how["layers"])

    from factpatch.corpus import corpus_from
    from factpatch.editor import Editor
    from factpatch.methods import method_named
    from factpatch.model.precision import check_precision
    from factpatch.progress import timed
    from factpatch.settings import parse_assignments, with_settings

    with checks.argument("--method"):
        row = method_named(how["method"])
    with checks.argument("--set"):
        assigned = parse_assignments(how["settings"])
        with_settings(row, assigned)
    checks.check_place(how["device"], how["dtype"])
    with checks.argument("--precision"):
        check_precision(how["precision"])
    with checks.argument("--corpus"):
        opened = None if how["corpus"] is None else corpus_from(how["corpus"])
    with timed(seconds, "load"):
        lm = checks.load_model(how["model"], how["device"], how["dtype"], how["chat"])
    checks.check_layers(lm, chosen)
    preset = checks.load_preset(how.get("preset"), lm)  # sessions of old have none
    checks.check_variant(preset, how["variant"])
    return Editor(
        lm,
        method=how["method"],
        preset=preset,
        variant=how["variant"],
        critical_layers=chosen,
        settings=assigned,
        corpus=opened,
        corpus_tokens=how["corpus_tokens"],
        remember_keys=how["remember_keys"],
        precision=how["precision"],
        seed=how["seed"],
    )
