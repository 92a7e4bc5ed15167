"""How many of their highest rows two scores share: whether a choice of score is one at all."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from distinf.report.columns import text
from distinf.report.formats import count
from distinf.report.grids import Entry, Grid, GridColumn, grid
from distinf.report.spectral.families import run_label, runs
from distinf.report.spectral.findings import Findings
from distinf.report.spectral.summaries import Row

Key = tuple[str, str, str]  # run, loss, variant


def overlaps(findings: Findings) -> list[Row]:
    """Per target and pair of scores: how many rows are in both pools of highest scores.

    Pairs are of one run, or of one loss and variant in this run and one beside it that has the
    same rows.
    """
    pool, pools = findings.headline.pool, dict(_pools(findings))
    data = {"": findings.data, **{name: run.data for name, run in findings.beside.items()}}
    found = []
    for one, other in combinations(pools, 2):
        if one[0] != other[0] and (one[0] or one[1:] != other[1:]):
            continue
        if data[one[0]] != data[other[0]]:
            continue
        names = dict(zip(("run", "loss", "variant"), one, strict=True))
        names |= dict(zip(("other_run", "other_loss", "other_variant"), other, strict=True))
        for target in pools[one].keys() & pools[other].keys():
            shared = len(pools[one][target] & pools[other][target])
            found.append(names | {"target": target, "pool": pool, "shared": shared})
    return sorted(found, key=lambda r: r["run"] != r["other_run"])


def _pools(findings: Findings) -> Iterator[tuple[Key, dict[int, frozenset[int]]]]:
    pool = findings.headline.pool
    for name, run in {"": findings, **findings.beside}.items():
        for scoring in run.scores:
            tops = {
                target: frozenset(np.argsort(-_known(scores_N), kind="stable")[:pool].tolist())
                for target, scores_N in scoring.scores.items()
            }
            yield (name, scoring.loss, scoring.variant), tops


def _known(scores_N: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(scores_N), scores_N, -np.inf)


def overlaps_view(findings: Findings, rows: list[Row]) -> Grid | None:
    """The pairs of one run: least to most over the targets."""
    within = [r for r in rows if r["run"] == r["other_run"]]
    both = [*within, *(_turned(r) for r in within)]
    every = runs(findings)
    labels = {name: run_label(name, run) if len(every) > 1 else "" for name, run in every.items()}
    lines = dict.fromkeys((r["run"], r["loss"], r["variant"]) for r in both)
    columns = dict.fromkeys((r["other_loss"], r["other_variant"]) for r in both)
    shared: dict[tuple[str, ...], list[int]] = {}
    for r in both:
        key = tuple(r[k] for k in ("run", "loss", "variant", "other_loss", "other_variant"))
        shared.setdefault(key, []).append(r["shared"])

    def column(loss: str, variant: str) -> GridColumn:
        def entry(row: Row) -> Entry:
            found = shared.get((row["run"], row["loss"], row["variant"], loss, variant), [])
            least, most = (count(f(found)) if found else "" for f in (min, max))
            return Entry(least if least == most else f"{least} to {most}")

        return GridColumn(loss, variant, entry)

    order = sorted(lines, key=lambda line: list(labels).index(line[0]))
    return grid(
        f"Of their {count(findings.headline.pool)} highest {findings.headline.noun}, how many two "
        "scores share: least to most over the targets",
        [{"run": r, "label": labels[r], "loss": a, "variant": b} for r, a, b in order],
        [("run", text("label")), ("loss", text("loss")), ("variant", text("variant"))],
        [column(*c) for c in columns],
        headed=True,
    )


def _turned(row: Row) -> Row:
    ends = ("run", "loss", "variant")
    return row | {k: row[f"other_{k}"] for k in ends} | {f"other_{k}": row[k] for k in ends}
