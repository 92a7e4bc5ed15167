"""The headline in numbers: the answer, what to beware of, and the tables of any run."""

from typing import Any

from distinf.numerics.bootstrap import RESAMPLES
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
from distinf.report.words import Words

FEW_TARGETS = 5
# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6


def words_of(findings: Findings) -> Words:
    """The page's words, with what any of them may say of the run."""
    metric, head = findings.metric, findings.headline
    limited = any(o.value("stop") is not None for o in findings.outcomes)
    goal = f"Share of the {metric.name} gap closed" if metric.reference else (
        f"Reduction of the targets' {metric.name}")  # fmt: skip
    thing = "of the gap closed" if metric.reference else f"less {metric.name} of the targets"
    numbers = {"metric": metric.name, "axis": metric.axis or "the axis", "noun": head.noun}
    numbers |= {"reference": metric.reference or "the reference", "pool": count(head.pool or 50)}
    numbers |= {"limit": "at most " if limited else "", "steps": count(head.steps), "goal": goal}
    numbers |= {"fewest": str(FEWEST_PAIRS), "thing": thing, "resamples": count(RESAMPLES)}
    return Words(__package__, numbers)


def paired(findings: Findings, rows: Tables) -> Row | None:
    """The guided selection against random; None without pairs."""
    chosen = (r for r in rows["paired"] if r["selection"] == findings.guided() and r["pairs"])
    return next(chosen, None)


def verdict(pair: Row | None) -> str:
    """better, none (no difference shown), worse, or unknown (nothing to compare)."""
    if pair is None or pair["pairs"] < FEWEST_PAIRS:
        return "unknown"
    if pair["low_points"] > 0:
        return "better"
    return "worse" if pair["high_points"] < 0 else "none"


def answer(findings: Findings, rows: Tables) -> list[str]:
    """Whether influence chose better than chance, what was gained, and at what price to others."""
    words, metric, chosen = words_of(findings), findings.metric, findings.guided()
    if not rows["summary"]:
        return [words.say("answer", "untried")]
    pair = paired(findings, rows)
    told = [f"{r['selection']} {percent(r)}" for r in rows["summary"]]
    before, baseline = findings.non_target_before, findings.non_target_baseline
    beaten = no_better(metric.name, before, baseline, metric.baseline)
    found = [f"{beaten} {words.say('verdicts', verdict(pair))}".strip()]
    if pair is None:
        found.append(words.say("answer", "gained", closed=", ".join(told)))
    else:
        numbers = {k: count(pair[k]) for k in ("wins", "pairs")}
        numbers |= {"points": signed(pair["points"], 0), "chosen": chosen}
        numbers["span"] = interval(pair, "low_points", "high_points")
        found.append(words.say("answer", "paired", closed=", ".join(told), **numbers))
    for r in rows["summary"]:
        if r["selection"] == chosen and not missing(r["non_target_mean_pct"]):
            change = percent(r, "non_target_", signed)
            found.append(words.say("answer", "price", change=change))
    return found


def no_better(metric: str, before: float | None, baseline: float | None, label: str | None) -> str:
    """That the trained model does no better than what needs no training; "" where it does."""
    if baseline is None or before is None or not before >= baseline:
        return ""
    numbers = {"before": number(before), "baseline": number(baseline)}
    label = label or "baseline"
    return Words(__package__, numbers).say("answer", "no_better", metric=metric, label=label)


def interval(row: Row, low: str, high: str, form: Any = rounded) -> str:
    """The 95 % interval; no line is broken within it."""
    if missing(row[low]):
        return "no interval"
    return f"{form(row[low])}\u00a0to\u00a0{form(row[high])}"


def percent(row: Row, prefix: str = "", form: Any = rounded) -> str:
    """The mean, and in brackets the interval."""
    told = with_unit(form(row[f"{prefix}mean_pct"]), "%")
    low, high = f"{prefix}low_pct", f"{prefix}high_pct"
    return f"{told} ({interval(row, low, high, form)})" if low in row else told


