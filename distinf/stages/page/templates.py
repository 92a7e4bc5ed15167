"""A report page's template and style: a route's own files, else those that all pages share."""

from dataclasses import dataclass
from functools import partial
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

SHARED = "distinf.stages.page"


@dataclass(frozen=True)
class Picture:
    """A numbered figure."""

    number: int
    name: str
    svg: Markup
    title: str
    caption: str


def page_template(package: str) -> Template:
    """The package's template.html.jinja; whatever text it is given is escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(partial(source, package)),
    )
    return environment.get_template("template.html.jinja")


def source(package: str, name: str) -> str:
    """A file of the package, or the shared one of that name."""
    own = files(package) / name
    found = own if own.is_file() else files(SHARED) / name
    return found.read_text(encoding="utf-8")
