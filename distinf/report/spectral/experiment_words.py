"""What each further experiment asks, how it was set up, and what its rows say."""

import math
from collections.abc import Sequence

from distinf.report.formats import SPACE, count, number, rounded, signed
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.families import (
    NAMES,
    arm_label,
    arms,
    base_of,
    fixed,
    kind,
    spoken,
    varied,
)
from distinf.report.spectral.findings import CONTROL, GROUP, Family, Findings
from distinf.report.spectral.summaries import Row
from distinf.report.spectral.wording import FEWEST_PAIRS, interval

MOST_LISTED = 3
MOST_VALUES = 4
QUESTIONS = {
    ("update",): "Do other updates do better than plain descent, and are harmful {noun} of use?",
    ("order",): "Does the order in which a pool is gone through matter?",
    ("pool",): "How large should a pool be?",
    ("order", "pool"): "Do a pool's size and the order in it matter?",
    ("adapter",): "Are low-rank adapters enough?",
    ("aim",): "Can several targets be improved at once?",
    ("variant",): "Which scores choose best?",
    ("loss",): "Which loss should the scores be about?",
    ("lr",): "Which learning rates help, and for how many steps?",
    ("newton_lr",): "How long should a second-order step be?",
    ("steps",): "For how many steps does tuning help?",
    ("optimizer",): "Should the optimizer keep its state?",
}


def name_of(family: Family) -> str:
    """The experiment's name as a heading."""
    words = family.name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def question(findings: Findings, family: Family) -> str:
    """What it asks, where what it varies tells."""
    names = tuple(sorted(n for n in varied(family) if n != "selection"))
    selections = {o.selection for o in family.outcomes}
    several = {o.aim for o in family.outcomes} == {"multi-target"}
    if several and GROUP in selections:
        return "Can several targets be improved at once, and does choosing for them jointly help?"
    if several and set(names) <= {"pool", "order"}:
        return "Can several targets be improved at once?"
    if all(o.adapter for o in family.outcomes):
        return QUESTIONS["adapter",]
    if names == ("variant",) and any(o.variant == "tracin" for o in family.outcomes):
        return "Do scores along the path of training (TracIn) choose as well?"
    return QUESTIONS.get(names, "").format(noun=findings.headline.noun)


def setup(findings: Findings, family: Family) -> str:
    """What was varied, and where the arms differ from the headline in all."""
    parts = [_values(name, family) for name in varied(family)]
    text = f"Compared: {'; '.join(parts)}." if parts else ""
    apart = [
        f"on {count(v)} target{'' if v == 1 else 's'}" if k == "targets" else spoken(k, v)
        for k, v in fixed(findings, family).items()
    ]
    return f"{text} All else is as in the headline{', but: ' + ', '.join(apart) if apart else ''}."


def _values(name: str, family: Family) -> str:
    values = list(dict.fromkeys(o.value(name) for o in family.outcomes))
    values = [v for v in values if v not in (None, "")]
    if len(values) > 1 and all(isinstance(v, int | float) for v in values):
        shown = ", ".join(f"{v:g}" for v in values)
        if len(values) > MOST_VALUES:
            shown = f"{min(values):g} to {max(values):g} ({count(len(values))} values)"
        return f"{NAMES.get(name, name)} {shown}"
    return ", ".join(dict.fromkeys(spoken(name, v) for v in values))


def base_note(findings: Findings, family: Family) -> str:
    """Which arm the others are compared with."""
    base = base_of(findings, family)
    if not base:
        return ""
    if any(base is group or base == group for group in arms(family).values()):
        return f"the base arm is “{arm_label(varied(family), base[0])}”"
    return f"the base arm is the headline's “{base[0].selection}”"


def reading(findings: Findings, family: Family, rows: Tables) -> str:
    """What the experiment showed, from its rows alone."""
    if kind(family) == "rates":
        return _rates(findings, family, rows)
    mine = _own(family, rows.get("arms", []))
    return " ".join(filter(None, (_most(mine), _against_base(mine), _against_random(mine))))


def gist(findings: Findings, family: Family, rows: Tables) -> str:
    """The one sentence of it that the top of the page has room for."""
    if kind(family) == "rates":
        return _rates(findings, family, rows)
    mine = _own(family, rows.get("arms", []))
    return " ".join(filter(None, (_most(mine), _against_base(mine))))


def _own(family: Family, rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["experiment"] == family.name]


