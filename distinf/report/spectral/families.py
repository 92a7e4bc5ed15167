"""The experiments of a run: of which kind each is, and how its arms are told apart and compared.

An arm is the trials of a family that agree in all that the family varies.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from distinf.report.formats import count, number
from distinf.report.rows import Row, gathered
from distinf.report.spectral import trials
from distinf.report.spectral.findings import CONTROL, Family, Findings, Outcome

Kind = Literal["table 1", "updates", "rates", "other"]
RATES = ("lr", "newton_lr")
CACHED = 256  # families, told apart by identity
FEWEST_RATES, FEWEST_STEPS = 3, 3
CHOICE = ("loss", "variant", "pool", "order")  # a random choice of samples depends on none of them
COMPARED = ("loss", "variant", "update", "aim", "order", "pool", "lr", "adapter", "steps")
NAMES = {
    "lr": "learning rate",
    "newton_lr": "step size η",
    "adapter": "adapter rank",
    "weight_decay": "weight decay",
    "batch_size": "batch",
}


@lru_cache(maxsize=CACHED)
def kind(family: Family) -> Kind:
    """How the page shows the family."""
    names, steps = {*varied(family)} - {"selection"}, longest(family)
    if names == {"loss", "variant"}:
        return "table 1"
    if rate(family) and steps >= FEWEST_STEPS:
        return "rates"
    return "updates" if "update" in names and steps else "other"


def longest(family: Family) -> int:
    """The most fine-tuning steps of any arm."""
    return max((o.value("steps") for o in family.outcomes), default=0)


@lru_cache(maxsize=CACHED)
def rate(family: Family) -> str | None:
    """The learning rate that the family sweeps over, if it does."""
    for name in RATES:
        values = {o.value(name) for o in family.outcomes} - {None}
        if name in varied(family) and len(values) >= FEWEST_RATES:
            return name
    return None


def headline(findings: Findings) -> Family:
    """The headline's trials; its name is ""."""
    trials = findings.main_outcomes()
    return Family("", ("selection",), trials, findings.axis_curves)


def table_1(findings: Findings) -> Family | None:
    """The family that crosses losses with variants."""
    return next((f for f in findings.families if f.outcomes and kind(f) == "table 1"), None)


def experiments(findings: Findings) -> list[Family]:
    """All other families with trials, as they came; see `_joined`."""
    rest = tuple(f for f in findings.families if f.outcomes and f is not table_1(findings))
    return list(_joined(rest))


@lru_cache(maxsize=CACHED)
def _joined(families: tuple[Family, ...]) -> tuple[Family, ...]:
    """Families of one further update, as ascent is of harmful samples, join the one that varies it.

    They must have as many steps, and the same targets.
    """
    found = {f: [*f.outcomes] for f in families}
    for guest in (f for f in families if kind(f) == "other"):
        steps, (update, *more) = _reach(guest), {o.update for o in guest.outcomes}
        for host in (f for f in families if kind(f) == "updates" and _reach(f) == steps):
            if not more and guest in found and update not in {o.update for o in host.outcomes}:
                found[host] += found.pop(guest)
    return tuple(replace(f, outcomes=every) for f, every in found.items())


def _reach(family: Family) -> tuple[set[int], set[int]]:
    """Its targets, and its numbers of steps."""
    return {o.target for o in family.outcomes}, {o.value("steps") for o in family.outcomes}


def runs(findings: Findings) -> dict[str, Findings]:
    """Name -> run: those beside it in the order of the published columns, "" being this one."""
    every = {"": findings, **findings.variations}
    printed = [p.run for p in findings.published if p.run in every]
    return {name: every[name] for name in dict.fromkeys([*printed, *every])}


def run_label(name: str, run: Findings) -> str:
    """How a run is told from those beside it."""
    return ": ".join(filter(None, (name, run.label))) or "this run"


@lru_cache(maxsize=CACHED)
def varied(family: Family) -> tuple[str, ...]:
    """What tells its arms apart, as they were named; the selection last."""
    names = [n for n in dict.fromkeys(family.varied) if n != "selection"]
    found = [name for name in names if len(_values(name, family.outcomes)) > 1]
    several = len({o.selection for o in family.outcomes}) > 1
    return (*found, "selection") if several else tuple(found)


@lru_cache(maxsize=CACHED)
def arms(family: Family) -> dict[tuple[Any, ...], list[Outcome]]:
    """Values of what is varied -> trials, in the order that they came."""
    return gathered(family.outcomes, lambda o: tuple(o.value(n) for n in varied(family)))


def arm_label(names: Sequence[str], outcome: Outcome) -> str:
    """An arm in words: its selection, then whatever else is varied and plays a part in it."""
    words = [outcome.selection] if "selection" in names else []
    rest = [n for n in names if n != "selection" and _plays_a_part(n, outcome)]
    words += [spoken(name, outcome.value(name)) for name in rest]
    return ", ".join(words) or outcome.selection


