"""The page: an answer of a few fixed sentences with numbers in them, tables and figures."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from distinf.gram.configurations import spoken
from distinf.gram.keeping import keep
from distinf.gram.ranking import cell_ranking
from distinf.gram.session import Session
from distinf.numerics.bootstrap import RESAMPLES
from distinf.numerics.metrics import auc_by_chance, ndr_by_chance
from distinf.report import publishing
from distinf.report.formats import SPACE, count, missing, percent
from distinf.report.gram import figures, views
from distinf.report.gram.against import COMBINED, verdict
from distinf.report.gram.findings import EPOCHS, Findings
from distinf.report.gram.findings import findings as gathered
from distinf.report.gram.tables import ANY, Tables, tables
from distinf.report.gram.trials import ALL_ROWS, mean_sd
from distinf.report.gram.warnings import chance_warnings
from distinf.report.provenance import costs, origin, remarks
from distinf.report.rows import Row, plain
from distinf.report.schema import Bullets, Card, Item, Page, Section, Text
from distinf.report.words import Words

# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6
FEWEST_POINTS = 3  # for a correlation
ELSEWHERE = {1: "by the other half of the wrong labels", 2: "by the other runs"}
AHEAD = {"gap": "points", "least": "high_points", "most": "low_points"}  # by what the other is
MOST_CELLS = 12  # printed unfolded
Figures = Callable[..., list[Any]]  # their names -> them


def write(session: Session) -> None:
    """Every row ranked, the tables, and the page."""
    cells = session.outline.cells.values()
    rankings = {views.ranking_name(c.name): cell_ranking(session, c) for c in cells}
    found = gathered(session)
    rows = tables(found)
    keep(session)
    publishing.publish(session, plain(found), rows, page(found, rows), rankings)


def page(findings: Findings, rows: Tables) -> Page:
    """All numbers come from the tables, so that the answer cannot disagree with them."""
    verdict, sentences, cards = answer(findings, rows)
    notes = {"warnings": findings.warnings, "deviations": findings.deviations}
    return Page(
        findings.title,
        findings.task,
        sentences,
        findings.question,
        verdict,
        cards,
        further=[(k, k.capitalize(), count(len(lines))) for k, lines in notes.items() if lines],
        sections=list(sections(findings, rows)),
    )


# -- the answer ----------------------------------------------------------------------------


def answer(findings: Findings, rows: Tables) -> tuple[str, list[str], list[Card]]:
    """(better, worse, none or unknown; sentences; cards). That a model learned nothing is told
    before any rate."""
    words, (noise, after) = words_of(findings, rows), _headline(findings, rows)
    names = ["lost", "detected", "against", "beside", "trained"] if noise or after else ["listed"]
    told = [words.clauses(words.of("answer", name)) for name in [*names, "suggested"]]
    sentences = [s for s in (*chance_warnings(findings.cells)[:1], *told) if s]
    cards = [
        Card(words.clauses([label]), words.clauses([value]), unit, words.clauses(detail), role)
        for label, value, unit, role, *detail in words.of("cards")
        if words.clauses([value])
    ]
    beaten = verdict(rows.get("against_baselines", []), findings.headline)
    return (
        _verdict(findings, noise, after, beaten),
        sentences or words.of("answer", "no scores"),
        cards,
    )


def _headline(findings: Findings, rows: Tables) -> list[Row | None]:
    """The headline's rows among what was detected and what was trained again."""
    of = [{r["configuration"]: r for r in rows.get(name, [])} for name in ("detection", "accuracy")]
    return [found.get(findings.headline) for found in of]


def chance(findings: Findings) -> tuple[float, float]:
    """In percent: where 95 % of random rankings put the mean NDR over these cells."""
    known = [(c["rows"], c["flips"]) for c in findings.cells if c["flips"] and c["rows"] > 1]
    low, high = ndr_by_chance(known, findings.share) if known else (math.nan, math.nan)
    return 100 * low, 100 * high


