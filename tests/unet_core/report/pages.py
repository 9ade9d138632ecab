"""Pages as a reader without a browser sees them: their facts, their text, and what they would load or run."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        elements: name and attributes of each.
        text: outside of scripts and styles.
        facts: of the machine-readable block.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._script, self._open = "", "", ""
        self.feed(path.read_text())
        self.facts: dict[str, Any] = json.loads(self._script)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self._script += data
        elif not self._open:
            self.text += data

    def has_class(self, name: str) -> bool:
        return any(name in (attributes.get("class") or "").split() for _, attributes in self.elements)


def check_inert(page: Page) -> None:
    """Nothing on the page runs, and nothing is loaded from anywhere."""
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert tag != "script" or attributes == {"type": "application/json", "id": "facts"}
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:image/").startswith("data:image/"), attributes
    policies = [
        attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
