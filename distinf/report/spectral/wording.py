"""The answer in words: what was gained, and how sure this run can be of it."""

from dataclasses import dataclass
from typing import Any

from distinf.report.formats import (
    SPACE,
    count,
    missing,
    number,
    percent,
    rounded,
    signed,
)
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.findings import CONTROL, GROUP, OPPOSITE, SELECTED, Findings

FEW_TARGETS = 5
# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class Card:
    label: str
    value: str
    unit: str
    detail: str
    role: str = "ink"


@dataclass(frozen=True)
class Answer:
    """`verdict`: better, none (no difference shown), worse, or unknown (nothing to compare)."""

    verdict: str
    lead: str
    sentences: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join((self.lead, *self.sentences))


def answer(findings: Findings, rows: Tables) -> Answer:
    """The answer from the tables alone, so that it cannot disagree with them."""
    by_selection = {r["selection"]: r for r in rows["summary"]}
    chosen = findings.guided()
    ours, control = by_selection.get(chosen), by_selection.get(CONTROL)
    if ours is None or missing(ours["mean_pct"]):
        return _without_effect(findings, by_selection)
    versus = next((r for r in rows["paired"] if r["selection"] == chosen), None)
    verdict = _verdict(versus)
    claims = [_closed(findings, ours, full=True)]
    if control is not None and not missing(control["mean_pct"]):
        claims.append(_closed(findings, control, full=False))
    steps = findings.headline.steps
    limit = "at most " if any(o.value("stop") is not None for o in findings.outcomes) else ""
    spent = f" for {limit}{count(steps)} step{'' if steps == 1 else 's'}" if steps else ""
    sentences = [f"Fine-tuning{spent} on {', '.join(claims)}."]
    if versus is not None and versus["pairs"]:
        sentences.append(_comparison(verdict, versus))
    opposite = by_selection.get(OPPOSITE)
    if opposite is not None and not missing(opposite["mean_pct"]):
        sentences.append(_capital(_closed(findings, opposite, full=False)) + ".")
    cards = _cards(findings, by_selection, versus)
    notes = _notes(findings, ours, rows["summary"])
    lead = _no_better(findings) + _lead(verdict, findings) + _price(findings, ours)
    return Answer(verdict, lead, tuple(sentences), cards, notes)


def describe(findings: Findings, selection: str) -> str:
    """A selection in words: the run's own description, else one for the usual three."""
    if selection in findings.descriptions:
        return findings.descriptions[selection]
    head = findings.headline
    many = f"{count(head.pool)} " if head.pool else ""
    usual = {
        SELECTED: f"the {many}most helpful {head.noun}",
        GROUP: f"the {many}{head.noun} that help all targets together the most",
        OPPOSITE: f"the {many}most harmful {head.noun}",
        CONTROL: f"random {head.noun}",
    }
    return usual.get(selection, f"the selection “{selection}”")


def goal(findings: Findings) -> str:
    """What was reduced: the gap to the reference, or the metric itself."""
    reference = findings.metric.reference
    if reference is None:
        return f"the targets' {findings.metric.name}"
    article = "" if reference.startswith(("the ", "a ", "an ")) else "the "
    return f"the {findings.metric.name} gap to {article}{reference}"


def interval(low: float, high: float, form: Any = rounded) -> str:
    return f"{form(low)}\u00a0to\u00a0{form(high)}"  # no break within an interval


def _without_effect(findings: Findings, by_selection: dict[str, dict[str, Any]]) -> Answer:
    if not by_selection:
        lead = "This run did not act on its scores, so it does not say whether they help."
        return Answer("unknown", lead)
    lead = (
        f"This run has no finite result for fine-tuning on {describe(findings, findings.guided())}."
    )
    return Answer("unknown", lead, cards=_cards(findings, by_selection, None))


def _verdict(versus: dict[str, Any] | None) -> str:
    if versus is None or versus["pairs"] < FEWEST_PAIRS:
        return "unknown"
    if versus["low_points"] > 0:
        return "better"
    return "worse" if versus["high_points"] < 0 else "none"


def _lead(verdict: str, findings: Findings) -> str:
    noun = findings.headline.noun
    return {
        "better": f"In this run, influence picked better {noun} than chance did.",
        "none": f"This run does not show a difference between influence and random {noun}.",
        "worse": f"In this run, influence picked worse {noun} than chance did.",
        "unknown": "This run has too few paired trials to compare influence with chance.",
    }[verdict]


def no_better(metric: str, before: float, baseline: float | None, label: str | None) -> str:
    """That the trained model does no better than what needs no training; "" where it does."""
    if baseline is None or not before >= baseline:
        return ""
    return (
        f"The trained model is no better than the {label or 'baseline'} on all other rows "
        f"({metric} {number(before)} against {number(baseline)}): what follows is about a model "
        "that has yet to learn its task."
    )


def _no_better(findings: Findings) -> str:
    before, baseline = findings.non_target_before, findings.non_target_baseline
    metric = findings.metric
    said = "" if before is None else no_better(metric.name, before, baseline, metric.baseline)
    return f"{said} " if said else ""


