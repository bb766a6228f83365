"""What tests look for in a page of HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Which elements a page has; complains if they do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.labels: list[str] = []
        """Words in charts."""
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data.strip())
        if self.open and self.open[-1] == "text":
            self.labels.append(data)
        if "style" not in self.open:
            self.text += data


def assert_needs_nothing(text: str) -> None:
    """No network, no script, no other file, and no link that leads nowhere."""
    found = Page(text)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not {tag for tag, _ in found.elements} & {"script", "link", "iframe", "object"}
    for tag, attributes in found.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    targets = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    for tag, attributes in found.elements:
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in targets, tag
