"""The parts of the page that a run has any number of: experiments, and runs beside it."""

from collections.abc import Sequence
from functools import partial
from math import isfinite, nan

from distinf.report.formats import SPACE, count, number, rounded
from distinf.report.rows import Row
from distinf.report.schema import (
    Bullets,
    Cell,
    Column,
    Draw,
    Figure,
    Item,
    Section,
    Table,
    Text,
    difference,
    spread,
    stub,
)
from distinf.report.spectral import arm_figures, metric_figures
from distinf.report.spectral.families import (
    NAMES,
    arm_label,
    arms,
    base_of,
    experiments,
    fixed,
    kind,
    rate,
    run_label,
    runs,
    spoken,
    varied,
)
from distinf.report.spectral.findings import CONTROL, SELECTED, Family, Findings
from distinf.report.spectral.headline import (
    FEWEST_PAIRS,
    answer,
    headline_tables,
    interval,
    sources,
    target_tables,
)
from distinf.report.spectral.tables import Tables, run_tables

BARS = "Dots and bars: means with their 95 % bootstrap intervals"
MOST_VALUES = 4
CAPTIONS = {
    "updates": "Lines: mean over targets and seeds; bands: one standard deviation. Each panel has "
    "its own scale; ascent is shown with the harmful selection alone. Dashed, where in range: the "
    "reference on the same targets.",
    "rates": "Each cell is the mean {metric} over targets and seeds, coloured by its distance from "
    "where it was before the first step: green is better, orange is worse. Ringed: the best step "
    "of each rate. Hatched, if any: beyond the scale.",
    "other": f"{BARS}; arms that more than doubled the gap are arrows at the edge. "
    "Differences pair equal targets and seeds; hollow: the base arm. At most "
    f"{arm_figures.MOST_ROWS} arms are drawn.",
}


def name_of(family: Family) -> str:
    """The experiment's name as a heading."""
    words = family.name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def table_1_section(findings: Findings, rows: Tables) -> Section:
    """Losses and variants by training sets; beside each its published column."""
    every = rows.get("table_1", [])
    measured = [r for r in every if r["source"] == "measured"]
    best = [f"{_scores(r)} ({r['column']}, {_percent(r)})" for r in every if r.get("place") == 1]
    ids = dict.fromkeys(f"{r['target_ids']} ({r['column']})" for r in measured)
    caption = f"{BARS}; dashed: random's mean. Hollow: the published mean ± sd, of other data and "
    note = "The largest mean of a column is bold, the second italic; where intervals overlap, the "
    note += f"order is not established. Improved here: target {', '.join(ids)}. {sources(findings)}"
    metric = findings.metric.name
    return Section(
        "table-1",
        "Table 1: losses, variants and training sets",
        [
            _table_1(every, measured, note),
            Figure(
                "table-1",
                f"Share of the {metric} gap closed, by loss, variant and training set",
                f"{caption}another model. With one target, the intervals cover its seeds alone.",
                partial(arm_figures.table_1, every),
                "table_1",
            ),
        ],
        f"Closed most: {'; '.join(best)}." if best else "",
        "Table 1",
    )


def _scores(row: Row) -> str:
    return " × ".join(filter(None, (row["loss"], row["variant"])))


