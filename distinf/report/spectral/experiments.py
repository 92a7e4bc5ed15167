"""The parts of the page that a run has any number of: experiments, and runs beside it."""

from collections.abc import Sequence
from functools import partial
from math import isfinite, nan
from typing import Any

from distinf.numerics.means import mean_sd
from distinf.report.formats import count, number
from distinf.report.rows import Row, gathered, grouped
from distinf.report.schema import (
    Bullets,
    Column,
    Draw,
    Entry,
    Item,
    Section,
    Table,
    Text,
    spread,
    stub,
)
from distinf.report.spectral import answer, arm_figures, families
from distinf.report.spectral.answer import FEWEST_PAIRS, percent, words_of
from distinf.report.spectral.families import NAMES, spoken, varied
from distinf.report.spectral.findings import BASELINES, CONTROL, SELECTED, Family, Findings
from distinf.report.spectral.run_tables import versus
from distinf.report.spectral.tables import Tables, own_tables

ARM = ("loss", "variant", "selection")
BY_CLASS_PCT = 90  # of a ranking, from which it is said to sort by class


def table_1_section(findings: Findings, rows: Tables) -> Section:
    """Losses and variants by training sets; beside each its published column.

    Where no family crosses them, what the headline tried stands beside what is published of it.
    """
    words, every = words_of(findings), rows.get("table_1", [])
    items: list[Item] = [words.figure("table_1", partial(arm_figures.table_1, every), "table-1")]
    mine = [r for r in every if r["source"] == "measured"]
    ids = ", ".join(dict.fromkeys(f"{r['column']}: {r['target_ids']}" for r in mine))
    best = [
        f"{' × '.join(filter(None, (r['loss'], r['variant'])))} ({r['column']}, {percent(r)})"
        for r in every
        if r.get("place") == 1
    ]
    note, file = words.say("experiments", "table_1_note", targets=ids) if every else "", "table_1"
    if findings.published and not every:
        here = {"run": "", "column": families.run_label("", findings), "source": "measured"}
        every, file = [r | here for r in rows["comparison"]] + rows["published"], "comparison"
    if findings.published:
        named = "; ".join(dict.fromkeys(p.source for p in findings.published))
        note = f"{note} {words.say('published', sources=named)}".strip()
    items.insert(0, words.table("table_1", *_by_run(every), file, note))
    said = words.say("experiments", "table_1", best="; ".join(best)) if best else ""
    return Section("table-1", "Losses, variants and training sets", items, said, "Variants")


def _by_run(every: Sequence[Row]) -> tuple[list[Row], list[Column]]:
    """A row per loss, variant and selection; a column per training set, here and as published."""
    lines: dict[Any, Row] = {}
    labels = {r["run"]: r["column"] for r in every if r["source"] == "measured"}
    places = []
    for r in every:
        arm, printed = tuple(r[n] for n in ARM), r["source"] != "measured"
        name = ", ".join(filter(None, ("published", r["column"]))) if printed else "here"
        place = (labels.get(r["run"], "published only"), printed, name)
        if not printed:
            lines.setdefault(arm, dict(zip(ARM, arm, strict=True)))
        if arm in lines:
            lines[arm] |= {place: r}  # type: ignore[dict-item]
            places.append(place)
    order = [*labels.values(), "published only"]
    places = sorted(dict.fromkeys(places), key=lambda p: (order.index(p[0]), p[1]))

    def cell(place: tuple[str, bool, str], row: Row) -> Entry:
        return spread("").of(row[place]) if place in row else Entry()  # type: ignore[index]

    def variant(row: Row) -> str:
        usual = row["selection"] in (SELECTED, *BASELINES)
        return str(row["variant"]) if usual else f"{row['variant']}, {row['selection']}"

    loss = stub("loss", lambda r: r["selection"] if r["selection"] in BASELINES else r["loss"])
    rows = sorted(lines.values(), key=lambda r: r["selection"] in BASELINES)
    columns = [Column(place[2], partial(cell, place), group=place[0]) for place in places]
    return rows, [loss, stub("variant", variant), *columns]


def experiment_sections(findings: Findings, rows: Tables) -> list[Section]:
    """One per family but the one that crosses losses with variants, in order."""
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
            _arms_table(findings, family, swept, "rates"),
            _arms_table(findings, family, mine, folded=shape == "rates"),
        ]
        found.append(Section(name, _title(family), items, _reading(findings, mine, swept)))
    return found


def _title(family: Family) -> str:
    words = family.name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def _setup(findings: Findings, family: Family, rows: Sequence[Row]) -> str:
    """Where the arms differ from the headline in all, the base arm, and how many differ from it."""
    words, base = words_of(findings), families.base_of(findings, family)
    apart = ", ".join(spoken(k, v) for k, v in families.fixed(findings, family).items())
    own = base in families.arms(family).values()
    label = families.arm_label(varied(family), base[0]) if own else "the headline's"
    numbers = {"apart": apart or "nothing", "base": label if base else "none"}
    for control, pairs in (("base", "base_pairs"), ("random", "pairs")):
        versus = f"vs_{control}_"
        known = [r for r in rows if isfinite(r.get(f"{versus}points", nan))]
        judged = [r for r in known if r[pairs] >= FEWEST_PAIRS]
        told = {"ahead": count(sum(r[f"{versus}low_points"] > 0 for r in judged))}
        told["behind"] = count(sum(r[f"{versus}high_points"] < 0 for r in judged))
        told["judged"] = count(len(judged))
        numbers[f"to_{control}"] = words.say("experiments", "judged", **told)
    return words.say("experiments", "setup", **numbers)


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