def _verdict(findings: Findings, noise: Row | None, after: Row | None, against: str) -> str:
    """Of the NDR against the larger chance: of any rows, and of rows of the same labels, and, where
    there are any, against the best ranking without influence; without one of the accuracy against
    random, in enough pairs."""
    found, (low, high) = math.nan, (math.nan, math.nan)
    if noise is not None:
        (low, high), within = chance(findings), _within(noise)
        apart = 0.0 if within is None else within - noise["chance_pct"]
        found, low, high = noise["ndr_mean_pct"], low + min(apart, 0.0), high + max(apart, 0.0)
    elif after is not None and after.get("vs_random_pairs", 0) >= FEWEST_PAIRS:
        found, low, high = 0.0, -after["vs_random_high_points"], -after["vs_random_low_points"]
    if not math.isfinite(low) or all(c["learned_nothing"] for c in findings.cells):
        return "unknown"
    if found > high:
        return {"lost": "worse", "even": "none"}.get(against, "better")
    return "worse" if found < low else "none"


def _within(noise: Row) -> Any:
    """The NDR of rows with the labels of those removed, where it differs from that of any rows."""
    found = noise["chance_within_labels_pct"]
    return None if missing(found) or abs(found - noise["chance_pct"]) < 1 else found


def words_of(findings: Findings, rows: Tables) -> Words:
    """The page's words, with the numbers that they may hold; of the headline's row among what was
    detected as noise_…, of rows of the accuracies as after_…, random_…, full_… and all_…."""
    noise, after = _headline(findings, rows)
    trained = {r["configuration"]: r for r in rows.get("accuracy", [])} if after else {}
    named = {name: trained.get(name) for name in ("random", "full")}
    named |= {"noise": noise, "after": after, "all": trained.get(ALL_ROWS)}
    told = {f"{name}_{k}": v for name, row in named.items() for k, v in (row or {}).items()}
    labels = [c for c in findings.cells if c["suggested_wrong"] is not None]
    points, (low, high) = rows.get("proxy_points", []), chance(findings)
    published = (*findings.methods_published, *findings.layers_published)
    told |= {
        "share": f"{100 * findings.share:g}{SPACE}%",
        "headline": spoken(findings.headline),
        "epoch": EPOCHS[findings.selected_epoch],
        "low": low,
        "high": high,
        "configurations": len(rows.get("detection", [])),
        "dots": f"{count(len(figures.thinned(points)))} of {count(len(points))}",
        "resamples": RESAMPLES,
        "sources": "; ".join(sorted({r["source"] for r in published})) or None,
        "pictured": f" of {findings.placed[0]['cell']}" if len(findings.placed) > 1 else "",
        "ranked": max((row["rank"] for row in rows.get("ranking", [])), default=None),
        "suggested": sum(c["suggested_wrong"] for c in labels) if labels else None,
        "labels": sum(c["rows"] for c in labels),
        "few": "" if told.get("after_vs_random_pairs", FEWEST_PAIRS) < FEWEST_PAIRS else None,
    }
    return Words("distinf.report.gram", told | ({} if noise is None else _noise(findings, rows)))


def _noise(findings: Findings, rows: Tables) -> Row:
    """Beside what the headline found: what others found, and what chance would."""
    (noise, _), best = _headline(findings, rows), rows["detection"][0]
    free, known = rows.get("free_rankings", []), [c for c in findings.cells if c["flips"]]
    area = mean_sd("", [auc_by_chance(c["rows"], c["flips"]) for c in known], "")["mean"]
    alone = [row for row in free if row["ranking"] != COMBINED]
    told = ", ".join(f"{row['ranking']} {percent(row['ndr_mean_pct'])}" for row in alone)
    equal = alone and noise and alone[0]["ndr_mean_pct"] >= noise["ndr_mean_pct"]
    against = rows.get("against_baselines", [])
    beaten = verdict(against, findings.headline)
    best_free = against[0] if beaten else {}
    mixed = [row for row in free if row["ranking"] == COMBINED]
    by_class = noise["only_by_class"] if noise else None
    return {
        **{f"against_{k}": v for k, v in best_free.items()},
        **{f"against_{k}": -best_free[of] for k, of in AHEAD.items() if best_free},
        "elsewhere": ELSEWHERE[min(len(findings.cells), 2)],
        **{name: "" if beaten == name else None for name in ("won", "lost", "even")},
        "only_by_class": "" if by_class else None,
        "few_cells": "" if len(findings.cells) == 1 else None,
        "mixed": mixed[0]["ndr_mean_pct"] if mixed else None,
        "flips": sum(c["flips"] for c in known),
        "within": _within(noise) if noise else None,
        "free": told or "no other ranking",
        "equal": "" if equal else None,
        "best": spoken(best["configuration"]),
        "most": best["ndr_mean_pct"],
        "random_area": area,
    }


