"""What can be installed: bounds, the tested versions, the commands in errors and docs."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from distinf.errors import install_command
from tests.support.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
SOURCES = {path: path.read_text() for path in (ROOT / "distinf").rglob("*.py")}
NAMED = {extra for text in SOURCES.values() for extra in re.findall(r"_command\('(\w+)'\)", text)}


def required(extras):
    """The requirements of the package itself and of these extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [made for made in map(Requirement, lines) if made.name != "distinf"]


@pytest.mark.parametrize("made", required(EXTRAS), ids=lambda made: made.name)
def test_every_dependency_has_a_lower_and_an_upper_bound(made):
    kinds = {one.operator for one in made.specifier}
    dated = made.name == "types-PyYAML"  # its last number is a date
    assert kinds in ({">=", "<"}, {"=="}) or (dated and kinds == {">="})


def test_the_tested_versions_are_exact_and_within_the_bounds():
    pins = dict(re.fullmatch(r"([a-z0-9._-]+)==([\w.]+)", line).groups() for line in PINS)
    assert len(pins) == len(PINS)
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    for made in required(["wireless", "llm", "tensorflow", "test"]):
        assert made.specifier.contains(pins[made.name.lower()]), made


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_installs_from_a_checkout_is_the_tested_set(page):
    for line in re.findall(r"pip install .*", (ROOT / page).read_text()):
        for extras in re.findall(r"\.\[([\w,]+)\]", line):
            assert line.startswith("pip install -c constraints.txt -e "), line
            assert set(extras.split(",")) <= set(EXTRAS), line


@pytest.mark.parametrize("extra", sorted(NAMED))
def test_what_an_error_installs_are_the_packages_of_an_extra(extra):
    command = install_command(extra)
    found = {Requirement(word).name for word in re.findall(r'"([^"]+)"', command)}
    assert found >= {made.name for made in map(Requirement, EXTRAS[extra])}


def test_nothing_names_an_extra_of_a_package_that_is_not_published():
    pages = [ROOT / page for page in PAGES] + [*ROOT.glob("c*/**/*.yaml"), *ROOT.glob("c*/*.md")]
    texts = {page: page.read_text() for page in pages} | SOURCES
    assert len(texts) > len(SOURCES) + len(PAGES)
    assert not [path for path, text in texts.items() if "distinf[" in text]