def _table_1(every: Sequence[Row], measured: Sequence[Row], note: str) -> Table:
    labels = {r["run"]: r["column"] for r in measured}
    columns = dict.fromkeys((r["run"], r["column"], r["source"] == "measured") for r in every)
    order = sorted(columns, key=lambda c: (list({**labels, c[0]: 0}).index(c[0]), not c[2]))
    cells = {(r["loss"], r["variant"], r["selection"], r["run"], r["column"],
              r["source"] == "measured"): r for r in every}  # fmt: skip
    names = ("loss", "variant", "selection")
    rows = {tuple(r[n] for n in names): {n: r[n] for n in names} for r in measured}
    lines = sorted(rows.items(), key=lambda line: line[0][2] == CONTROL)
    filled = [row | {str(c): cells.get((*arm, *c)) for c in order} for arm, row in lines]

    def column(which: tuple[str, str, bool]) -> Column:
        run, label, here = which
        inner = spread("")
        heading = "here" if here else f"published, {label}" if run in labels else label
        return Column(
            heading,
            lambda r: inner.of(r[str(which)]) if r[str(which)] else Cell(),
            group=labels.get(run, "published only"),
        )

    def variant(row: Row) -> str:
        own = row["selection"] in (SELECTED, CONTROL)
        return str(row["variant"]) if own else f"{row['variant']}, {row['selection']}"

    loss = stub("loss", lambda r: CONTROL if r["selection"] == CONTROL else r["loss"])
    title = "Gap closed by loss, variant and training set [%]: mean ± sd, 95 % interval"
    columns_ = [loss, stub("variant", variant), *map(column, order)]
    return Table(title, filled, columns_, "table_1", note)


def experiment_sections(findings: Findings, rows: Tables) -> list[Section]:
    """One per family but Table 1's, in order."""
    found = []
    for place, family in enumerate(experiments(findings), 1):
        mine = [r for r in rows.get("arms", []) if r["experiment"] == family.name]
        swept = [r for r in rows.get("rates", []) if r["experiment"] == family.name]
        shape, name = kind(family), f"experiment-{place}"
        by = " and ".join(NAMES.get(n, n) for n in varied(family) if n != "selection")
        title, file = f"Gap closed, by {by or 'selection'}", "arms"
        draw: Draw = partial(arm_figures.experiment, mine, findings.metric.name)
        if shape in ("updates", "rates"):
            title = f"{findings.metric.name} of the targets over fine-tuning steps, by {by}"
            draw = partial(arm_figures.rates, findings, family)
            file = "arm_steps"
        if shape == "updates":
            draw = partial(metric_figures.updates, findings, family)
        caption = CAPTIONS[shape].format(metric=findings.metric.name)
        table = arms_table(findings, family, mine, folded=shape == "rates")
        items: list[Item] = [
            Text(_setup(findings, family), "note"),
            Figure(name, title.replace("_", " "), caption, draw, file),
            _rates_table(findings, family, swept),
            table,
        ]
        found.append(Section(name, name_of(family), items, _reading(findings, mine, swept)))
    return found


def _setup(findings: Findings, family: Family) -> str:
    """What was varied, and where the arms differ from the headline in all."""
    compared = "; ".join(_values(name, family) for name in varied(family))
    apart = ", ".join(spoken(k, v) for k, v in fixed(findings, family).items())
    base = base_of(findings, family)
    own = any(base == group for group in arms(family).values())
    label = arm_label(varied(family), base[0]) if own else "the headline's" if base else "none"
    apart = apart or "nothing"
    return f"Compared: {compared or 'none'}. Unlike the headline: {apart}. Base arm: {label}."


def _values(name: str, family: Family) -> str:
    values = [
        v for v in dict.fromkeys(o.value(name) for o in family.outcomes) if v not in (None, "")
    ]
    if len(values) > MOST_VALUES and all(isinstance(v, int | float) for v in values):
        return f"{NAMES.get(name, name)} {min(values):g} to {max(values):g} ({len(values)} values)"
    return ", ".join(dict.fromkeys(spoken(name, v) for v in values))


def _reading(findings: Findings, arms_: Sequence[Row], swept: Sequence[Row]) -> str:
    """What the experiment showed: the best and the worst arm, and how many differ."""
    known = [r for r in swept if isfinite(r["best_mean"])]
    if known:
        best = min(known, key=lambda r: r["best_mean"])
        return (
            f"The lowest mean {findings.metric.name} is {number(best['best_mean'])}, at "
            f"{best['rate']:g} after {spoken('steps', best['best_step'])}."
        )
    finite = sorted((r for r in arms_ if isfinite(r["mean_pct"])), key=lambda r: -r["mean_pct"])
    if len(finite) < 2:
        return ""
    told = [f"{r['arm']}, {_percent(r)}" for r in (finite[0], finite[-1])]
    told += [_judged(arms_, "vs_base_", "base_pairs"), _judged(arms_, "vs_random_", "pairs")]
    return (
        "Closed most: {}; least: {}. By more than the interval, of the arms with "
        f"{FEWEST_PAIRS} pairs or more: {{}} the base arm, {{}} random."
    ).format(*told)


