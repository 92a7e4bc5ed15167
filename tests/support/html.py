"""Pages as a browser has them, and the parts of a page by name."""

import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from distinf.report import svg
from distinf.report.schema import Figure, Page, Section, Table

ATTACK = '<script>alert(1)</script><img src=http://x.test/a onerror="b()">$x_1$ & "quoted"'
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


class Document(HTMLParser):
    """Tags with their attributes, text outside style and script, and tables.

    rows: a table's cells; lines: those with its headings.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sheets: list[str] = []
        self.rows: list[list[str]] = []
        self.lines: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.lines.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        (self.sheets if {"style", "script"} & {*self.open} else self.words).append(data)
        if "td" in self.open:
            self.rows[-1][-1] += data
        if {"td", "th"} & {*self.open}:
            self.lines[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [
            value or "" for _, attrs in self.tags if (value := attrs.get(attribute)) is not None
        ]


def opened(page: str, folder: Path, *flags: str) -> str:
    """The document as a browser has it once its scripts have run; its console must be quiet."""
    file = folder / "index.html"
    file.write_text(page, encoding="utf-8")
    quiet = ["gpu", "quic", "sync", "background-networking", "component-update"]
    words = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--v=0"]
    words += [f"--disable-{feature}" for feature in quiet]
    words += [*flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    made = subprocess.run(
        [str(BROWSER), *words], capture_output=True, text=True, timeout=60, check=True
    )
    assert "CONSOLE" not in made.stderr
    return made.stdout


def parts(page: Page) -> Iterator[Figure | Table]:
    """Its figures and tables, in order."""

    def of(items) -> Iterator[Figure | Table]:
        for item in items:
            if isinstance(item, Section):
                yield from of(item.items)
            elif isinstance(item, Figure | Table):
                yield item

    return of(page.sections)


def picture(page: Page, name: str) -> str | None:
    """The figure's <svg>; None where there is nothing to draw."""
    figure = next(f for f in parts(page) if isinstance(f, Figure) and f.name == name)
    return svg.picture(figure.name, figure.title, figure.draw)
