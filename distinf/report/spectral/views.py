"""The printed tables of a run: its headline, its targets, and the machinery."""

from math import isfinite

from distinf.report.columns import (
    Column,
    Row,
    View,
    blank,
    plus_minus,
    span,
    text,
    value,
    view,
)
from distinf.report.formats import (
    count,
    duration,
    identifier,
    missing,
    number,
    signed,
    size,
)
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.findings import Findings

TOP_SHOWN = 10
OUTSIDE = {
    "none": "nothing: the inverse is truncated to the pairs",
    "damping": "damping λ alone",
    "mean": "mean eigenvalue μ + damping λ",
}


def views(findings: Findings, rows: Tables) -> dict[str, View]:
    """Name -> printed table; those without rows are absent."""
    made = {
        "comparison": _comparison(findings, rows),
        "scores": _scores(rows),
        "solves": _solves(rows),
        "costs": _costs(rows),
    }
    for target in dict.fromkeys(r["target"] for r in rows["top_samples"]):
        made[f"top {target}"] = _top(target, rows)
    return run_views(findings, rows) | {n: table for n, table in made.items() if table is not None}


def run_views(findings: Findings, rows: Tables) -> dict[str, View]:
    """The same for what every run is told by, the runs beside this one too."""
    made = {
        "summary": _summary(findings, rows),
        "others": _others(findings, rows),
        "by_target": _by_target(rows),
        "targets": _targets(findings, rows),
    }
    return {name: table for name, table in made.items() if table is not None}


def _summary(findings: Findings, rows: Tables) -> View | None:
    joined = {r["selection"]: r for r in rows["paired"]}
    full = [
        r | {f"vs_{k}": v for k, v in joined.get(r["selection"], {}).items()}
        for r in rows["summary"]
    ]
    return view(
        "Gap closed by selection: mean ± sd over targets and seeds, 95 % bootstrap intervals",
        full,
        [
            Column("selection", text("selection"), False),
            Column("trials", value("trials", count)),
            Column("failed", lambda r: count(r["failed"]) if r["failed"] else ""),
            Column("gap closed [%]", plus_minus()),
            Column("95 % interval", span("low_pct", "high_pct")),
            Column("minus random [points]", blank("vs_points", signed)),
            Column("95 % interval", span("vs_low_points", "vs_high_points", signed)),
            Column("won", lambda r: f"{r['vs_wins']} / {r['vs_pairs']}" if "vs_wins" in r else ""),
        ],
    )


def _others(findings: Findings, rows: Tables) -> View | None:
    """What tuning did to samples that were no target; what is not known has no columns."""
    groups = {
        "non_target": "all others",
        "sibling": "others under a target's conditions",
        "fresh": "drawn anew under them",
    }
    known = [k for k in groups if any(not missing(r[f"{k}_mean_pct"]) for r in rows["summary"])]
    columns = [Column("selection", text("selection"), False)]
    for whose in known:
        columns += [
            Column(f"{groups[whose]} [%]", blank(f"{whose}_mean_pct", signed)),
            Column("95 % interval", span(f"{whose}_low_pct", f"{whose}_high_pct", signed)),
        ]
    title = f"Change of the {findings.metric.name} of samples that were no target: above 0 is worse"
    return view(title, rows["summary"], columns) if known else None


def _by_target(rows: Tables) -> View | None:
    selections = list(dict.fromkeys(r["selection"] for r in rows["by_target"]))
    wide: dict[int, Row] = {}
    for row in rows["by_target"]:
        cell = plus_minus()(row)
        wide.setdefault(row["target"], {"target": row["target"]})[row["selection"]] = cell
    columns = [Column("target", value("target", identifier), False)]
    columns += [Column(f"{s} [%]", text(s)) for s in selections]
    return view("Gap closed by target: mean ± sd over seeds", list(wide.values()), columns)


def _comparison(findings: Findings, rows: Tables) -> View | None:
    few = len(rows["comparison"]) <= len(findings.selections())
    if few and (not rows["published"] or "table_1" in rows):
        return None
    printed = {
        (p["loss"], p["variant"], p["selection"]): {f"published_{k}": v for k, v in p.items()}
        for p in rows["published"]
    }
    ours = [
        r | printed.get((r["loss"], r["variant"], r["selection"]), {}) for r in rows["comparison"]
    ]
    varying = [k for k in ("aim", "update") if len({r[k] for r in ours}) > 1]
    same = [r[k] for r in ours[:1] for k in ("aim", "update") if k not in varying]
    return view(
        f"Every loss and variant that was run{''.join(f', {s}' for s in same)}: mean ± sd",
        ours,
        [
            *(Column(k, text(k), False) for k in varying),
            Column("selection", text("selection"), False),
            Column("loss", text("loss"), False),
            Column("variant", text("variant"), False),
            Column("trials", value("trials", count)),
            Column("gap closed [%]", plus_minus()),
            Column("95 % interval", span("low_pct", "high_pct")),
            Column("minus random", blank("vs_random_points", signed)),
            Column("95 % interval", span("vs_random_low_points", "vs_random_high_points", signed)),
            Column(
                "published [%]",
                lambda r: plus_minus("published_")(r) if "published_mean_pct" in r else "",
            ),
        ],
    )