def cards(findings: Findings, rows: Tables) -> list[Card]:
    """The means of the selections, the paired difference, and the price to others."""
    action = "% of the gap closed" if findings.metric.reference else "% reduction"
    level, pair, found = f"95{SPACE}% interval", paired(findings, rows), []
    for r in rows["summary"]:
        span = f"{interval(r, 'low_pct', 'high_pct')}{SPACE}% ({level})"
        found.append(Card(r["selection"], rounded(r["mean_pct"]), action, span, r["selection"]))
        if r["selection"] == CONTROL and pair is not None:
            name, of = pair["selection"], f"of {count(pair['pairs'])} trials"
            span = f"{interval(pair, 'low_points', 'high_points')} points ({level})"
            points = signed(pair["points"], 0)
            ties = f", {count(pair['ties'])} ties" if pair["ties"] else ""
            how, won = f"same target and seed{ties}", count(pair["wins"])
            found.append(Card(f"{name} − {CONTROL}", points, "points", span, "accent"))
            found.append(Card(f"{name} beat {CONTROL}", won, of, how, "accent"))
    for r in rows["summary"]:
        low, high = r["non_target_low_pct"], r["non_target_high_pct"]
        if r["selection"] == findings.guided() and not missing(r["non_target_mean_pct"]):
            color = OPPOSITE if low > 0 else SELECTED if high < 0 else "ink"
            label = f"{findings.metric.name} of all others, after {r['selection']}"
            span = interval(r, "non_target_low_pct", "non_target_high_pct", signed)
            value, detail = signed(r["non_target_mean_pct"]), f"{span}{SPACE}%; above 0 is worse"
            found.append(Card(label, value, "% change", detail, color))
    return found


def caveats(findings: Findings, rows: Tables) -> list[str]:
    """What the headline's numbers are not, for want of targets, pairs or finite results."""
    ours = [r["targets"] for r in rows["summary"] if r["selection"] == findings.guided()]
    pair, words = paired(findings, rows), words_of(findings)
    lost = [f"{count(r['failed'])} of {r['selection']}" for r in rows["summary"] if r["failed"]]
    told = {
        "one": 1 in ours,
        "few": bool(ours) and 1 < ours[0] < FEW_TARGETS,
        "pairs": pair is not None and pair["pairs"] < FEWEST_PAIRS,
        "failed": bool(lost),
    }
    numbers = {"targets": str(*ours), "failed": ", ".join(lost)}
    return [words.say("caveats", key, **numbers) for key, said in told.items() if said]


def headline_tables(findings: Findings, rows: Tables, prefix: str = "") -> list[Table]:
    """What each selection did to its targets and to others; `prefix` of the files."""
    joined = {r["selection"]: {f"vs_{k}": v for k, v in r.items()} for r in rows["paired"]}
    full = [r | joined.get(r["selection"], {}) for r in rows["summary"]]
    closed = [
        stub("selection", "selection"),
        Column("trials", "trials", count),
        Column("failed", "failed", unless_0),
        spread("gap closed [%]"),
        difference(f"minus {CONTROL} [points]"),
        Column("won", "vs_wins", count),
        Column("of pairs", "vs_pairs", count),
    ]
    others = [
        stub("selection", "selection"),
        difference("all others", "non_target_", "pct", mean="mean_"),
        difference("others under a target's conditions", "sibling_", "pct", mean="mean_"),
        difference("drawn anew under them", "fresh_", "pct", mean="mean_"),
    ]
    words, file = words_of(findings), f"{prefix}summary"
    return [words.table("summary", full, closed, file), words.table("others", full, others, file)]


def unless_0(many: int) -> str:
    return count(many) if many else ""


def target_tables(findings: Findings, rows: Tables, prefix: str = "") -> list[Table]:
    """The targets before fine-tuning, and what each selection closed of their gaps."""
    words, metric, mine = words_of(findings), findings.metric, rows["targets"]
    more = further(mine, ("id", "axis", "metric", "reference", "gap"))
    wide: dict[int, Row] = {}
    for r in rows["by_target"]:
        named = {f"{r['selection']} {k}": r[k] for k in ("mean_pct", "sd_pct")}
        wide.setdefault(r["target"], {"target": r["target"]}).update(named)
    selections = dict.fromkeys(r["selection"] for r in rows["by_target"])
    columns = [
        Column("target", "id", identifier, kind="stub"),
        Column(metric.axis or "axis", "axis"),
        Column(metric.name, "metric"),
        Column(metric.reference or "reference", "reference"),
        Column("relative gap" if metric.reference else "gap", "gap"),
        *(any_column(k, mine) for k in more if any(r.get(k) != r["axis"] for r in mine)),
    ]
    closed = [Column("target", "target", identifier, kind="stub")]
    closed += [spread(f"{s} [%]", f"{s} ") for s in selections]
    return [
        words.table("targets", mine, columns, f"{prefix}targets"),
        words.table("by_target", list(wide.values()), closed, f"{prefix}by_target"),
    ]


def further(rows: list[Row], own: tuple[str, ...] = ()) -> list[str]:
    """The columns that come from the data."""
    return [k for k in dict.fromkeys(k for r in rows for k in r) if k not in own]


def any_column(key: str, rows: list[Row]) -> Column:
    words = any(isinstance(r.get(key), str) for r in rows)
    return Column(key, key, kind="text" if words else "number")
