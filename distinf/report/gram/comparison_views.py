"""Vitel and Chhabra's tables as the page prints them, their numbers the second line in a cell."""

import math
from collections.abc import Callable
from functools import partial

from distinf.report.columns import Column, View, blank, text, value, view
from distinf.report.formats import SPACE, count, fixed, missing, number, signed
from distinf.report.gram.findings import BASELINES, Findings
from distinf.report.gram.method_tables import TRACIN_WE
from distinf.report.gram.summaries import Row, datasets, estimators, spoken
from distinf.report.gram.tables import Tables
from distinf.report.grids import Entry, Grid, GridColumn, grid

MEASURED = "measured"
MOST_PRINTED = 12
NOT_SIGNIFICANT_P = 0.05  # Table 2: marked with a star above it


def comparison_views(findings: Findings, rows: Tables) -> dict[str, View | Grid | None]:
    """Name -> table or None."""
    ranked = [r for r in rows.get("methods", []) if r["source"] == MEASURED]
    head = findings.headline.name
    kept = ("random", "full", head)
    short = [r for k, r in enumerate(ranked) if k < MOST_PRINTED or r["configuration"] in kept]
    named = bool(findings.methods_published)
    title = "Methods by Pareto front, then win rate" if _fronts(ranked) else "Methods by accuracy"
    title += "; below each number the published one" if named else ""
    others = _unmatched(findings, rows)
    return {
        "methods": _methods(findings, short, rows, f"{title}{_part(short, ranked)}"),
        "every method": _methods(findings, ranked, rows, title) if short != ranked else None,
        "methods published": _methods(findings, others, {}, "Published, without counterpart here"),
        "layers": _layers(rows),
        "gains": _gains(findings, rows),
        "quartiles": _quartiles(rows),
        "proxies": _proxies(rows, len(datasets(findings)) > 1),
        "cancellation": _cancellation(rows),
    }


def _fronts(rows: list[Row]) -> bool:
    return any(r["rank"] for r in rows)


def _part(some: list[Row], every: list[Row]) -> str:
    return f" ({count(len(some))} of {count(len(every))})" if len(some) < len(every) else ""


def _unmatched(findings: Findings, rows: Tables) -> list[Row]:
    """Published rows of the run's estimators and datasets that it did not train again."""
    every = rows.get("methods", [])
    measured = {r["configuration"] for r in every if r["source"] == MEASURED}
    asked = {*estimators(findings), *BASELINES}
    return [
        r
        for r in every
        if r["source"] != MEASURED
        and r["estimator"] in asked
        and r["configuration"] not in measured
        and any(f"{name}_mean_pct" in r for name in datasets(findings))
    ]


def _methods(findings: Findings, shown: list[Row], rows: Tables, title: str) -> Grid | None:
    published = {r["configuration"]: r for r in rows.get("methods", []) if r["source"] != MEASURED}
    columns = [
        GridColumn("", "front", partial(_method_front, published)),
        GridColumn("", "win rate", partial(_win_rate, published)),
    ]
    for name in datasets(findings):
        columns.append(GridColumn("test accuracy [%]", name, partial(_score, name, published)))
    stubs = [("method", lambda r: spoken(r["configuration"]))]
    return grid(title, shown, stubs, columns)


def _method_front(published: dict[str, Row], row: Row) -> Entry:
    theirs = published.get(row["configuration"], {})
    return Entry(str(row.get("rank") or ""), str(theirs.get("rank") or ""))


def _win_rate(published: dict[str, Row], row: Row) -> Entry:
    theirs = published.get(row["configuration"])
    detail = _pair(theirs["win_rate"], theirs["win_rate_sd"], 2) if theirs else ""
    return Entry(_pair(row["win_rate"], row.get("win_rate_sd", math.nan), 2), detail)


def _score(name: str, published: dict[str, Row], row: Row) -> Entry:
    theirs = published.get(row["configuration"], {})
    keys = f"{name}_mean_pct", f"{name}_sd_pct"
    if keys[0] not in row:
        return Entry()
    detail = _pair(theirs[keys[0]], theirs[keys[1]], 1) if keys[0] in theirs else ""
    return Entry(_pair(row[keys[0]], row[keys[1]], 1), detail)


def _pair(mean: float, sd: float, digits: int) -> str:
    if missing(mean):
        return ""
    told = fixed(mean, digits)
    return told if missing(sd) else f"{told}{SPACE}±{SPACE}{fixed(sd, digits)}"


def _layers(rows: Tables) -> Grid | None:
    """Layer groups down, estimator families across: front and win rate; the published below."""
    every = rows.get("layers", [])
    ours = [r for r in every if r["source"] == MEASURED]
    if not ours:
        return None
    families = list(dict.fromkeys(r["estimator"] for r in ours))
    order = list(dict.fromkeys(r["layer"] for r in sorted(ours, key=_layer)))
    lines = [{"layer": layer, "rows": [r for r in every if r["layer"] == layer]} for layer in order]
    columns = [GridColumn("", family, partial(_front, family)) for family in families]
    paper = "; below, the published ones" if len(ours) < len(every) else ""
    same = f"; {TRACIN_WE} is TracIn on the embedding, token by token" if TRACIN_WE in order else ""
    return grid(
        f"Layer groups: front (win rate) within each estimator, mean scores{paper}{same}",
        lines,
        [("layers", _layer_name)],
        columns,
    )


