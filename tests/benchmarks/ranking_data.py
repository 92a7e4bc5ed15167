"""Texts on which rules for ranking wrong labels are chosen: none that one is tested on.

    python -m tests.benchmarks.ranking_data blimp100.tsv.gz OUT

Sentences are BLiMP's (Warstadt et al. 2020, CC BY 4.0); a pair is never split. Documentation is the
first sentence of docstrings of installed packages, read from their sources; a package's own name
is taken out.
"""

import ast
import csv
import gzip
import importlib.util
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TERMS = {
    "terms2": ("filler_gap_dependency", "island_effects"),
    "terms5": ("determiner_noun_agreement", "filler_gap_dependency", "control_raising",
               "quantifiers", "s-selection"),
}  # fmt: skip
PACKAGES = {
    "docs2": ("scipy", "sympy"),
    "docs4": ("pandas", "matplotlib", "networkx", "torch"),
}
WORDS = range(6, 31)
MOST = 1_100  # sentences of a package
PAIRS = 2_000  # of names and sentences


def main(blimp: str, out: str) -> None:
    with gzip.open(blimp, "rt", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file, delimiter="\t"))
    tables = {
        name: [row for pair in pairs for row in of_terms(pair, terms)]
        for name, terms in TERMS.items()
    }
    documented = {p: list(docstrings(p)) for of in PACKAGES.values() for p in of}
    for name, packages in PACKAGES.items():
        tables[name] = [
            {"text": text, "label": package, "group": text}
            for package in packages
            for text in some([text for _, text in documented[package]], MOST)
        ]
    tables["names"] = list(named([pair for of in documented.values() for pair in of]))
    for name, rows in tables.items():
        random.Random(0).shuffle(rows)
        path = Path(out, f"{name}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"{path}: {len(rows)} rows")


def of_terms(pair: dict[str, str], terms: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Which phenomenon is the sentence of?"""
    if pair["term"] in terms:
        for kind in ("good", "bad"):
            group = f"{pair['uid']}{pair['pair_id']}"
            yield {"text": pair[kind], "label": pair["term"], "group": group}


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """(name in words, first sentence) of a package's functions and classes."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    for path in sorted(Path(found.submodule_search_locations[0]).rglob("*.py")):
        if "test" in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                text = re.sub(package, "", text, flags=re.IGNORECASE)
                name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_+", " ", node.name).lower()
                if len(text.split()) in WORDS and len(name.split()) > 1:
                    yield name, text


def some(texts: list[str], most: int) -> list[str]:
    """At most so many different ones, drawn."""
    different = sorted(set(texts))
    return random.Random(0).sample(different, min(most, len(different)))


def named(every: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Is the sentence of the function of this name, or of another one?"""
    of = {text: name for name, text in every}
    texts = some([*of], PAIRS)
    for place, text in enumerate(texts):
        other = of[texts[(place + 1) % len(texts)]]
        right = place % 2 == 0
        label = "own" if right else "other"
        yield {"sentence1": of[text] if right else other, "sentence2": text, "label": label}


if __name__ == "__main__":
    main(*sys.argv[1:])
