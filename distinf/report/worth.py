"""What an evaluation found, on the page of the run: a sentence of the answer, and its tables."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from distinf.engine.measures import CEILING_BY, TRAINED
from distinf.engine.session import Session
from distinf.numerics.counterfactual import LEAST_CEILING
from distinf.report.formats import count, number
from distinf.report.rows import Row, grouped
from distinf.report.schema import Column, Entry, Page, Section, Table, stub

FOLDER, FILE = "evaluations", "measures.json"
HALVES, ADDED, OWN_LOSS = "LDS, half left out", "loss added", "own loss"
INTRO = "Held against training again on parts of the rows; docs/worth.md says how to read it."


def measures(session: Session) -> list[Row]:
    """Of the evaluation of the run's scores that trained most, of equal ones that of most rankings;
    [] without one. Of scores and models that the run had before its settings changed none is shown.
    """
    blobs, evaluates = session.blobs, session.recipe.evaluates
    found: dict[tuple[int, int], list[Row]] = {}
    for name in blobs.names(FOLDER):
        if name.endswith(f"/{FILE}"):
            with suppress(KeyError, ValueError, TypeError, OSError):  # damaged: verify tells
                whole = json.loads(blobs.get(name))
                if evaluates is None or whole["of"] != evaluates.key(session):
                    continue
                rows = [{"measure": str(r["measure"]), **r} for r in whole["measures"]]
                found[int(whole["trainings"]), len(rows)] = rows
    return found[max(found)] if found else []


def shown(page: Page, rows: Sequence[Row]) -> Page:
    """The page with them."""
    if not rows:
        return page
    place = next((k for k, s in enumerate(page.sections) if s.anchor == "reading"), None)
    tables = list(map(_table, grouped(rows, "measure").values()))
    section = Section("worth", "What the scores are worth", tables, INTRO, short="Worth")
    sections = [*page.sections]
    sections.insert(len(sections) if place is None else place, section)
    return replace(page, answer=[*page.answer, sentence(rows)], sections=sections)


def sentence(rows: Sequence[Row]) -> str:
    """The best ranking's datamodeling score beside its ceiling, and what the top rows did."""
    parts = []
    halves = [r for r in rows if r["measure"] == HALVES and r["value"] is not None]
    if halves:
        best = max(halves, key=lambda r: r["value"])
        top = best.get("ceiling")
        most = f" of a possible {number(top, 2)}" if top is not None else ""
        parts.append(f"LDS {number(best['value'], 2)}{most} ({best['ranking']})")
        free = [r for r in halves if r["ranking"] == OWN_LOSS]
        parts += [f"own loss {number(r['value'], 2)}" for r in free[:1]]
    for row in rows:
        if row["measure"].startswith(ADDED) and row["value"] is not None:
            parts.append(f"{row['measure']}: {number(row['value'], 2)}")
    return f"Held against training again: {'; '.join(parts)}." if parts else ""


def remark(rows: Sequence[Row]) -> str:
    """What to know of one measure's rows beside their numbers: of the ceiling, and their cost."""
    why, took = (rows[0].get(key) for key in (CEILING_BY, TRAINED))
    told = [f"What was possible: {why}." if why else "", too_noisy(rows)]
    told += [f"Trainings and steps behind it: {number(took)} gradients of a row." if took else ""]
    return " ".join(filter(None, told))


def too_noisy(rows: Sequence[Row]) -> str:
    """What to say where the same subsets trained twice hardly agree; "" where they do."""
    tops = [row["ceiling"] for row in rows if row.get("ceiling") is not None]
    if not tops or not min(tops) < LEAST_CEILING:
        return ""
    return (
        f"A ceiling below {LEAST_CEILING:g}: trainings on the same rows hardly agree, so that "
        "nothing can be measured by them; raise --repeats."
    )


def _table(rows: Sequence[Row]) -> Table:
    rows = sorted(rows, key=lambda r: (r["cell"], -(r["value"] or 0.0)))
    columns = [
        *([stub("cell", "cell")] if len({r["cell"] for r in rows}) > 1 else []),
        stub("ranking", "ranking"),
        Column("value", _with_interval("value", "low", "high")),
        Column("of a possible", _with_interval("ceiling", "ceiling_low", "ceiling_high")),
        Column("share of it", "of_ceiling"),
        Column("gradients for the scores", "gradients"),
        *(Column(name, name, count) for name in ("queries", "subsets")),
        Column("trainings of each", "repeats", count),
    ]
    return Table(rows[0]["measure"], rows, columns, "worth", remark(rows))


def _with_interval(value: str, low: str, high: str) -> Callable[[Row], Entry]:
    def cell(row: Row) -> Entry:
        if row.get(value) is None:
            return Entry()
        span = "" if row.get(low) is None else f"{number(row[low], 2)} to {number(row[high], 2)}"
        return Entry(number(row[value], 2), span, row[value])

    return cell
