"""Charts for a page: matplotlib's figures as SVG that stands in HTML, with words for those who do not see them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

# Inches: on a phone, text of this size stays readable without zooming.
_WIDTH, _HEIGHT = 4.4, 2.9
_PARAMETERS = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Draw = Callable[[Any], None]
"""Draws on a pair of axes."""


@dataclass(frozen=True)
class Chart:
    """One chart."""

    title: str
    alt: str
    """What it shows, in words."""
    svg: str
    """An element that can stand in HTML."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend that stands beside several charts."""

    label: str
    svg: str


def chart(title: str, alt: str, draw: Draw, height: float = _HEIGHT, projection: str | None = None) -> Chart:
    """Draw a chart.

    Args:
        alt: What it shows, in words.
        height: In inches.
        projection: Of the axes, as matplotlib calls it.
    """
    return Chart(title, alt, _svg(draw, (_WIDTH, height), alt, projection=projection))


def key(label: str, color: str, dash: str, marker: str) -> Key:
    """Draw the entry of a legend: a line with a marker on it."""

    def draw(axis: Any) -> None:
        axis.plot(
            [0, 1, 2], [0, 0, 0], linestyle=dash or "none", color=color, marker=marker, markevery=[1], markersize=5
        )
        axis.axis("off")

    return Key(label, _svg(draw, (0.6, 0.2), "", salt=label))


def _svg(draw: Draw, size: tuple[float, float], alt: str, salt: str = "", projection: str | None = None) -> str:
    """Draw on one pair of axes, and return the figure as an element of HTML."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    # Names within a chart come from this: they are others than in its neighbors, and the same in the next page.
    with matplotlib.rc_context({**_PARAMETERS, "svg.hashsalt": alt or salt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(subplot_kw={"projection": projection}))
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
    if alt:
        root.attrib.update(role="img")
        root.attrib["aria-label"] = alt
    else:
        root.attrib["aria-hidden"] = "true"
    return ElementTree.tostring(root, encoding="unicode")