def _judged(rows: Sequence[Row], versus: str, pairs: str) -> str:
    known = [r for r in rows if isfinite(r.get(f"{versus}points", nan))]
    judged = [r for r in known if r[pairs] >= FEWEST_PAIRS]
    ahead = sum(r[f"{versus}low_points"] > 0 for r in judged)
    behind = sum(r[f"{versus}high_points"] < 0 for r in judged)
    return f"{count(ahead)} of {count(len(judged))} ahead of and {count(behind)} behind"


def _percent(row: Row) -> str:
    text = f"{rounded(row['mean_pct'])}{SPACE}%"
    return f"{text} ({interval(row, 'low_pct', 'high_pct')})" if "low_pct" in row else text


def arms_table(
    findings: Findings,
    family: Family,
    rows: Sequence[Row],
    file: str = "arms",
    folded: bool = False,
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
        Column("failed", lambda r: count(r["failed"]) if r["failed"] else ""),
        spread(f"after {early} steps", "early_", group=closed),
        spread(f"after {last} steps", group=closed),
        difference(f"minus {CONTROL}", "vs_random_", group=paired),
        Column("minus base", lambda r: "base" if r["base"] else base.of(r), group=paired),
        Column(findings.metric.name, "non_target_metric", group=others),
        difference("change [%]", "non_target_", "pct", others, "mean_"),
    ]
    title = f"{name_of(family)}: mean ± sd over targets and seeds; below it the 95 % interval"
    return Table(title, rows, columns, file, folded=folded)


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
    swept = str(rate(family))
    early = next((r["early_steps"] for r in rows if "early_steps" in r), None)
    last = max((r["steps"] for r in rows), default=0)
    columns = [
        *(_setting(n) for n in varied(family) if n != swept),
        Column(NAMES.get(swept, swept), "rate", lambda v: f"{v:g}"),
        Column(f"after {early} steps", "early_mean"),
        Column(f"after {last} steps", "last_mean"),
        Column("lowest", "best_mean"),
        Column("at step", "best_step", str),
    ]
    title = f"Mean {findings.metric.name} of the targets by {NAMES.get(swept, swept)}"
    return Table(title, rows, columns, "rates")


def effects(findings: Findings, rows: Tables) -> Table:
    """Mean metric and gap closed, on the targets and on all others, per run, aim and receiver."""
    every, name = rows.get("effects", []), findings.metric.name
    several = len({r["label"] for r in every}) > 1
    closed = spread("gap closed [%]", group="targets")
    told = [r | {"low_pct": None} for r in every]
    columns = [
        stub("experiment", lambda r: ", ".join([r["panel"], *([r["label"]] if several else [])])),
        stub("receiver", lambda r: metric_figures.receiver(findings, r["role"])),
        Column(name, "target_metric", group="targets"),
        closed,
        Column(name, "non_target_metric", group="others"),
        spread("gap closed [%]", "non_target_gap_", group="others"),
    ]
    title = f"What tuning did to the targets and to others: mean {name}, and gap closed ± sd"
    return Table(title, told, columns, "effects")


