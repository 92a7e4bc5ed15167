"""The headline in numbers: the answer, what to beware of, and the tables of any run."""

from collections.abc import Iterator, Sequence
from typing import Any

from distinf.numerics.bootstrap import RESAMPLES
from distinf.report.formats import SPACE, count, missing, number, rounded, signed, with_unit
from distinf.report.rows import Row
from distinf.report.schema import Card, Column, Table
from distinf.report.spectral.findings import BEST, CONTROL, OPPOSITE, SELECTED, Findings
from distinf.report.spectral.tables import TARGET, Tables
from distinf.report.words import Words

FEW_TARGETS = 5
# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6
LEVEL = f"95{SPACE}% interval"


def words_of(findings: Findings) -> Words:
    """The page's words, with what any of them may say of the run."""
    metric, head = findings.metric, findings.headline
    limited = any(o.value("stop") is not None for o in findings.outcomes)
    kind = "relative" if metric.reference else "absolute"
    numbers = {"metric": metric.name, "axis": metric.axis or "the axis", "noun": head.noun}
    numbers |= {"reference": metric.reference or "the reference", "pool": count(head.pool or 50)}
    numbers |= {"limit": "at most " if limited else "", "steps": count(head.steps)}
    numbers |= {"fewest": str(FEWEST_PAIRS), "resamples": count(RESAMPLES)}
    words = Words(__package__, numbers)
    return Words(
        __package__, numbers | {k: words.say("gap", kind, k) for k in words.of("gap", kind)}
    )


def paired(findings: Findings, rows: Tables) -> list[Row]:
    """The guided selection against every baseline; the last one is what the verdict goes by.

    A baseline that was the best throughout is told of as that alone.
    """
    every = [r for r in rows["paired"] if r["selection"] == findings.guided() and r["pairs"]]
    best = [r["baselines"] for r in every if r["control"] == BEST]
    return [r for r in every if r["control"] not in best]


def _control(pair: Row) -> str:
    best = pair["control"] == BEST
    return f"{pair['control']} ({pair['baselines']})" if best else str(pair["control"])


def verdict(pairs: Sequence[Row]) -> str:
    """better, none (no difference shown), worse, or unknown (nothing to compare)."""
    if not pairs or pairs[-1]["pairs"] < FEWEST_PAIRS:
        return "unknown"
    if pairs[-1]["low_points"] > 0:
        return "better"
    return "worse" if pairs[-1]["high_points"] < 0 else "none"


def told_verdict(words: Words, pairs: Sequence[Row]) -> str:
    """The verdict in words, and whether chance alone was there to compare with."""
    control, found = (pairs[-1]["control"] if pairs else ""), verdict(pairs)
    against = words.say("controls", control, baselines=pairs[-1]["baselines"] if pairs else "")
    said = words.say("verdicts", found, control=against)
    alone = control == CONTROL and found != "unknown"
    return f"{said} {words.say('answer', 'alone')}" if alone else said[:1].upper() + said[1:]


def answer(findings: Findings, rows: Tables) -> list[str]:
    """Whether influence chose better than the best baseline, the gain, and the price to others."""
    words, metric, pairs = words_of(findings), findings.metric, paired(findings, rows)
    if not rows["summary"]:
        return [words.say("answer", "untried")]
    before, baseline = findings.non_target_before, findings.non_target_baseline
    beaten = no_better(metric.name, before, baseline, metric.baseline)
    numbers = {"closed": ", ".join(f"{r['selection']} {percent(r)}" for r in rows["summary"])}
    if pairs:
        *rest, pair = pairs
        numbers |= {k: count(pair[k]) for k in ("wins", "pairs")} | {"chosen": pair["selection"]}
        more = [words.say("answer", "other", **_points(other)) for other in rest]
        numbers |= {"others": "".join(more)} | _points(pair)
    gained = words.say("answer", "paired" if pairs else "gained", **numbers)
    paid = [percent(r, "non_target_", signed) for r in _price(findings, rows)]
    lead = f"{beaten} {told_verdict(words, pairs)}".strip()
    return [lead, gained, *(words.say("answer", "price", change=change) for change in paid)]


def _points(pair: Row) -> Row:
    """What a paired difference says: against what, how many points, and the interval."""
    told = {"points": signed(pair["points"], 0), "span": interval(pair, "{}_points")}
    return {"control": _control(pair)} | told


def no_better(metric: str, before: float | None, baseline: float | None, label: str | None) -> str:
    """That the trained model does no better than what needs no training; "" where it does."""
    if baseline is None or before is None or not before >= baseline:
        return ""
    numbers = {"before": number(before), "baseline": number(baseline)}
    label = label or "baseline"
    return Words(__package__, numbers).say("answer", "no_better", metric=metric, label=label)