# -- the sections --------------------------------------------------------------------------


def sections(findings: Findings, rows: Tables) -> Iterator[Section]:
    """In page order; the renderer leaves out what holds nothing."""
    words = words_of(findings, rows)
    notes = words.of("notes")

    def of(*names: str) -> list[Any]:
        draw = (partial(getattr(figures, name), findings, rows) for name in names)
        return [words.figure(*each) for each in zip(names, draw, strict=True)]

    def table(name: str, **more: Any) -> Any:
        found = rows.get(more.get("file", name), [])
        return words.table(name, views.known(more.pop("rows", found)), **more)

    note = notes["free"] if rows.get("free_rankings") else ""
    found = [*of("curves", "grid"), table("detection", rows=views.detection(rows), note=note)]
    found += [table("against_baselines", columns=views.PAIR, note=notes["against"])]
    found += [table("every detection", file="detection", folded=True)]
    found += [*of("deciles", "loss_and_influence"), table("loss_and_influence")]
    yield Section("detection", "Wrong labels found", found, short="Detection")
    ranked = list(views.rankings(words, rows))
    yield Section("rows", "Ranked rows", ranked, words.say("notes", "rows"))
    asked: list[Item] = list(views.by_query(words, rows))
    if rows.get("tokens"):
        told = words.table("tokens", views.telling(rows["tokens"]))
        asked += [told, Text(notes["tokens"], "note")]
    yield Section("queries", "By query", asked, words.say("notes", "by_query"))
    again = _retrained(words, findings, rows, of, table) if findings.retrained else []
    what = f"{'Accuracy' if rows.get('accuracy') else 'Query loss'} after filtering"
    yield Section("retrained", what, again)
    pooled = [row for row in rows.get("theorem", []) if row["theta"] == ANY]
    layers = [*of("modules"), views.layers(words, rows), table("cancellation")]
    layers += [table("theorem", columns=[views.LEAST], rows=pooled, note=notes["theorem"])]
    layers += [table("quartiles", folded=True)]
    yield Section("layers", "Layers", layers)
    enough = [row for row in rows.get("proxies", []) if row["points"] >= FEWEST_POINTS]
    proxies = [*of("proxies"), table("proxies", rows=enough)] if enough else []
    yield Section("proxies", "Proxies for accuracy", proxies, short="Proxies")
    agreeing = [*of("correlations"), table("sensitivity")]
    yield Section("agreement", "Agreement of scores", agreeing, short="Agreement")
    model = [*of("training"), table("cells", folded=len(findings.cells) > MOST_CELLS)]
    yield Section("model", "Data and model", [*model, table("conditioning")])
    took = [costs(rows.get("costs", [])), views.estimator_times(words, rows)]
    yield Section("cost", "Cost", took)
    yield Section("warnings", "Warnings", [Bullets([("", line) for line in findings.warnings])])
    yield remarks(findings.deviations, findings.quarantined)
    yield Section("reading", "How to read this", [Bullets(_reading(words, rows))])
    yield origin(findings.provenance)


def _retrained(
    words: Words, findings: Findings, rows: Tables, of: Figures, table: Callable[..., Any]
) -> list[Item]:
    """What training without the lowest rows gave, beside random rows and what others published."""
    notes, tested = words.of("notes"), bool(rows.get("accuracy"))
    one = tested and len(findings.cells) == 1
    return [
        *([] if tested else [table("query_loss", columns=[views.NAMED])]),
        *of("accuracy", "trends"),
        Text(notes["one trial"] if one else "", "note"),
        *views.methods(words, findings, rows),
        Text(words.clauses([notes["published"]]), "note"),
        views.gains(words, rows),
        table("accuracy", columns=[views.NAMED], folded=True),
    ]


def _reading(words: Words, rows: Tables) -> list[tuple[str, str]]:
    """What a reader needs for the tables that there are."""
    return [
        (name, words.clauses([text]))
        for needed, lines in words.of("reading").items()
        if not needed or rows.get(needed)
        for name, text in lines
    ]
