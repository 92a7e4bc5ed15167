"""The parts of the page that a run has any number of: experiments, and runs beside it."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite, nan
from typing import Any

from distinf.report.formats import count, number
from distinf.report.rows import Row
from distinf.report.schema import (
    Bullets,
    Cell,
    Column,
    Draw,
    Item,
    Section,
    Table,
    Text,
    difference,
    spread,
    stub,
)
from distinf.report.spectral import arm_figures, axis_figures, families, headline
from distinf.report.spectral.families import NAMES, spoken, varied
from distinf.report.spectral.findings import CONTROL, SELECTED, Family, Findings
from distinf.report.spectral.headline import FEWEST_PAIRS, percent, words_of
from distinf.report.spectral.tables import Tables, own_tables

MOST_VALUES = 4
ARM = ("loss", "variant", "selection")


def name_of(family: Family) -> str:
    """The experiment's name as a heading."""
    words = family.name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def sources(findings: Findings) -> str:
    """Where the published numbers are from."""
    named = "; ".join(dict.fromkeys(p.source for p in findings.published))
    return words_of(findings).say("published", sources=named) if named else ""


def table_1_section(findings: Findings, rows: Tables) -> Section:
    """Losses and variants by training sets; beside each its published column."""
    words, every = words_of(findings), rows.get("table_1", [])
    best = [
        f"{' × '.join(filter(None, (r['loss'], r['variant'])))} ({r['column']}, {percent(r)})"
        for r in every
        if r.get("place") == 1
    ]
    mine = [r for r in every if r["source"] == "measured"]
    ids = ", ".join(dict.fromkeys(f"{r['column']}: {r['target_ids']}" for r in mine))
    note = words.say("experiments", "table_1_note", targets=ids, published=sources(findings))
    items: list[Item] = [
        _table_1(findings, every, note),
        words.figure("table_1", partial(arm_figures.table_1, every), "table-1"),
    ]
    said = words.say("experiments", "table_1", best="; ".join(best)) if best else ""
    title = "Table 1: losses, variants and training sets"
    return Section("table-1", title, items, said, "Table 1")


def _table_1(findings: Findings, every: Sequence[Row], note: str) -> Table:
    """A row per loss, variant and selection; a column per training set, here and as published."""
    here = [r for r in every if r["source"] == "measured"]
    labels = {r["run"]: r["column"] for r in here}
    places = dict.fromkeys((r["run"], r["source"] != "measured", r["column"]) for r in every)
    order = sorted(places, key=lambda p: ([*labels].index(p[0]) if p[0] in labels else 99, p[1]))
    lines: dict[Any, dict[Any, Any]] = {
        tuple(r[n] for n in ARM): {n: r[n] for n in ARM} for r in here
    }
    for r in every:
        line = lines.get(tuple(r[n] for n in ARM), {})
        line[r["run"], r["source"] != "measured", r["column"]] = r

    def column(place: Any) -> Column:
        run, printed, label = place
        heading = f"published, {label}" if printed and run in labels else label
        cell, group = spread(""), labels.get(run, "published only")
        of: Callable[[Row], Cell] = lambda r: cell.of(r[place]) if place in r else Cell()  # noqa: E731
        return Column(heading if printed else "here", of, group=group)

    def variant(row: Row) -> str:
        usual = row["selection"] in (SELECTED, CONTROL)
        return str(row["variant"]) if usual else f"{row['variant']}, {row['selection']}"

    loss = stub("loss", lambda r: r["loss"] if r["selection"] != CONTROL else CONTROL)
    rows = sorted(lines.values(), key=lambda r: r["selection"] == CONTROL)
    columns = [loss, stub("variant", variant), *map(column, order)]
    return words_of(findings).table("table_1", rows, columns, note=note)


def experiment_sections(findings: Findings, rows: Tables) -> list[Section]:
    """One per family but Table 1's, in order."""
    words, found = words_of(findings), []
    for place, family in enumerate(families.experiments(findings), 1):
        mine, swept = (
            [r for r in rows.get(table, []) if r["experiment"] == family.name]
            for table in ("arms", "rates")
        )
        shape, name = families.kind(family), f"experiment-{place}"
        by = " and ".join(NAMES.get(n, n) for n in varied(family) if n != "selection")
        numbers = {"by": by.replace("_", " ") or "selection", "most": str(arm_figures.MOST_ROWS)}
        draw: Draw = partial(arm_figures.experiment, mine, findings.metric.name)
        if shape in ("updates", "rates"):
            drawn: Any = arm_figures.updates if shape == "updates" else arm_figures.rates
            draw = partial(drawn, findings, family)
        items: list[Item] = [
            Text(_setup(findings, family, mine), "note"),
            words.figure(shape, draw, name, **numbers),
            _rates_table(findings, family, swept),
            arms_table(findings, family, mine, folded=shape == "rates"),
        ]
        found.append(Section(name, name_of(family), items, _reading(findings, mine, swept)))
    return found