def _price(findings: Findings, rows: Tables) -> Iterator[Row]:
    """The guided selection's row, where its effect on others is known."""
    for r in rows["summary"]:
        if r["selection"] == findings.guided() and not missing(r["non_target_mean_pct"]):
            yield r


def interval(row: Row, names: str = "{}_pct", form: Any = rounded) -> str:
    """The 95 % interval; no line is broken within it."""
    low, high = (row[names.format(end)] for end in ("low", "high"))
    return "no interval" if missing(low) else f"{form(low)}\u00a0to\u00a0{form(high)}"


def percent(row: Row, prefix: str = "", form: Any = rounded) -> str:
    """The mean, and in brackets the interval."""
    told = with_unit(form(row[f"{prefix}mean_pct"]), "%")
    known = f"{prefix}low_pct" in row
    return f"{told} ({interval(row, f'{prefix}{{}}_pct', form)})" if known else told


def cards(findings: Findings, rows: Tables) -> Iterator[Card]:
    """The means of the selections, the paired difference, and the price to others."""
    action = "% of the gap closed" if findings.metric.reference else "% reduction"
    pairs = paired(findings, rows)
    for r in rows["summary"]:
        who, span = r["selection"], f"{interval(r)}{SPACE}% ({LEVEL})"
        yield Card(who, rounded(r["mean_pct"]), action, span, who)
    for pair in pairs:
        name, span = pair["selection"], f"{interval(pair, '{}_points')} points ({LEVEL})"
        points = signed(pair["points"], 0)
        yield Card(f"{name} − {_control(pair)}", points, "points", span, "accent")
    for pair in pairs[-1:]:
        how = f"same target and seed, {count(pair['ties'])} ties"
        name = f"{pair['selection']} beat {_control(pair)}"
        of = f"of {count(pair['pairs'])} trials"
        yield Card(name, count(pair["wins"]), of, how, "accent")
    for r in _price(findings, rows):
        worse, better = r["non_target_low_pct"] > 0, r["non_target_high_pct"] < 0
        color = OPPOSITE if worse else SELECTED if better else "ink"
        detail = f"{interval(r, 'non_target_{}_pct', signed)}{SPACE}%; above 0 is worse"
        label = f"{findings.metric.name} of all others, after {r['selection']}"
        yield Card(label, signed(r["non_target_mean_pct"]), "% change", detail, color)


def caveats(findings: Findings, rows: Tables) -> list[str]:
    """What the headline's numbers are not, for want of targets, pairs or finite results."""
    ours = [r["targets"] for r in rows["summary"] if r["selection"] == findings.guided()]
    pairs, words = paired(findings, rows), words_of(findings)
    lost = [f"{count(r['failed'])} of {r['selection']}" for r in rows["summary"] if r["failed"]]
    told = {
        "one": 1 in ours,
        "few": bool(ours) and 1 < ours[0] < FEW_TARGETS,
        "pairs": bool(pairs) and pairs[-1]["pairs"] < FEWEST_PAIRS,
        "failed": bool(lost),
    }
    numbers = {"targets": str(*ours), "failed": ", ".join(lost)}
    return [words.say("caveats", key, **numbers) for key, said in told.items() if said]


def main_tables(findings: Findings, rows: Tables, prefix: str = "") -> list[Table]:
    """What each selection did to its targets and to others; `prefix` of the files."""
    joined: dict[str, Row] = {}
    for r in rows["paired"]:  # the last control of a selection is the one that is told of
        versus = f"vs_{r['control'].partition(' ')[0]}_"
        told = {f"{versus}{k}": v for k, v in r.items()} | {"won": r["wins"], "of": r["pairs"]}
        joined.setdefault(r["selection"], {}).update(told)
    full = [r | joined.get(r["selection"], {}) for r in rows["summary"]]
    words, file = words_of(findings), f"{prefix}summary"
    return [words.table(name, full, file=file) for name in ("summary", "others")]


def target_tables(findings: Findings, rows: Tables, prefix: str = "") -> list[Table]:
    """The targets before fine-tuning, and what each selection closed of their gaps."""
    words, mine = words_of(findings), rows["targets"]
    told = [
        r for r in further(mine, TARGET) if any(row.get(r.heading) != row["axis"] for row in mine)
    ]
    return [
        words.table("targets", mine, told, f"{prefix}targets"),
        words.table("by_target", rows["by_target"], file=f"{prefix}by_target"),
    ]


def further(rows: list[Row], own: tuple[str, ...]) -> list[Column]:
    """The columns that come from the data."""
    names = dict.fromkeys(k for r in rows for k in r if k not in own)
    texts = {k for k in names for r in rows if isinstance(r.get(k), str)}
    return [Column(k, k, kind="text" if k in texts else "number") for k in names]
