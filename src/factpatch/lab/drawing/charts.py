"""Charts, drawn with matplotlib: a `Panel` becomes part of a figure in a file, or stands in a page of HTML."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from factpatch.support.files import atomic_write

FORMATS = (".png", ".svg", ".pdf")
# Colors that people with any kind of color vision tell apart (Okabe and Ito), those that are dark on white first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
BEFORE, AFTER = COLORS[:2]
GRAY = "#767676"
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
UNEDITED = "unedited"
"""The label that is always drawn in gray."""
# Inches. On a phone, text in a chart of this width stays readable without zooming.
_PAGE = (4.4, 2.9)
_FILE = (3.2, 3.2)
_LOOK = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Style:
    """How a line and its markers are drawn; an empty dash draws markers alone."""

    color: str
    dash: str = "-"
    marker: str = "o"

    @property
    def line(self) -> dict[str, Any]:
        """As arguments of matplotlib."""
        line = {"linestyle": self.dash or "none", "linewidth": 1.5}
        return {"color": self.color, "marker": self.marker, "markersize": 4, **line}


Styles = Mapping[str, Style]
"""A style for each label of a legend."""


@dataclass(frozen=True)
class Panel:
    """One chart, not drawn yet."""

    title: str
    alt: str
    """What it shows, in words."""
    draw: Callable[[Any, Styles], object]
    """Draws on axes of matplotlib, in the styles of its labels."""
    labels: Sequence[str] = ()
    """What a legend has to explain."""
    height: float = _PAGE[1]
    """In a page, in inches."""
    projection: str | None = None
    """Of the axes, as matplotlib calls it."""


@dataclass(frozen=True)
class Chart:
    """A chart or an entry of a legend, ready for a page."""

    title: str
    svg: str
    """An element that can stand in HTML."""


def styles_of(panels: Sequence[Panel]) -> Styles:
    """A style for each label, the same in all panels."""
    labels = dict.fromkeys(label for panel in panels for label in panel.labels if label != UNEDITED)
    found = {
        label: Style(COLORS[place % len(COLORS)], DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)])
        for place, label in enumerate(labels)
    }
    return {**found, UNEDITED: Style(GRAY, ":", ".")} if any(UNEDITED in panel.labels for panel in panels) else found


def figure(
    panels: Sequence[Panel],
    styles: Styles | None = None,
    *,
    title: str = "",
    columns: int = 4,
    size: tuple[float, float] = _FILE,
    sharey: bool = False,
) -> Any:
    """Draw panels side by side, with a legend below them.

    Args:
        styles: What the legend shows; by default `styles_of` the panels.
        columns: How many panels a line has at most.
        size: Width and height of each panel, in inches.
        sharey: Whether all panels have the same vertical axis.

    Returns:
        A figure of matplotlib.
    """
    styles = styles_of(panels) if styles is None else styles
    columns = min(columns, max(1, len(panels)))
    lines = -(-max(1, len(panels)) // columns)
    with _look():
        from matplotlib.lines import Line2D

        made = _figure((size[0] * columns, size[1] * lines))
        # Not `subplots`: panels may differ in their projection.
        first = None
        for place, panel in enumerate(panels, start=1):
            first = axis = made.add_subplot(
                lines, columns, place, projection=panel.projection, sharey=first if sharey else None
            )
            panel.draw(axis, styles)
            axis.set_title(panel.title, fontsize="medium")
            if sharey:
                axis.label_outer()
        handles = [Line2D([], [], **style.line, label=label) for label, style in styles.items() if label]
        if handles:
            made.legend(handles=handles, loc="outside lower center", ncols=min(4, columns), fontsize="small")
        made.suptitle(title)
    return made


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure of matplotlib as NAME.png and NAME.svg, each whole or not at all."""
    for path in figure_files(folder, name):
        save_plot(figure, path)
    return figure_files(folder, name)


def figure_files(folder: Path, name: str) -> list[Path]:
    """The files that `save_figure` writes."""
    return [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]


def save_plot(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as one file, whole or not at all.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The extension is unknown; `FORMATS` lists them.
        OSError: The file cannot be written.
    """
    check_plot_file(path)
    with _look():
        # The suffix of a draft says nothing of its format.
        atomic_write(path, partial(figure.savefig, format=path.suffix.lower().removeprefix("."), dpi=160))


def check_plot_file(path: Path) -> None:
    """Raise ValueError or ImportError unless a plot of this name can be drawn."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown extension {path.suffix!r}; known: {', '.join(FORMATS)}.")
    _figure((1, 1))


def charts(panels: Sequence[Panel], styles: Styles | None = None) -> list[Chart]:
    """Draw each panel for a page; `legend` explains the styles, by default `styles_of` the panels."""
    styles = styles_of(panels) if styles is None else styles
    return [
        Chart(panel.title, _svg(panel, styles, (_PAGE[0], panel.height), salt=panel.alt, alt=panel.alt))
        for panel in panels
    ]


def legend(styles: Styles) -> list[Chart]:
    """Draw the entries of a legend for a page: a line with a marker on it for each label."""

    def draw(axis: Any, styles: Styles) -> None:
        (style,) = styles.values()
        axis.plot([0, 1, 2], [0, 0, 0], **{**style.line, "markevery": [1], "markersize": 5})
        axis.axis("off")

    return [
        Chart(label, _svg(Panel(label, "", draw), {label: style}, (0.6, 0.2), salt=label))
        for label, style in styles.items()
        if label
    ]


@contextmanager
def _look(salt: str | None = None) -> Iterator[None]:
    """How all charts look. Names within an SVG come from the salt: with the same one they are the same again."""
    import matplotlib

    with matplotlib.rc_context({**_LOOK, "svg.hashsalt": salt or "factpatch"}):
        yield


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots are drawn with the `matplotlib` package; pip install 'factpatch[plots]'.") from None
    # Not through pyplot, which would look for a screen and keep every figure alive.
    return Figure(figsize=size, layout="constrained")


def _svg(panel: Panel, styles: Styles, size: tuple[float, float], salt: str, alt: str = "") -> str:
    """Draw a panel on one pair of axes, and return it as an element of HTML."""
    out = io.StringIO()
    with _look(salt):  # other names than those of its neighbors in the page
        figure = _figure(size)
        axis = figure.add_subplot(projection=panel.projection)
        panel.draw(axis, styles)
        figure.savefig(out, format="svg", transparent=True, dpi=200)
    return _in_html(out.getvalue(), alt)


def _in_html(svg: str, alt: str) -> str:
    """Strip a document of SVG of what only a file of its own needs."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            # A style inside a page would hold for the whole page.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        for name in list(parent.attrib):
            parent.attrib[name.rpartition("}")[2]] = parent.attrib.pop(name)
        # Nothing refers to these names, which are the same in every figure.
        if parent.tag in ("g", "svg"):
            parent.attrib.pop("id", None)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": alt} if alt else {"aria-hidden": "true"})
    return ElementTree.tostring(root, encoding="unicode")
