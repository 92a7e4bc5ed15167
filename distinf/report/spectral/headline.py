"""The headline in numbers: the answer, what to beware of, and the tables of any run."""

from typing import Any

from distinf.report.formats import (
    SPACE,
    count,
    identifier,
    missing,
    number,
    rounded,
    signed,
    with_unit,
)
from distinf.report.rows import Row
from distinf.report.schema import Card, Column, Table, difference, spread, stub
from distinf.report.spectral.findings import CONTROL, OPPOSITE, SELECTED, Findings
from distinf.report.spectral.tables import Tables

FEW_TARGETS = 5
# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6
VERDICTS = {
    "better": "In this run, influence picked better {} than chance did.",
    "none": "This run does not show a difference between influence and random {}.",
    "worse": "In this run, influence picked worse {} than chance did.",
    "unknown": "This run has too few paired trials to compare influence with chance.",
}


def paired(findings: Findings, rows: Tables) -> Row | None:
    return next((r for r in rows["paired"] if r["selection"] == findings.guided()), None)


def verdict(pair: Row | None) -> str:
    """better, none (no difference shown), worse, or unknown (nothing to compare)."""
    if pair is None or pair["pairs"] < FEWEST_PAIRS:
        return "unknown"
    if pair["low_points"] > 0:
        return "better"
    return "worse" if pair["high_points"] < 0 else "none"


def answer(findings: Findings, rows: Tables) -> list[str]:
    """Whether influence chose better than chance, what was gained, and at what price to others."""
    head, metric, chosen = findings.headline, findings.metric, findings.guided()
    mine = {r["selection"]: r for r in rows["summary"]}
    if not mine:
        return ["This run did not act on its scores, so it does not say whether they help."]
    pair = paired(findings, rows)
    ours = mine[chosen] if chosen in mine else rows["summary"][0]
    closed = [f"{r['selection']} {_percent(r, 'mean_pct', '')}" for r in mine.values()]
    limit = "at most " if any(o.value("stop") is not None for o in findings.outcomes) else ""
    thing = "of the gap closed" if metric.reference else f"less {metric.name} of the targets"
    gained = f"After {limit}{count(head.steps)} fine-tuning steps, {thing}: {', '.join(closed)}"
    if pair is not None and pair["pairs"]:
        span = interval(pair, "low_points", "high_points")
        gained += f"; {chosen} minus {CONTROL} is {signed(pair['points'], 0)} points ({span}), and "
        gained += f"{count(pair['wins'])} of {count(pair['pairs'])} paired trials were won"
    price = ""
    if not missing(ours["non_target_mean_pct"]):
        price = f"The {metric.name} of all other {head.noun} changed by "
        price += (
            f"{_percent(ours, 'non_target_mean_pct', 'non_target_', signed)}; above 0 is worse."
        )
    first = VERDICTS[verdict(pair)].format(head.noun)
    before, baseline = findings.non_target_before, findings.non_target_baseline
    return [
        f"{no_better(metric.name, before, baseline, metric.baseline)} {first}".strip(),
        f"{gained}.",
        *filter(None, [price]),
    ]


def no_better(metric: str, before: float | None, baseline: float | None, label: str | None) -> str:
    """That the trained model does no better than what needs no training; "" where it does."""
    if baseline is None or before is None or not before >= baseline:
        return ""
    return (
        f"The trained model is no better than the {label or 'baseline'} on all other rows "
        f"({metric} {number(before)} against {number(baseline)}): what follows is about a model "
        "that has yet to learn its task."
    )


def interval(row: Row, low: str, high: str, form: Any = rounded) -> str:
    """The 95 % interval; no line is broken within it."""
    if missing(row[low]):
        return "no interval"
    return f"{form(row[low])}\u00a0to\u00a0{form(row[high])}"


def _percent(row: Row, mean: str, prefix: str, form: Any = rounded) -> str:
    span = interval(row, f"{prefix}low_pct", f"{prefix}high_pct", form)
    return f"{with_unit(form(row[mean]), '%')} ({span})"


def cards(findings: Findings, rows: Tables) -> list[Card]:
    """The means of the selections, the paired difference, and the price to others."""
    action = "% of the gap closed" if findings.metric.reference else "% reduction"
    level, pair, found = f"95{SPACE}% interval", paired(findings, rows), []
    for r in rows["summary"]:
        span = f"{interval(r, 'low_pct', 'high_pct')}{SPACE}% ({level})"
        found.append(Card(r["selection"], rounded(r["mean_pct"]), action, span, r["selection"]))
        if r["selection"] == CONTROL and pair is not None and pair["pairs"]:
            name, of = pair["selection"], f"of {count(pair['pairs'])} trials"
            span = f"{interval(pair, 'low_points', 'high_points')} points ({level})"
            points = signed(pair["points"], 0)
            ties = f", {count(pair['ties'])} ties" if pair["ties"] else ""
            how = f"same target and seed{ties}"
            found += [
                Card(f"{name} − {CONTROL}", points, "points", span, "accent"),
                Card(f"{name} beat {CONTROL}", count(pair["wins"]), of, how, "accent"),
            ]
    ours = [r for r in rows["summary"] if r["selection"] == findings.guided()]
    for r in (r for r in ours if not missing(r["non_target_mean_pct"])):
        low, high = r["non_target_low_pct"], r["non_target_high_pct"]
        color = OPPOSITE if low > 0 else SELECTED if high < 0 else "ink"
        label = f"{findings.metric.name} of all others, after {r['selection']}"
        span = interval(r, "non_target_low_pct", "non_target_high_pct", signed)
        value = signed(r["non_target_mean_pct"])
        found.append(Card(label, value, "% change", f"{span}{SPACE}%; above 0 is worse", color))
    return found


