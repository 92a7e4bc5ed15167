"""Theorem 5.1 of Vitel and Chhabra on the run's own gradients: rows, and how they are printed."""

import math

from distinf.numerics.separation import LEVELS, Separations
from distinf.report.columns import Column, View, blank, value, view
from distinf.report.formats import count, fixed, number
from distinf.report.gram.findings import Findings
from distinf.report.gram.summaries import Row, groups

ANY = "any"  # of all pairs of groups
COUNTED = ("pairs", "premises", "claimed", "triples", "aligned", "more")


def theorem_rows(findings: Findings) -> list[Row]:
    """Per least C(w), counts of all cells: of any groups first, and then for each theta and w."""
    found: dict[tuple[float, str, str], list[Separations]] = {}
    for s in findings.separated:
        for theta, w in ((ANY, ANY), (s.theta, s.w)):
            found.setdefault((s.found.level, theta, w), []).append(s.found)
    order = groups(group for _, *pair in found for group in pair if group != ANY)

    def place(key: tuple[float, str, str]) -> tuple[int, int, float]:
        level, theta, w = key
        return (-1, -1, level) if theta == ANY else (order.index(theta), order.index(w), level)

    rows = []
    for key in sorted(found, key=place):
        total = {n: sum(getattr(s, n) for s in found[key]) for n in COUNTED}
        row: Row = {"theta": key[1], "w": key[2], "least_c": key[0], **total}
        row |= {"premises_pct": _part(total["premises"], total["pairs"])}
        row |= {"claimed_pct": _part(total["claimed"], total["premises"])}
        row |= {f"{n}_pct": _part(total[n], total["triples"]) for n in ("aligned", "more")}
        rows.append(row)
    return rows


def _part(some: int, every: int) -> float:
    return 100 * some / every if every else math.nan


def theorem_view(rows: list[Row]) -> View | None:
    """Over all pairs of groups."""
    return view(
        "Theorem 5.1 of Vitel and Chhabra on this run's gradients, over all pairs of layer groups",
        [r for r in rows if r["theta"] == ANY],
        [
            Column("C(w) at least", _least_c),
            Column("noisy row, clean row, θ, w", value("premises", count)),
            Column("of all [%]", blank("premises_pct", fixed)),
            Column("some query separates more [%]", blank("claimed_pct", fixed)),
            Column("times queries", value("triples", count)),
            Column("separates more [%]", blank("more_pct", fixed)),
            Column("aligned [%]", blank("aligned_pct", fixed)),
        ],
    )


def _least_c(row: Row) -> str:
    return "no premise" if row["least_c"] == LEVELS[0] else number(row["least_c"])
