"""`factpatch anchor`: measure the norm that methods such as alphaedit-nas anchor values to, on facts of one's own."""

from __future__ import annotations

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe


@options.with_recipe("remember_keys", method="alphaedit-nas-blue")
def anchor(
    model: options.Model,
    recipe: Recipe,
    facts: options.Facts,
    limit: options.Limit = 1000,
    skip_unusable: options.SkipUnusable = False,
) -> None:
    """Measure on the unedited model the norms that a method such as alphaedit-nas rescales values to.

    Prints the setting that holds them. It takes as long as optimizing the values of these facts for an edit, and is
    cached. Without this command, an edit measures on the 24 facts that come with the package.

    Args:
        limit: Measure on the first N facts of the file. NAS was published with 1,000.
    """
    target = recipe.row.target
    if target.measures is None:
        raise checks.BadArgumentError(f"--method {recipe.row.name}: it has no anchor; take one such as alphaedit-nas.")
    with checks.argument("--facts"):
        from factpatch.data import load_facts

        read = load_facts(facts, limit, skip_unusable)
    editor = checks.make_editor(model, recipe, {})
    with checks.argument("--facts"):
        ((name, known),) = editor.measure(read).items()
    made = render.table("layer", "norm")
    for layer, norm in known:
        made.add_row(str(layer), f"{norm:g}")
    render.screen.print(made)
    render.say(
        f"Measured on {len(read)} facts. To edit with it: --set {name}=" + ",".join(f"{a}:{b}" for a, b in known)
    )