def spoken(name: str, value: Any) -> str:
    """A setting's value as it stands in a sentence or beside a row."""
    if name == "adapter":
        return f"adapters of rank {value}" if value else "all parameters"
    if name == "steps":
        return f"{count(value)} step{'' if value == 1 else 's'}"
    if name in ("loss", "variant", "update", "aim", "selection"):
        return str(value)
    shown = f"{value:g}" if isinstance(value, float) else number(value)
    patterns = {"order": "{} order", "pool": "pool of {}", "targets": "on {} targets"}
    return patterns.get(name, NAMES.get(name, name) + " {}").format(shown)


def fixed(findings: Findings, family: Family) -> dict[str, Any]:
    """What all arms share, where the headline has another value; `targets` is how many."""
    head = findings.main_outcomes()
    names = dict.fromkeys([*COMPARED, *(k for o in family.outcomes for k in o.settings)])
    found: dict[str, Any] = {}
    for name in (n for n in names if n not in varied(family)):
        ours, theirs = _values(name, family.outcomes), _values(name, head)
        if len(ours) == 1 and len(theirs) == 1 and ours != theirs:
            found[name] = ours.pop()
    targets = {o.target for o in family.outcomes}
    if head and targets != {o.target for o in head}:
        found["targets"] = len(targets)
    return found


def control_of(findings: Findings, family: Family, arm: Sequence[Outcome]) -> list[Outcome]:
    """The random trials that differ from an arm in the choice of samples alone.

    They are the family's, or else the headline's; none for an arm that is random itself.
    """
    first, names = arm[0], ("update", "aim", "lr", "adapter", "steps")
    if first.selection == CONTROL:
        return []
    for place in (family.outcomes, findings.main_outcomes()):
        random = (o for o in place if o.selection == CONTROL and o.loss in ("", first.loss))
        if found := [o for o in random if alike(o, first, names)]:
            return found
    return []


def base_of(findings: Findings, family: Family) -> list[Outcome]:
    """The guided trials that other arms are compared with.

    They are the family's arm with the headline's values, or else the headline's own.
    """
    head = [o for o in findings.main_outcomes() if o.selection == findings.guided()]
    if not head:
        return []
    usual = tuple(head[0].value(name) for name in varied(family))
    return arms(family).get(usual) or head


def alike(one: Outcome, other: Outcome, names: Sequence[str]) -> bool:
    """Whether two trials agree in these, and in all further settings."""
    every = {*names, *one.settings, *other.settings}
    return all(one.value(n) == other.value(n) for n in every)


def _values(name: str, outcomes: Sequence[Outcome]) -> set[Any]:
    return {o.value(name) for o in outcomes if _plays_a_part(name, o)}


def _plays_a_part(name: str, outcome: Outcome) -> bool:
    chosen = name not in CHOICE or outcome.selection != CONTROL
    return chosen and outcome.value(name) not in (None, "")


def arm_rows(findings: Findings, family: Family) -> list[Row]:
    """Per arm: gap closed, minus random, minus the base arm, and what it did to other samples.

    `base` marks the arm that others are compared with, where the family has it. `early_` columns
    are after as many steps as the headline took, where the family took more.
    """
    base = base_of(findings, family)
    references = {t.id: t.reference or 0.0 for t in findings.targets}
    rows = []
    for group in arms(family).values():
        row = told_apart(family, group[0]) | trials.reduction(group)
        early = findings.headline.steps or 0
        if 0 < early < group[0].value("steps"):
            after = trials.reduction_after(group, early, references)
            row |= {"early_steps": early} | {f"early_{k}": v for k, v in after.items()}
        control = control_of(findings, family, group)
        if control:
            row |= trials.against("vs_random_", group, control)
        row["base"] = group is base or group == base
        if base and not row["base"] and group[0].selection != CONTROL:
            row |= trials.against("vs_base_", group, base, "base_pairs")
        rows.append(row | trials.side_effect(group) | trials.others(group))
    return rows


def rate_rows(findings: Findings, family: Family) -> list[Row]:
    """Per arm of a sweep: the metric early and at last, and the step at which it was lowest."""
    early, rows = findings.headline.steps, list[Row]()
    if kind(family) != "rates":
        return rows
    for group in arms(family).values():
        means = [r["mean"] for r in trials.path(group)]
        finite = [k for k, m in enumerate(means) if math.isfinite(m)]
        best = min(finite, key=lambda k: means[k]) if finite else None
        row = told_apart(family, group[0]) | {"rate": group[0].value(str(rate(family)))}
        if early is not None and early < len(means):
            row |= {"early_steps": early, "early_mean": means[early]}
        row |= {"last_mean": means[-1], "best_step": best}
        rows.append(row | {"best_mean": math.nan if best is None else means[best]})
    return rows


def told_apart(family: Family, first: Outcome) -> Row:
    """The experiment, the arm in words, and every setting that an arm can have."""
    names = dict.fromkeys(["selection", *COMPARED, *first.settings])
    row: Row = {"experiment": family.name, "arm": arm_label(varied(family), first)}
    return row | {name: first.value(name) for name in names}