def caveats(findings: Findings, rows: Tables) -> list[str]:
    """What the headline's numbers are not, for want of targets, pairs or finite results."""
    ours = next((r for r in rows["summary"] if r["selection"] == findings.guided()), None)
    if ours is None:
        return []
    found, pair = [], paired(findings, rows)
    if ours["targets"] == 1:
        found.append(
            "One target, or targets of one condition: the intervals cover the seeds; there is none "
            "over other targets or conditions."
        )
    elif ours["targets"] < FEW_TARGETS:
        few = ours["targets"]
        found.append(f"Only {few} targets: a bootstrap over so few makes intervals too narrow.")
    if pair is not None and pair["pairs"] < FEWEST_PAIRS:
        found.append(f"Fewer than {FEWEST_PAIRS} paired trials cannot rule out chance.")
    failed = [f"{count(r['failed'])} of {r['selection']}" for r in rows["summary"] if r["failed"]]
    if failed:
        found.append(
            f"Trials without a finite result are left out of every mean ({', '.join(failed)}), "
            "which flatters a selection that diverged."
        )
    return found


def headline_tables(
    rows: Tables, metric: str, prefix: str = "", folded: bool = False
) -> list[Table]:
    """What each selection did to its targets and to others; `prefix` of the files."""
    joined = {r["selection"]: r for r in rows["paired"]}
    full = [
        r | {f"vs_{k}": v for k, v in joined.get(r["selection"], {}).items()}
        for r in rows["summary"]
    ]
    return [
        Table(
            "Gap closed by selection: mean ± sd over targets and seeds, 95 % bootstrap interval",
            full,
            [
                stub("selection", "selection"),
                Column("trials", "trials", count),
                Column("failed", lambda r: count(r["failed"]) if r["failed"] else ""),
                spread("gap closed [%]"),
                difference(f"minus {CONTROL} [points]"),
                Column("won, of pairs", _won),
            ],
            f"{prefix}summary",
        ),
        Table(
            f"Change of the {metric} of samples that were no target [%]: above 0 is worse",
            rows["summary"],
            [
                stub("selection", "selection"),
                difference("all others", "non_target_", "pct", mean="mean_"),
                difference("others under a target's conditions", "sibling_", "pct", mean="mean_"),
                difference("drawn anew under them", "fresh_", "pct", mean="mean_"),
            ],
            f"{prefix}summary",
        ),
    ]  # fmt: skip


def _won(row: Row) -> str:
    return f"{row['vs_wins']} / {row['vs_pairs']}" if "vs_wins" in row else ""


def sources(findings: Findings) -> str:
    """Where the published numbers are from."""
    named = "; ".join(dict.fromkeys(p.source for p in findings.published))
    told = f"Published: {named}. Its data and model are not this run's: compare the pattern, not "
    return f"{told}the digits." if named else ""


def target_tables(findings: Findings, rows: Tables, prefix: str = "") -> list[Table]:
    metric, own = findings.metric, ("id", "axis", "metric", "reference", "gap")
    extra = [k for k in further(rows["targets"], own)
             if any(r.get(k) != r["axis"] for r in rows["targets"])]  # fmt: skip
    wide: dict[int, Row] = {}
    for r in rows["by_target"]:
        named = {f"{r['selection']} {k}": r[k] for k in ("mean_pct", "sd_pct")}
        wide.setdefault(r["target"], {"target": r["target"]}).update(named)
    selections = dict.fromkeys(r["selection"] for r in rows["by_target"])
    return [
        Table(
            "The targets, before fine-tuning",
            rows["targets"],
            [
                Column("target", "id", identifier, kind="stub"),
                Column(metric.axis or "axis", "axis"),
                Column(metric.name, "metric"),
                Column(metric.reference or "reference", "reference"),
                Column("relative gap" if metric.reference else "gap", "gap"),
                *(any_column(k, rows["targets"]) for k in extra),
            ],
            f"{prefix}targets",
        ),
        Table(
            "Gap closed by target: mean ± sd over seeds",
            list(wide.values()),
            [
                Column("target", "target", identifier, kind="stub"),
                *(spread(f"{s} [%]", f"{s} ") for s in selections),
            ],
            f"{prefix}by_target",
        ),
    ]


def further(rows: list[Row], own: tuple[str, ...]) -> list[str]:
    """The columns that come from the data."""
    return [k for k in dict.fromkeys(k for r in rows for k in r) if k not in own]


def any_column(key: str, rows: list[Row]) -> Column:
    words = any(isinstance(r.get(key), str) for r in rows)
    return Column(key, key, kind="text" if words else "number")
