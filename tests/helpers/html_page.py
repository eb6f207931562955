"""What is in a page of HTML."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """A page's text, tags, and whatever it would load from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.text, self.tags, self._inside = [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self._inside.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        self._inside.append(tag)

    def handle_data(self, data: str) -> None:
        if not self._inside or self._inside[-1] not in ("script", "style") or not data.strip():
            self.text += data.replace("\xa0", " ")