def variations_section(findings: Findings, rows: Tables) -> Section:
    """The runs beside each other: the model, its targets, what guidance gained; and each alone."""
    mine, name = rows.get("variations", []), findings.metric.name
    closed, others = "gap closed [%]", f"others' {name}"

    def below(key: str, form: str, detail: str, group: str, heading: str) -> Column:
        def cell(row: Row) -> Cell:
            known = row.get(detail) is not None and isfinite(row[detail])
            made = Column("", key).of(row)
            said = form.format(number(row[detail]), row["targets"]) if known else ""
            return Cell(made.text, said, made.value)

        return Column(heading, cell, group=group)

    columns = [
        stub("run", "label"),
        stub("fine-tuning", lambda r: ", ".join(filter(None, (r["experiment"], r["guided"])))),
        below("evaluation_metric", "reference {}", "evaluation_reference", f"{name} before",
              "all evaluation"),
        below("target_metric", "{1}, mean gap {0}", "target_gap", f"{name} before", "targets"),
        spread("guided", "guided_", group=closed),
        spread(CONTROL, f"{CONTROL}_", group=closed),
        difference("difference", group=closed),
        Column("before", "non_target_before", group=others),
        below("guided_non_target_metric", f"{CONTROL} {{}}", f"{CONTROL}_non_target_metric", others,
              "after guided"),
    ]  # fmt: skip
    title = "The runs beside each other, each with its own model and scores"
    same = len({tuple(t.id for t in run.targets) for run in runs(findings).values()}) == 1
    told = "the same targets" if same else "targets that are not all the same: compare differences"
    draw = partial(arm_figures.variations, mine, name)
    items: list[Figure | Table | Section] = [
        Figure("variations", f"{name} and gap closed, by run", f"{BARS}. The runs improve {told}.",
               draw, "variations"),
        Table(title, mine, columns, "variations"),
    ]  # fmt: skip
    for place, (run_name, run) in enumerate(findings.beside.items(), 1):
        items.append(_variation(f"variation-{place}", run_name, run, findings))
    return Section("variations", "Variations of this run", items if mine else [], "", "Variations")


def _variation(anchor: str, name: str, run: Findings, of: Findings) -> Section:
    """A run beside this one: its own answer and tables, and deviations that are not this run's."""
    own = run_tables(run)
    tables = headline_tables(own, run.metric.name, "beside_") + target_tables(run, own, "beside_")
    for family in experiments(run):
        mine = [r for r in own["arms"] if r["experiment"] == family.name]
        tables.append(arms_table(run, family, mine, "beside_arms"))
    said = answer(run, own)
    apart = [("", line) for line in run.deviations if line not in of.deviations]
    items: list[Item] = [Text(run.task, "note"), Bullets(apart), Text(" ".join(said[1:])), *tables]
    return Section(anchor, f"{run_label(name, run)}: {said[0]}", items, folded=True)


def overlaps(findings: Findings, rows: Sequence[Row]) -> Table:
    """The pairs of one run: least to most over the targets."""
    ends, shared = ("run", "loss", "variant"), dict[tuple[str, ...], list[int]]()
    within = [r for r in rows if r["run"] == r["other_run"]]
    for r in within:
        one, other = (tuple(r[k] for k in ends), tuple(r[f"other_{k}"] for k in ends))
        shared.setdefault((*one, *other[1:]), []).append(r["shared"])
        shared.setdefault((*other, *one[1:]), []).append(r["shared"])
    every = runs(findings)
    labels = {name: run_label(name, run) if len(every) > 1 else "" for name, run in every.items()}
    order = sorted(dict.fromkeys(k[:3] for k in shared), key=lambda k: list(labels).index(k[0]))

    def column(loss: str, variant: str) -> Column:
        def cell(row: Row) -> str:
            found = shared.get((*row["key"], loss, variant), [])
            least, most = (count(f(found)) if found else "" for f in (min, max))
            return least if least == most else f"{least} to {most}"

        return Column(variant, cell, group=loss)

    columns = [stub(name, name) for name in ("label", "loss", "variant")]
    columns[0] = stub("run", "label")
    columns += [column(*k) for k in dict.fromkeys(k[1:] for k in order)]
    filled = [{"label": labels[k[0]], "loss": k[1], "variant": k[2], "key": k} for k in order]
    head = findings.headline
    title = f"Of their {count(head.pool)} highest {head.noun}, how many two scores share: least to "
    return Table(f"{title}most over the targets", filled, columns, "overlaps", folded=True)