def _targets(findings: Findings, rows: Tables) -> View | None:
    metric = findings.metric
    own = ("id", "axis", "metric", "reference", "gap")
    extra = dict.fromkeys(k for r in rows["targets"] for k in r if k not in own)
    told = [k for k in extra if any(r.get(k) != r["axis"] for r in rows["targets"])]
    gap = "relative gap" if metric.reference else "gap"
    return view(
        "The targets before fine-tuning",
        rows["targets"],
        [
            Column("target", value("id", identifier), False),
            Column(metric.axis or "axis", value("axis", number)),
            Column(metric.name, value("metric", number)),
            Column(metric.reference or "reference", value("reference", number)),
            Column(gap, value("gap", number)),
            *(_extra_column(k, rows["targets"]) for k in told),
        ],
    )


def _extra_column(key: str, rows: list[Row]) -> Column:
    text = any(isinstance(r.get(key), str) for r in rows)
    return Column(key, lambda r: number(r[key]) if key in r else "", not text)


def _scores(rows: Tables) -> View | None:
    return view(
        "Scores by loss, variant and target",
        rows["scores"],
        [
            Column("loss", text("loss"), False),
            Column("variant", text("variant"), False),
            Column("target", value("target", identifier), False),
            Column("samples", value("count", count)),
            Column("above 0", value("helpful", count)),
            Column("min", value("min", number)),
            Column("median", value("median", number)),
            Column("max", value("max", number)),
            Column("variance from outside the pairs [%]", blank("outside_share", _percent)),
            Column("non-finite", lambda r: count(r["nonfinite"]) if r["nonfinite"] else ""),
            Column(
                "denominators ≤ 0",
                lambda r: (
                    count(r["nonpositive_denominators"]) if r["nonpositive_denominators"] else ""
                ),
            ),
        ],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _outside(findings: Findings) -> str:
    """The least and the largest share over losses and targets."""
    shares = [v for s in findings.scores for v in s.outside_shares.values() if isfinite(v)]
    return f"{_percent(min(shares))} to {_percent(max(shares))} %" if shares else ""


def _solves(rows: Tables) -> View | None:
    return view(
        "Refined queries: how each solve ended",
        rows["solves"],
        [
            Column("target", value("target", identifier), False),
            Column("loss", text("loss"), False),
            Column("outcome", text("status"), False),
            Column("steps", value("steps", count)),
            Column("relative residual", value("residual", number)),
        ],
    )


def _costs(rows: Tables) -> View | None:
    return view(
        "Cost by stage",
        rows["costs"],
        [
            Column("stage", text("stage"), False),
            Column("units", value("units", count)),
            Column("wall time", value("seconds", duration)),
            Column("worker time", value("worker_seconds", duration)),
            Column("stored", value("bytes", size)),
        ],
    )


def _top(target: int, rows: Tables) -> View | None:
    mine = [r for r in rows["top_samples"] if r["target"] == target and abs(r["rank"]) <= TOP_SHOWN]
    mine.sort(key=lambda r: (r["rank"] < 0, abs(r["rank"])))
    own = ("target", "rank", "id", "score")
    extra = dict.fromkeys(k for r in mine for k in r if k not in own)
    return view(
        f"Target {identifier(target)}: the most helpful (1, 2, …) and harmful (−1, −2, …) samples",
        mine,
        [
            Column("rank", value("rank", identifier)),
            Column("sample", value("id", identifier), False),
            Column("score", value("score", number)),
            *(_extra_column(k, mine) for k in extra),
        ],
    )


def facts(findings: Findings) -> dict[str, list[tuple[str, str]]]:
    """Short name-value lists: the curvature's and the provenance's; unknown values are absent."""
    pairs = findings.ritz
    curvature: list[tuple[str, str]] = []
    if pairs is not None:
        curvature = [
            ("operator", pairs.operator),
            ("pairs kept", f"{count(pairs.kept)} of {count(len(pairs.values_K))}"),
            ("pairs converged", f"{count(len(pairs.converged()))} of {count(len(pairs.values_K))}"),
            ("damping λ", f"{pairs.damping:g}"),
            ("outside the pairs", OUTSIDE.get(pairs.complement, "")),
            ("mean eigenvalue of the rest μ", number(pairs.complement_mean)),
            ("classic scores' variance from there", _outside(findings)),
            ("trace (estimated)", number(pairs.trace)),
            ("where θ + λ ≤ 0", pairs.policy),
            ("pairs that this acted on", count(pairs.dropped) if pairs.policy else "n/a"),
            ("orthogonality max |QᵀQ − I|", number(pairs.orthogonality)),
            ("asymmetry ‖T − Tᵀ‖ / ‖T‖", number(pairs.asymmetry)),
        ]
    source = findings.provenance
    origin = [("fingerprint", source.fingerprint)]
    origin += [(str(k), str(v)) for k, v in source.machine.items()]
    origin += [(f"{k} version", str(v)) for k, v in source.versions.items()]
    origin += [(f"{k} seed", str(v)) for k, v in source.seeds.items()]
    return {
        "curvature": [(k, v) for k, v in curvature if v not in ("", "n/a")],
        "provenance": [(k, v) for k, v in origin if v],
    }
