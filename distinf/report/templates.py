"""A report page's template and style: a route's own files, else those that all pages share."""

from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from distinf.printable import printable

SHARED = "distinf.report"


@dataclass(frozen=True)
class Picture:
    """A numbered figure."""

    number: int
    name: str
    svg: Markup
    title: str
    caption: str


def page_template(package: str) -> Template:
    """The package's template.html.jinja; whatever text it is given is escaped, and what in it would
    be obeyed is shown."""
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(partial(source, package)),
    )
    return environment.get_template("template.html.jinja")


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def source(package: str, name: str) -> str:
    """A file of the package, or the shared one of that name."""
    own = files(package) / name
    found = own if own.is_file() else files(SHARED) / name
    return found.read_text(encoding="utf-8")