def _setup(findings: Findings, family: Family, rows: Sequence[Row]) -> str:
    """What was varied, where the arms differ from the headline in all, and how many differ."""
    compared = "; ".join(_values(name, family) for name in varied(family)) or "nothing"
    fixed = families.fixed(findings, family).items()
    apart = ", ".join(spoken(k, v) for k, v in fixed) or "nothing"
    base = families.base_of(findings, family)
    own = any(base == group for group in families.arms(family).values())
    other = "the headline's" if base else "none"
    label = families.arm_label(varied(family), base[0]) if own else other
    to = {f"to_{k}": _judged(findings, rows, k) for k in ("base", "random")}
    words = words_of(findings)
    return words.say("experiments", "setup", compared=compared, apart=apart, base=label, **to)


def _values(name: str, family: Family) -> str:
    every = dict.fromkeys(o.value(name) for o in family.outcomes)
    values = [v for v in every if v not in (None, "")]
    if len(values) > MOST_VALUES and all(isinstance(v, int | float) for v in values):
        return f"{NAMES.get(name, name)} {min(values):g} to {max(values):g} ({len(values)} values)"
    return ", ".join(dict.fromkeys(spoken(name, v) for v in values))


def _reading(findings: Findings, arms_: Sequence[Row], swept: Sequence[Row]) -> str:
    """What the experiment showed: the best and the worst arm, or the best rate."""
    words, known = words_of(findings), [r for r in swept if isfinite(r["best_mean"])]
    if known:
        best = min(known, key=lambda r: r["best_mean"])
        numbers = {"least": number(best["best_mean"]), "rate": f"{best['rate']:g}"}
        numbers["steps"] = spoken("steps", best["best_step"])
        return words.say("experiments", "rate", **numbers)
    finite = sorted((r for r in arms_ if isfinite(r["mean_pct"])), key=lambda r: -r["mean_pct"])
    if len(finite) < 2:
        return ""
    most, least = (f"{r['arm']}, {percent(r)}" for r in (finite[0], finite[-1]))
    return words.say("experiments", "best", best=most, worst=least)


def _judged(findings: Findings, rows: Sequence[Row], control: str) -> str:
    """How many arms differ from a control by more than the interval."""
    versus, pairs = f"vs_{control}_", "base_pairs" if control == "base" else "pairs"
    known = [r for r in rows if isfinite(r.get(f"{versus}points", nan))]
    judged = [r for r in known if r[pairs] >= FEWEST_PAIRS]
    ahead = count(sum(r[f"{versus}low_points"] > 0 for r in judged))
    behind = count(sum(r[f"{versus}high_points"] < 0 for r in judged))
    numbers = {"ahead": ahead, "behind": behind, "judged": count(len(judged))}
    return words_of(findings).say("experiments", "judged", **numbers)


def arms_table(
    findings: Findings, family: Family, rows: Sequence[Row], prefix: str = "", folded: bool = False
) -> Table:
    """The arms of an experiment: what is varied, what it closed, and at what price to others."""
    early = next((r["early_steps"] for r in rows if "early_steps" in r), None)
    last = max((r["steps"] for r in rows), default=0)
    closed, paired, others = "gap closed [%]", "paired difference [points]", "others"
    base = difference("", "vs_base_")
    columns = [
        *(_setting(n) for n in varied(family) if n != "selection"),
        stub("selection", "selection"),
        Column("trials", "trials", count),
        Column("failed", "failed", headline.unless_0),
        spread(f"after {early} steps", "early_", group=closed),
        spread(f"after {last} steps", group=closed),
        difference(f"minus {CONTROL}", "vs_random_", group=paired),
        Column("minus base", lambda r: "base" if r["base"] else base.of(r), group=paired),
        Column(findings.metric.name, "non_target_metric", group=others),
        difference("change [%]", "non_target_", "pct", others, "mean_"),
    ]
    words, name = words_of(findings), name_of(family)
    return words.table("arms", rows, columns, f"{prefix}arms", folded=folded, name=name)


def _setting(name: str) -> Column:
    def cell(row: Row) -> str:
        found = row.get(name)
        if found in (None, "") or (row["selection"] == CONTROL and name in ("pool", "order")):
            return ""
        if name == "adapter":
            return str(found or "none")
        return f"{found:g}" if isinstance(found, float) else str(found)

    return stub(NAMES.get(name, name), cell)


def _rates_table(findings: Findings, family: Family, rows: Sequence[Row]) -> Table:
    """Per learning rate: the metric early and at last, and where it was lowest."""
    swept = str(families.rate(family))
    early = next((r["early_steps"] for r in rows if "early_steps" in r), None)
    last, name = max((r["steps"] for r in rows), default=0), NAMES.get(swept, swept)
    columns = [
        *(_setting(n) for n in varied(family) if n != swept),
        Column(name, "rate", lambda v: f"{v:g}"),
        Column(f"after {early} steps", "early_mean"),
        Column(f"after {last} steps", "last_mean"),
        Column("lowest", "best_mean"),
        Column("at step", "best_step", str),
    ]
    return words_of(findings).table("rates", rows, columns, rate=name)