def _arms_table(
    findings: Findings,
    family: Family,
    rows: Sequence[Row],
    words: str = "arms",
    prefix: str = "",
    folded: bool = False,
) -> Table:
    """An experiment's arms, or a sweep's: what is varied, then the columns in words.yaml."""
    swept = families.rate(family) if words == "rates" else "selection"
    settings = [_setting(n) for n in varied(family) if n != swept]
    early = next((r["early_steps"] for r in rows if "early_steps" in r), None)
    told: Any = {"name": _title(family), "rate": NAMES.get(str(swept), swept), "early": early}
    told["last"] = max((r["steps"] for r in rows), default=0)
    file = f"{prefix}{words}"
    return words_of(findings).table(words, rows, settings, file, folded=folded, **told)


def _setting(name: str) -> Column:
    def cell(row: Row) -> str:
        found = row.get(name)
        if found in (None, "") or (row["selection"] == CONTROL and name in ("pool", "order")):
            return ""
        if name == "adapter":
            return str(found or "none")
        return f"{found:g}" if isinstance(found, float) else str(found)

    return stub(NAMES.get(name, name), cell)


def labels(rows: Sequence[Row]) -> list[Column]:
    """The runs' names, where there are several."""
    return [stub("run", "label")] if len({r["label"] for r in rows}) > 1 else []


def variations_section(findings: Findings, rows: Tables) -> Section:
    """The runs beside each other: the model, its targets, what guidance gained; and each alone."""
    mine, words = rows.get("variations", []), words_of(findings)
    same = len({tuple(t.id for t in run.targets) for run in families.runs(findings).values()}) == 1
    told = "the same targets" if same else "targets that are not all the same: compare differences"
    draw = partial(arm_figures.variations, mine, findings.metric.name)
    items: list[Item] = [
        words.figure("variations", draw, told=told),
        words.table("variations", mine, control=versus(mine)),
        *(_variation(k, *one, findings) for k, one in enumerate(findings.variations.items(), 1)),
    ]
    return Section("variations", "Variations of this run", items if mine else [], "", "Variations")


def _variation(place: int, name: str, run: Findings, of: Findings) -> Section:
    """A run beside this one: its own answer and tables, and deviations that are not this run's."""
    own = own_tables(run)
    tables = answer.main_tables(run, own, "beside_")
    tables += answer.target_tables(run, own, "beside_")
    for family in families.experiments(run):
        mine = [r for r in own["arms"] if r["experiment"] == family.name]
        tables.append(_arms_table(run, family, mine, prefix="beside_"))
    said = answer.answer(run, own)
    apart = Bullets([("", line) for line in run.deviations if line not in of.deviations])
    items: list[Item] = [Text(run.task, "note"), apart, Text(" ".join(said[1:])), *tables]
    title = f"{families.run_label(name, run)}: {said[0]}"
    return Section(f"variation-{place}", title, items, folded=True)


def free_rankings(findings: Findings, rows: Sequence[Row]) -> Table:
    """Rankings that cost nothing beside the headline's: means over the targets, nearest first."""
    told = []
    for name, mine in gathered(rows, lambda r: r["ranking"].replace("_", " ")).items():
        row: Row = {"ranking": name, "by_chance": mine[0]["by_chance"]}
        row["end"] = " or ".join(dict.fromkeys(r["end"] for r in mine))
        for key in ("spearman", "shared"):
            some = [r[key] for r in mine]
            row |= {key: mean_sd(some)[0], f"least_{key}": min(some), f"most_{key}": max(some)}
        told.append(row)
    told.sort(key=lambda r: -abs(r["spearman"]) if isfinite(r["spearman"]) else 1.0)
    head = findings.headline
    of = " ".join(filter(None, (head.loss, head.variant)))
    return words_of(findings).table("free_rankings", told, of=of, pool=count(head.pool or 50))


def classes(findings: Findings, rows: Sequence[Row]) -> list[Item]:
    """Which classes the pools are of; before it, of which targets the ranking is its classes."""
    words = words_of(findings)
    sorted_ = dict.fromkeys(str(r["target"]) for r in rows if r["sorted_pct"] >= BY_CLASS_PCT)
    said = words.say("scores", "by_class", targets=", ".join(sorted_), percent=BY_CLASS_PCT)
    label = " and ".join(dict.fromkeys(r["label"] for r in rows))
    table = words.table("classes", rows, label=label)
    return [Text(said, "note"), table] if sorted_ else [table]


def overlaps(findings: Findings, rows: Sequence[Row]) -> Table:
    """Every two scores of a run: least and most rows shared over the targets."""
    every, told = families.runs(findings), list[Row]()
    names = ("run", "loss", "variant", "other_loss", "other_variant")
    own = [r for r in rows if r["run"] == r["other_run"]]
    for (run, *of), mine in grouped(own, *names).items():
        shared = [r["shared"] for r in mine]
        row = {"label": families.run_label(run, every[run]), "least": min(shared)}
        row |= {"one": " ".join(of[:2]), "other": " ".join(of[2:]), "most": max(shared)}
        told.append(row)
    pool = count(findings.headline.pool)
    return words_of(findings).table("overlaps", told, labels(told), folded=True, pool=pool)