def _layer(row: Row) -> tuple[int, str]:
    known = ("tracin-we-top10", TRACIN_WE, "embedding")
    if row["layer"] in known:
        return (known.index(row["layer"]), "")
    return (9, "") if row["layer"] == "head" else (5, row["layer"])


def _layer_name(line: Row) -> str:
    ours = next(r for r in line["rows"] if r["source"] == MEASURED)
    same = line["layer"] in (ours["group"], "tracin-we-top10")
    return line["layer"] if same else f"{line['layer']} ({ours['group']})"


def _front(family: str, line: Row) -> Entry:
    mine = {r["source"] == MEASURED: r for r in line["rows"] if r["estimator"] == family}
    told = [
        f"{r['rank'] or 'n/a'} ({fixed(r['win_rate'], 2)})" if r else ""
        for r in (mine.get(True), mine.get(False))
    ]
    return Entry(told[0] or "–", told[1])


def _gains(findings: Findings, rows: Tables) -> Grid | None:
    found: dict[tuple[str, str, str], Row] = {}
    for r in rows.get("gains", []):
        key = (r["estimator"], r["group"], r["how"])
        found.setdefault(key, {"estimator": key[0], "layers": key[1], "how": key[2]})
        found[key][r["dataset"]] = r
    stubs: list[tuple[str, Callable[[Row], str]]] = [
        (heading, text(key))
        for heading, key in (("estimator", "estimator"), ("layers", "layers"), ("way", "how"))
    ]
    columns = [
        GridColumn("change of accuracy against mean [%]", name, partial(_gain, name))
        for name in datasets(findings)
    ]
    return grid(
        "Rank and vote against mean: * where Wilcoxon's p < 0.1 and the change is over 1 %",
        list(found.values()),
        stubs,
        columns,
    )


def _gain(dataset: str, row: Row) -> Entry:
    if dataset not in row:
        return Entry()
    change = row[dataset]
    star = f"{SPACE}*" if change["marked"] else ""
    sure = "" if missing(change["p"]) else f"p {number(change['p'], 2)}"
    return Entry(signed(change["change_pct"]) + star, sure)


def _quartiles(rows: Tables) -> View | None:
    return view(
        "Accuracy after filtering by layer group, mean scores: mean and quartiles over seeds",
        rows.get("quartiles", []),
        [
            Column("estimator", text("estimator"), False),
            Column("layers", text("group"), False),
            Column("dataset", text("dataset"), False),
            Column("trials", value("trials", count)),
            Column("mean [%]", value("mean_pct", fixed)),
            Column("lower quartile", value("q1_pct", fixed)),
            Column("median", value("median_pct", fixed)),
            Column("upper quartile", value("q3_pct", fixed)),
        ],
    )


FEWEST_POINTS = 3  # for a correlation


def _proxies(rows: Tables, several: bool) -> View | None:
    within = [("C", "c"), ("NDR", "ndr"), ("AUC", "auc")] if several else []
    return view(
        "Spearman's correlation with accuracy after filtering, pooled: * where p > 0.05"
        + ("; within: inside each dataset, mean over datasets" if several else ""),
        [r for r in rows.get("proxies", []) if r["points"] >= FEWEST_POINTS],
        [
            Column("aggregation", text("how"), False),
            Column("estimator", text("estimator"), False),
            Column("points", value("points", count)),
            Column("C", partial(_starred, "c")),
            Column("NDR", partial(_starred, "ndr")),
            Column("AUC", partial(_starred, "auc")),
            *(
                Column(f"{name} within", blank(f"{key}_within_rho", partial(fixed, digits=2)))
                for name, key in within
            ),
        ],
    )


def _starred(proxy: str, row: Row) -> str:
    rho, p = row.get(f"{proxy}_rho", math.nan), row.get(f"{proxy}_p", math.nan)
    if missing(rho):
        return ""
    star = "*" if p > NOT_SIGNIFICANT_P else ""
    return fixed(rho, 2) + star


def _cancellation(rows: Tables) -> View | None:
    told = rows.get("cancellation", [])
    return view(
        "Cancellation of the training gradients (1: none; ∞: complete)",
        [r | {"_rho": r.get("rho"), "_p": r.get("p")} for r in told],
        [
            Column("layers", text("group"), False),
            Column("C, norms", lambda r: _infinite(r["norm_mean"], r["norm_sd"])),
            Column("C, L1", lambda r: _infinite(r["l1_mean"], r["l1_sd"])),
            Column("median", lambda r: _infinite(r["median"])),
            Column("least", lambda r: _infinite(r["least"])),
            Column("most", lambda r: _infinite(r["most"])),
            Column("ρ with accuracy", partial(_starred, "")),
        ],
    )


def _infinite(mean: float, sd: float = math.nan) -> str:
    if math.isinf(mean):
        return "∞"
    told = number(float(mean))
    return told if missing(sd) else f"{told}{SPACE}±{SPACE}{number(float(sd), 2)}"