def effects(findings: Findings, rows: Tables) -> Table:
    """Mean metric and gap closed, on the targets and on all others, per run, aim and curve."""
    every, name = rows.get("effects", []), findings.metric.name
    several = len({r["label"] for r in every}) > 1
    columns = [
        stub("experiment", lambda r: ", ".join([r["panel"], *([r["label"]] if several else [])])),
        stub("of", lambda r: axis_figures.curve_label(findings, r["role"])),
        Column(name, "target_metric", group="targets"),
        spread("gap closed [%]", group="targets"),
        Column(name, "non_target_metric", group="others"),
        spread("gap closed [%]", "non_target_gap_", group="others"),
    ]
    told = [{k: v for k, v in r.items() if k != "low_pct"} for r in every]
    return words_of(findings).table("effects", told, columns)


def variations_section(findings: Findings, rows: Tables) -> Section:
    """The runs beside each other: the model, its targets, what guidance gained; and each alone."""
    mine, name, words = rows.get("variations", []), findings.metric.name, words_of(findings)
    before, closed, others = f"{name} before", "gap closed [%]", f"others' {name}"
    columns = [
        stub("run", "label"),
        stub("fine-tuning", lambda r: ", ".join(filter(None, (r["experiment"], r["guided"])))),
        Column("all evaluation", _over("evaluation_metric", "evaluation_reference"), group=before),
        Column("targets", _over("target_metric", "target_gap"), group=before),
        spread("guided", "guided_", group=closed),
        spread(CONTROL, f"{CONTROL}_", group=closed),
        difference("difference", group=closed),
        Column("before", "non_target_before", group=others),
        Column("after guided", _over("guided_non_target_metric", f"{CONTROL}_non_target_metric"),
               group=others),
    ]  # fmt: skip
    same = len({tuple(t.id for t in run.targets) for run in families.runs(findings).values()}) == 1
    told = "the same targets" if same else "targets that are not all the same: compare differences"
    items: list[Item] = [
        words.figure("variations", partial(arm_figures.variations, mine, name), told=told),
        words.table("variations", mine, columns),
        *(_variation(k, *beside, findings) for k, beside in enumerate(findings.beside.items(), 1)),
    ]
    return Section("variations", "Variations of this run", items if mine else [], "", "Variations")


def _over(key: str, below: str) -> Any:
    """A metric over another: the reference's, the mean gap of so many targets, random's."""
    pattern = {"evaluation_reference": "reference {}", "target_gap": "{1}, mean gap {0}"}

    def cell(row: Row) -> Cell:
        told, lower = Column("", key).of(row), row.get(below)
        if lower is None or not isfinite(lower):
            return told
        form = pattern.get(below, f"{CONTROL} {{}}")
        return Cell(told.text, form.format(number(lower), row["targets"]), told.value)

    return cell


def _variation(place: int, name: str, run: Findings, of: Findings) -> Section:
    """A run beside this one: its own answer and tables, and deviations that are not this run's."""
    own = own_tables(run)
    tables = headline.headline_tables(run, own, "beside_")
    tables += headline.target_tables(run, own, "beside_")
    for family in families.experiments(run):
        mine = [r for r in own["arms"] if r["experiment"] == family.name]
        tables.append(arms_table(run, family, mine, "beside_"))
    said = headline.answer(run, own)
    apart = Bullets([("", line) for line in run.deviations if line not in of.deviations])
    items: list[Item] = [Text(run.task, "note"), apart, Text(" ".join(said[1:])), *tables]
    title = f"{families.run_label(name, run)}: {said[0]}"
    return Section(f"variation-{place}", title, items, folded=True)


def overlaps(findings: Findings, rows: Sequence[Row]) -> Table:
    """The pairs of one run: least to most over the targets."""
    shared: dict[tuple[str, ...], list[int]] = {}
    for r in (r for r in rows if r["run"] == r["other_run"]):
        one, other = (tuple(r[f"{p}{k}"] for k in ("loss", "variant")) for p in ("", "other_"))
        shared.setdefault((r["run"], *one, *other), []).append(r["shared"])
        shared.setdefault((r["run"], *other, *one), []).append(r["shared"])
    every = families.runs(findings)
    labels = {
        name: families.run_label(name, run) if len(every) > 1 else "" for name, run in every.items()
    }
    order = sorted(dict.fromkeys(k[:3] for k in shared), key=lambda k: list(labels).index(k[0]))

    def column(score: tuple[str, ...]) -> Column:
        def cell(row: Row) -> str:
            found = shared.get((*row["key"], *score), [])
            least, most = (count(f(found)) if found else "" for f in (min, max))
            return least if least == most else f"{least} to {most}"

        return Column(score[1], cell, group=score[0])

    columns = [stub("run", lambda r: labels[r["key"][0]]), stub("loss", lambda r: r["key"][1])]
    columns += [stub("variant", lambda r: r["key"][2])]
    columns += [column(score) for score in dict.fromkeys(k[1:] for k in order)]
    pool = count(findings.headline.pool)
    lines: list[Row] = [{"key": key} for key in order]
    return words_of(findings).table("overlaps", lines, columns, folded=True, pool=pool)