def _most(rows: Sequence[Row]) -> str:
    finite = [r for r in rows if math.isfinite(r["mean_pct"])]
    if len(finite) < 2:
        return ""
    best = max(finite, key=lambda r: r["mean_pct"])
    worst = min(finite, key=lambda r: r["mean_pct"])
    text = f"Most was closed by {best['arm']}, {_percent(best)}; least by {worst['arm']}, "
    return text + f"{_percent(worst)}."


def _percent(row: Row) -> str:
    text = f"{rounded(row['mean_pct'])}{SPACE}%"
    if not math.isfinite(row["low_pct"]):
        return text
    return f"{text} ({interval(row['low_pct'], row['high_pct'])})"


def _against_base(rows: Sequence[Row]) -> str:
    known = [r for r in rows if math.isfinite(r.get("vs_base_points", math.nan))]
    judged = [r for r in known if r["base_pairs"] >= FEWEST_PAIRS]
    if not known:
        return ""
    if not judged:
        return f"Fewer than {FEWEST_PAIRS} pairs cannot tell an arm from the base arm."
    ahead = [r for r in judged if r["vs_base_low_points"] > 0]
    behind = [r for r in judged if r["vs_base_high_points"] < 0]
    parts = [
        f"{how} the base arm beyond the interval: {_listed(group)}"
        for how, group in (("ahead of", ahead), ("behind", behind))
        if group
    ]
    if not parts:
        return "No arm differs from the base arm by more than its interval."
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."


def _listed(rows: Sequence[Row]) -> str:
    ordered = sorted(rows, key=lambda r: -abs(r["vs_base_points"]))
    told = [f"{r['arm']} ({signed(r['vs_base_points'], 0)})" for r in ordered[:MOST_LISTED]]
    more = len(ordered) - len(told)
    return ", ".join(told) + (f" and {count(more)} more" if more else "")


def _against_random(rows: Sequence[Row]) -> str:
    judged = [
        r
        for r in rows
        if r["selection"] != CONTROL and "vs_random_points" in r and r["pairs"] >= FEWEST_PAIRS
    ]
    if not judged:
        return ""
    ahead = sum(r["vs_random_low_points"] > 0 for r in judged)
    arms_ = f"{count(len(judged))} guided arm{'' if len(judged) == 1 else 's'}"
    verb = "is" if ahead == 1 else "are"
    return f"{count(ahead)} of {arms_} {verb} ahead of random by more than the interval."


def _rates(findings: Findings, family: Family, rows: Tables) -> str:
    name = findings.metric.name
    known = [r for r in _own(family, rows.get("rates", [])) if math.isfinite(r["best_mean"])]
    if not known:
        return ""
    best = min(known, key=lambda r: r["best_mean"])
    text = f"The lowest mean {name} is {number(best['best_mean'])}, at {best['rate']:g} after "
    text += f"{spoken('steps', best['best_step'])}"
    early = [r for r in known if math.isfinite(r.get("early_mean", math.nan))]
    if early:
        first = min(early, key=lambda r: r["early_mean"])
        text += f"; after the headline's {spoken('steps', first['early_steps'])} it is "
        text += f"{number(first['early_mean'])}, at {first['rate']:g}"
    return text + "."


def table_1_reading(rows: Tables) -> str:
    """Per training set the loss and variant of largest mean, here and as published."""
    best = [r for r in rows.get("table_1", []) if r.get("place") == 1]
    parts = []
    for row in (r for r in best if r["source"] == "measured"):
        text = f"on {row['column']}, {_scores(row)} closed most, {_percent(row)}"
        printed = [r for r in best if r["source"] != "measured" and r["run"] == row["run"]]
        for other in printed:
            mean = f"{rounded(other['mean_pct'])}{SPACE}%"
            text += f"; as published for {other['column']}, {_scores(other)}, {mean}"
        parts.append(text[:1].upper() + text[1:] + ".")
    return " ".join(parts)


def table_1_targets(rows: Tables) -> str:
    """Which target each training set's cells are about."""
    ours = [r for r in rows.get("table_1", []) if r["source"] == "measured"]
    told = dict.fromkeys((r["column"], r["target_ids"]) for r in ours)
    every = {ids for _, ids in told}
    if len(told) > 1 and len(every) == 1:
        return f"Improved here: target {every.pop()} in every column."
    each = "; ".join(f"{ids} on {column}" for column, ids in told)
    return f"Improved here: target {each}." if told else ""


def _scores(row: Row) -> str:
    return " × ".join(filter(None, (row["loss"], row["variant"])))