def _price(findings: Findings, row: dict[str, Any]) -> str:
    """What the selection did to the rows that were no target; nothing where that is unknown."""
    mean, low, high = (row[f"non_target_{k}_pct"] for k in ("mean", "low", "high"))
    if missing(mean):
        return ""
    name, others = findings.metric.name, f"all other {findings.headline.noun}"
    if not missing(low) and low <= 0 <= high:
        span = f"{interval(low, high, signed)}{SPACE}%"
        return f" The {name} of {others} did not change beyond chance ({span})."
    rose = "rose" if mean > 0 else "fell"
    verb = "At a price: the" if mean > 0 else "And the"
    return f" {verb} {name} of {others} {rose} by {percent(abs(mean))}."


def _closed(findings: Findings, row: dict[str, Any], full: bool) -> str:
    """What a selection did to the gap; a gap that grew is told as growth, in positive numbers."""
    mean, low, high = row["mean_pct"], row["low_pct"], row["high_pct"]
    closing = findings.metric.reference is not None
    thing = goal(findings) if full else "it"
    amount, level = percent(abs(mean)), f"95{SPACE}% interval " if full else ""
    if mean >= 0:
        shown = f"{'closed' if closing else 'cut'} {amount} of {thing}"
        span = interval(low, high)
    else:
        shown = f"{'widened' if closing else 'raised'} {thing} by {amount}"
        span = interval(-high, -low)
        if high > 0:
            span += ", below 0 it shrank"
    sure = "one trial, so no interval" if missing(low) else level + span
    return f"{describe(findings, row['selection'])} {shown} ({sure})"


def _comparison(verdict: str, versus: dict[str, Any]) -> str:
    name = versus["selection"]
    wins = f"{name} beat {CONTROL} in {count(versus['wins'])} of {count(versus['pairs'])}"
    wins += " paired trials"
    points, low, high = versus["points"], versus["low_points"], versus["high_points"]
    level = f"95{SPACE}% interval"
    if verdict == "unknown":
        text = f"{_capital(wins)}, with a mean difference of {_points(points)}: fewer than "
        return f"{text}{FEWEST_PAIRS} pairs cannot rule out chance."
    if verdict == "none":
        text = f"{_capital(name)} minus {CONTROL} is {_points(points)} on average, but its "
        return f"{text}{level}, {interval(low, high)}, includes zero; {wins}."
    if verdict == "better":
        ahead = f"and was {_points(points)} ahead on average"
        return f"{_capital(wins)} {ahead} ({level} {interval(low, high)})."
    behind = f"and was {_points(-points)} behind on average"
    return f"{_capital(wins)} {behind} ({level} {interval(-high, -low)})."


def _points(value: float) -> str:
    text = rounded(value)
    return f"{text} point" if text.lstrip("−") == "1" else f"{text} points"


def _cards(
    findings: Findings, by_selection: dict[str, dict[str, Any]], versus: dict[str, Any] | None
) -> tuple[Card, ...]:
    cards = []
    action = "of the gap closed" if findings.metric.reference is not None else "reduction"
    for selection, row in by_selection.items():
        detail = _span(row["low_pct"], row["high_pct"], "%")
        cards.append(Card(selection, rounded(row["mean_pct"]), f"% {action}", detail, selection))
        if selection == CONTROL and versus is not None:
            cards += _versus_cards(versus)
    chosen = findings.guided()
    ours = by_selection.get(chosen)
    if ours is not None and not missing(ours["non_target_mean_pct"]):
        value = signed(ours["non_target_mean_pct"])
        label = f"{findings.metric.name} of all others, after {chosen}"
        low, high = ours["non_target_low_pct"], ours["non_target_high_pct"]
        detail = "" if missing(low) else f"{interval(low, high, signed)}{SPACE}%; above 0 is worse"
        harmed = "ink" if missing(low) or low <= 0 <= high else OPPOSITE if low > 0 else SELECTED
        cards.append(Card(label, value, "% change", detail, harmed))
    return tuple(cards)


def _versus_cards(versus: dict[str, Any]) -> list[Card]:
    if not versus["pairs"]:
        return []
    span = _span(versus["low_points"], versus["high_points"], "points")
    ties = f", {count(versus['ties'])} ties" if versus["ties"] else ""
    name = versus["selection"]
    won, of = count(versus["wins"]), f"of {count(versus['pairs'])} trials"
    return [
        Card(f"{name} − {CONTROL}", signed(versus["points"], 0), "points", span, "accent"),
        Card(f"{name} beat {CONTROL}", won, of, f"same target and seed{ties}", "accent"),
    ]


def _span(low: float, high: float, unit: str) -> str:
    if missing(low):
        return "no interval"
    return f"{interval(low, high)}{SPACE}{unit} (95{SPACE}% interval)"


def _notes(findings: Findings, ours: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[str, ...]:
    notes = []
    if ours["targets"] == 1:
        many = len({o.target for o in findings.headline_outcomes()}) > 1
        one = "Targets of one condition" if many else "One target"
        notes.append(
            f"{one}: the intervals cover the seeds; there is none over other targets or conditions."
        )
    elif ours["targets"] < FEW_TARGETS:
        many = ours["targets"]
        notes.append(f"Only {many} targets: a bootstrap over so few makes intervals too narrow.")
    failed = [f"{count(r['failed'])} of {r['selection']}" for r in rows if r["failed"]]
    if failed:
        text = f"Trials without a finite result are left out of every mean ({', '.join(failed)}), "
        notes.append(text + "which flatters a selection that diverged.")
    return tuple(notes)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
