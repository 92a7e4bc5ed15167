"""Printed tables of the further experiments and of the runs beside this one."""

from functools import partial

from distinf.report.columns import Cell as Printed
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
from distinf.report.formats import count, fixed, identifier, number, signed
from distinf.report.grids import (
    Entry,
    Grid,
    GridColumn,
    entry,
    grid,
    metric,
    points,
    with_interval,
)
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.families import NAMES, kind, rate, varied
from distinf.report.spectral.figures import curve_label
from distinf.report.spectral.findings import CONTROL, SELECTED, Family, Findings


def table_1_view(rows: Tables) -> Grid | None:
    """Losses and variants by training sets; beside each its published column."""
    every = rows.get("table_1", [])
    measured = [r for r in every if r["source"] == "measured"]
    here = list(dict.fromkeys((r["run"], r["column"]) for r in measured))
    printed = list(dict.fromkeys((r["run"], r["column"]) for r in every if r not in measured))
    columns = []
    for run, label in here:
        columns.append(GridColumn(label, "here", partial(_table_1_entry, every, True, run, label)))
        for column in [c for r, c in printed if r == run]:
            cell = partial(_table_1_entry, every, False, run, column)
            columns.append(GridColumn(label, f"published, {column}", cell))
    for run, column in [p for p in printed if p[0] not in [run for run, _ in here]]:
        cell = partial(_table_1_entry, every, False, run, column)
        columns.append(GridColumn("published only", column, cell))
    arms: dict[tuple[str, str, str], Row] = {}
    for r in measured:
        arms.setdefault((r["loss"], r["variant"], r["selection"]), r)
    first = sorted(arms.values(), key=lambda r: r["selection"] == CONTROL)
    return grid(
        "Gap closed by loss, variant and training set [%]: mean ± sd, below it the 95 % interval",
        first,
        [
            ("loss", lambda r: CONTROL if r["selection"] == CONTROL else r["loss"]),
            ("variant", _variant),
        ],
        columns,
    )


def _variant(row: Row) -> str:
    if row["selection"] in (SELECTED, CONTROL):
        return str(row["variant"])
    return f"{row['variant']}, {row['selection']}"


def _table_1_entry(rows: list[Row], measured: bool, run: str, column: str, arm: Row) -> Entry:
    names = ("loss", "variant", "selection")
    for r in rows:
        same = all(r[n] == arm[n] for n in names)
        if (
            same
            and ((r["source"] == "measured") == measured)
            and (r["run"], r["column"])
            == (
                run,
                column,
            )
        ):
            return with_interval()(r)
    return Entry()


def arms_view(findings: Findings, family: Family, rows: list[Row]) -> Grid | None:
    """The arms of an experiment: what is varied, what it closed, and at what price to others."""
    names = [n for n in varied(family) if n != "selection"]
    early = next((r["early_steps"] for r in rows if "early_steps" in r), None)
    last = max((r["steps"] for r in rows), default=0)
    closed, paired, others = "gap closed [%]", "paired difference [points]", "others"
    name = findings.metric.name
    return grid(
        "The arms: mean ± sd over targets and seeds; below it the 95 % interval",
        rows,
        [*((NAMES.get(n, n), _setting(n)) for n in names), ("selection", text("selection"))],
        [
            GridColumn("", "trials", entry(value("trials", count))),
            GridColumn("", "failed", entry(lambda r: count(r["failed"]) if r["failed"] else "")),
            GridColumn(closed, f"after {early} steps", with_interval("early_")),
            GridColumn(closed, f"after {last} steps", with_interval()),
            GridColumn(paired, f"minus {CONTROL}", points("vs_random_")),
            GridColumn(paired, "minus base", _minus_base),
            GridColumn(others, name, metric("non_target_metric")),
            GridColumn(others, "change [%]", _change),
        ],
    )


def _minus_base(row: Row) -> Entry:
    return Entry("base") if row["base"] else points("vs_base_")(row)


def _change(row: Row) -> Entry:
    low_high = span("non_target_low_pct", "non_target_high_pct", signed)(row)
    return Entry(blank("non_target_mean_pct", signed)(row), low_high)


def _setting(name: str) -> Printed:
    def cell(row: Row) -> str:
        found = row.get(name)
        if found in (None, "") or (row["selection"] == CONTROL and name in ("pool", "order")):
            return ""
        if name == "adapter":
            return str(found or "none")
        return f"{found:g}" if isinstance(found, float) else str(found)

    return cell


