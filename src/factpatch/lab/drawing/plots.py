"""Plots, drawn with matplotlib and written as files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from factpatch.support.files import atomic_write

FORMATS = (".png", ".svg", ".pdf")
# Colors that people with any kind of color vision tell apart (Okabe and Ito), those that are dark on white first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*"
BEFORE, AFTER = COLORS[:2]
_PANEL = 3.2  # inches


def plot_hidden_shift(path: Path, before: Tensor, after: Tensor, title: str = "") -> None:
    """Draw a map of hidden states before and after an edit, with the distribution along each axis, as Figure 7.

    Args:
        path: Where to write; `FORMATS` lists the extensions. The file appears whole or not at all.
        before: (n, 2), as `tsne_map` gives them.
        after: (n, 2).
        title: Text above the plot.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The extension is unknown.
        OSError: The file cannot be written.
    """
    check_plot_file(path)
    figure = _figure()
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5), wspace=0.03, hspace=0.03)
    main = figure.add_subplot(grid[1, 0])
    top, right = figure.add_subplot(grid[0, 0], sharex=main), figure.add_subplot(grid[1, 1], sharey=main)
    draw_states(main, before, after, size=7)
    for places, color in ((before, BEFORE), (after, AFTER)):
        x, y = places.T.tolist()
        top.hist(x, bins=40, color=color, alpha=0.5)
        right.hist(y, bins=40, color=color, alpha=0.5, orientation="horizontal")
    for side in (top, right):
        side.axis("off")
    main.legend(frameon=False, loc="upper left", markerscale=2)
    top.set_title(title, fontsize=10)
    options = {"format": path.suffix.removeprefix("."), "dpi": 160}
    atomic_write(path, lambda draft: figure.savefig(draft, **options))


def draw_states(axis: Any, before: Tensor, after: Tensor, size: float = 4) -> None:
    """Draw a map of hidden states before and after an edit on one pair of axes.

    Args:
        axis: Of matplotlib.
        before: (n, 2), as `tsne_map` gives them.
        after: (n, 2).
        size: Of a state, in square points.
    """
    for places, color, name in ((before, BEFORE, "before the edit"), (after, AFTER, "after the edit")):
        x, y = places.T.tolist()
        axis.scatter(x, y, s=size, color=color, alpha=0.6, linewidths=0, label=name)
    # A map of t-SNE has no unit.
    axis.set(xticks=[], yticks=[])


def plot_tradeoff(path: Path, points: Sequence[tuple[float, float]], chosen: Sequence[bool], title: str = "") -> None:
    """Draw what settings gain against what they cost, the best of each cost joined by a line.

    Args:
        path: Where to write; `FORMATS` lists the extensions. The file appears whole or not at all.
        points: Of each setting, perplexity's rise in percent and S.
        chosen: Which of them was chosen.
        title: Text above the plot.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The extension is unknown.
        OSError: The file cannot be written.
    """
    check_plot_file(path)
    figure = _figure()
    axes = figure.add_subplot()
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    axes.plot(*zip(*front, strict=True), color="#999999", linewidth=1, label="best at its cost")
    for which, color, name in ((False, BEFORE, "tried"), (True, AFTER, "chosen")):
        some = [point for point, is_chosen in zip(points, chosen, strict=True) if is_chosen is which]
        if some:
            axes.scatter(*zip(*some, strict=True), s=24, color=color, label=name, zorder=3)
    axes.set(xlabel="rise of perplexity in percent", ylabel="S")
    axes.legend(frameon=False)
    axes.set_title(title, fontsize=10)
    options = {"format": path.suffix.removeprefix("."), "dpi": 160}
    atomic_write(path, lambda draft: figure.savefig(draft, **options))


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure of matplotlib as NAME.png and NAME.svg, each whole or not at all."""
    written = figure_files(folder, name)
    for path in written:
        # The suffix of a draft says nothing of its format.
        atomic_write(path, partial(figure.savefig, format=path.suffix.removeprefix("."), dpi=150))
    return written


def figure_files(folder: Path, name: str) -> list[Path]:
    """The files that `save_figure` writes."""
    return [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]


def check_plot_file(path: Path) -> None:
    """Raise ValueError or ImportError unless a plot of this name can be drawn."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown extension {path.suffix!r}; known: {', '.join(FORMATS)}.")
    _figure()


def panels(
    count: int,
    projection: str | None = None,
    columns: int = 4,
    size: tuple[float, float] = (_PANEL, _PANEL),
    sharey: bool = False,
) -> tuple[Any, list[Any]]:
    """A figure of matplotlib with so many pairs of axes side by side, and the axes.

    Args:
        projection: Of the axes, as matplotlib calls it.
        columns: Of axes at most; more go into further lines.
        size: Width and height of each panel, in inches.
        sharey: Whether all have the same vertical axis.
    """
    from matplotlib.figure import Figure

    columns = min(columns, max(1, count))
    lines = -(-max(1, count) // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=sharey, subplot_kw={"projection": projection})
    flat = list(axes.flatten())
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots are drawn with the `matplotlib` package; pip install 'factpatch[plots]'.") from None
    # Not through pyplot, which would look for a screen and keep every figure alive.
    return Figure(figsize=(6, 6), layout="constrained")