def rates_view(findings: Findings, family: Family, rows: list[Row]) -> View | None:
    """Per learning rate: the metric early and at last, and where it was lowest."""
    if kind(family) != "rates":
        return None
    swept = str(rate(family))
    early = next((r["early_steps"] for r in rows if "early_steps" in r), None)
    last = max((r["steps"] for r in rows), default=0)
    others = [n for n in varied(family) if n != swept]
    return view(
        f"Mean {findings.metric.name} of the targets by {NAMES[swept]}",
        rows,
        [
            *(Column(NAMES.get(n, n), _setting(n), False) for n in others),
            Column(NAMES[swept], lambda r: f"{r['rate']:g}"),
            Column(f"after {early} steps", blank("early_mean", number)),
            Column(f"after {last} steps", blank("last_mean", number)),
            Column("lowest", blank("best_mean", number)),
            Column("at step", lambda r: "" if r["best_step"] is None else str(r["best_step"])),
        ],
    )


def effects_view(findings: Findings, rows: Tables) -> Grid | None:
    """Mean metric and gap closed, on the targets and on all others, per run, aim and receiver."""
    every = rows.get("effects", [])
    several = len({r["label"] for r in every}) > 1
    name = findings.metric.name
    closed = "gap closed [%]"

    def experiment(row: Row) -> str:
        return ", ".join(filter(None, (row["panel"], row["label"] if several else "")))

    return grid(
        f"What tuning did to the targets and to others: mean {name}, and gap closed ± sd",
        every,
        [("experiment", experiment), ("receiver", lambda r: curve_label(findings, r["role"]))],
        [
            GridColumn("targets", name, metric("target_metric")),
            GridColumn("targets", closed, entry(_if("mean_pct", plus_minus()))),
            GridColumn("others", name, metric("non_target_metric")),
            GridColumn(
                "others",
                closed,
                entry(_if("non_target_gap_mean_pct", plus_minus("non_target_gap_"))),
            ),
        ],
        headed=True,
    )


def _if(key: str, cell: Printed) -> Printed:
    return lambda row: "" if not blank(key, fixed)(row) else cell(row)


def variations_view(findings: Findings, rows: Tables) -> Grid | None:
    """The runs beside each other: the model, its targets, and what guidance gained."""
    name = findings.metric.name
    closed, others = "gap closed [%]", f"others' {name}"
    return grid(
        "The runs beside each other, each with its own model and scores",
        rows.get("variations", []),
        [("run", text("label")), ("fine-tuning", _tuning)],
        [
            GridColumn(f"{name} before", "all evaluation", _all_evaluation),
            GridColumn(f"{name} before", "targets", _its_targets),
            GridColumn(closed, "guided", with_interval("guided_")),
            GridColumn(closed, CONTROL, with_interval(f"{CONTROL}_")),
            GridColumn(closed, "difference", points("vs_")),
            GridColumn(others, "before", metric("non_target_before")),
            GridColumn(others, "after guided", _others_after),
        ],
        headed=True,
    )


def _tuning(row: Row) -> str:
    return ", ".join(filter(None, (row["experiment"], row["guided"])))


def _all_evaluation(row: Row) -> Entry:
    reference = blank("evaluation_reference", number)(row)
    detail = f"reference {reference}" if reference else ""
    return Entry(blank("evaluation_metric", number)(row), detail)


def _others_after(row: Row) -> Entry:
    random = blank(f"{CONTROL}_non_target_metric", number)(row)
    detail = f"{CONTROL} {random}" if random else ""
    return Entry(blank("guided_non_target_metric", number)(row), detail)


def _its_targets(row: Row) -> Entry:
    gap = blank("target_gap", number)(row)
    detail = f"{count(row['targets'])}, mean gap {gap}" if gap else ""
    return Entry(blank("target_metric", number)(row), detail)


def attributions_view(target: int, rows: Tables) -> View | None:
    """The pictured samples of a target: score, concentration, and the strongest places."""
    mine = [r for r in rows.get("attributions", []) if r["target"] == target]
    places = dict.fromkeys(k for r in mine for k in r if k.startswith("strongest_"))
    return view(
        f"Target {identifier(target)}: how the pictured samples' scores are spread over elements",
        mine,
        [
            Column("rank", value("rank", identifier)),
            Column("sample", value("id", identifier), False),
            Column("score", value("score", number)),
            Column("sum of parts", value("sum", number)),
            Column("elements", value("elements", count)),
            Column("above 0 [%]", value("above_0_pct", fixed)),
            Column("held by the largest tenth [%]", value("top_tenth_pct", fixed)),
            *(Column(f"strongest {p.removeprefix('strongest_')}", text(p)) for p in places),
        ],
    )
