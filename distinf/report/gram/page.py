"""The page: an answer of a few fixed sentences with numbers in them, tables and figures."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from distinf.gram.ranking import cell_ranking
from distinf.gram.session import Session
from distinf.numerics.bootstrap import RESAMPLES
from distinf.numerics.metrics import auc_by_chance, ndr_by_chance
from distinf.report import publishing
from distinf.report import render as renderer
from distinf.report.formats import SPACE, count, fixed, missing, percent, rounded, signed
from distinf.report.gram import figures, map_figures, views
from distinf.report.gram.configurations import spoken
from distinf.report.gram.findings import EPOCHS, Findings
from distinf.report.gram.findings import findings as gathered
from distinf.report.gram.tables import ANY, Tables, tables
from distinf.report.gram.trials import ALL_ROWS, mean_sd
from distinf.report.provenance import costs, origin, remarks
from distinf.report.rows import Row, plain
from distinf.report.schema import Bullets, Card, Column, Page, Section, Text
from distinf.report.words import Words

# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6
FEWEST_POINTS = 3  # for a correlation
MOST_CELLS = 12  # printed unfolded
MAPS = ("grid", "modules", "correlations")  # of the figures
BESIDE = {"random": ("at random", "random"), "full": ("known noise removed", "ink"),
          ALL_ROWS: ("on all rows", "ink")}  # fmt: skip


def write(session: Session) -> None:
    """Every row ranked, the tables, and the page."""
    cells = session.outline.cells.values()
    rankings = {views.ranking_name(c.name): cell_ranking(session, c) for c in cells}
    found = gathered(session)
    rows = tables(found)
    text = render(found, rows, [*rankings, *rows])
    publishing.publish(session, plain(found), rows, text, rankings)


def render(findings: Findings, rows: Tables, files: Collection[str] = ()) -> str:
    """The report as one HTML document; `files`: the tables that lie beside it."""
    return renderer.html(page(findings, rows), files)


def page(findings: Findings, rows: Tables) -> Page:
    """All numbers come from the tables, so that the answer cannot disagree with them."""
    verdict, sentences, cards = answer(findings, rows)
    notes = {
        "warnings": ("Warnings", findings.warnings),
        "remarks": ("Deviations", findings.deviations),
    }
    return Page(
        findings.title,
        findings.task,
        sentences,
        findings.question,
        verdict,
        cards,
        further=[(k, name, count(len(lines))) for k, (name, lines) in notes.items() if lines],
        sections=list(sections(findings, rows)),
    )


def chance(findings: Findings) -> tuple[float, float]:
    """In percent: where 95 % of random rankings put the mean NDR over these cells."""
    known = [(c["rows"], c["flips"]) for c in findings.cells if c["flips"] and c["rows"] > 1]
    low, high = ndr_by_chance(known, findings.share) if known else (math.nan, math.nan)
    return 100 * low, 100 * high


def words_of(findings: Findings, rows: Tables) -> Words:
    """The page's words, with the numbers that any of them may hold."""
    (low, high), points = chance(findings), rows.get("proxy_points", [])
    told = {
        "share": f"{100 * findings.share:g}{SPACE}%",
        "headline": spoken(findings.headline),
        "epoch": EPOCHS[findings.selected_epoch],
        "low": rounded(low),
        "high": rounded(high),
        "cells": count(len(findings.cells)),
        "configurations": count(len(rows.get("detection", []))),
        "dots": f"{count(len(figures.thinned(points)))} of {count(len(points))}",
        "resamples": count(RESAMPLES),
    }
    return Words("distinf.report.gram", told)


# -- the answer ----------------------------------------------------------------------------


def answer(findings: Findings, rows: Tables) -> tuple[str, list[str], list[Card]]:
    """(better, worse, none or unknown; sentences; cards). That a model learned nothing is told
    before any rate."""
    words = words_of(findings, rows)
    say = partial(words.say, "answer")
    noise = {r["configuration"]: r for r in rows.get("detection", [])}.get(findings.headline)
    trained = {r["configuration"]: r for r in rows.get("accuracy", [])}
    after = trained.get(findings.headline)
    unlearned = [c for c in findings.cells if c["learned_nothing"]]
    sentences = [*_unlearned(unlearned, say), *_detected(findings, rows, noise, say)]
    sentences += _retrained(trained, after, say)
    sentences += [] if noise or after else _listed(findings, rows, say)
    told = [c for c in findings.cells if c["suggested_wrong"] is not None]
    if told:
        of = {key: count(sum(c[key] for c in told)) for key in ("suggested_wrong", "rows")}
        sentences.append(say("suggested", wrong=of["suggested_wrong"], rows=of["rows"]))
    verdict = _found_more(findings, noise) if noise else _gained(after) if after else "unknown"
    verdict = "unknown" if len(unlearned) == len(findings.cells) > 0 else verdict
    cards = [*_rates(findings, noise, words.numbers), *_accuracies(trained, after)]
    return verdict, sentences, cards


def _found_more(findings: Findings, noise: Row) -> str:
    """Against the larger chance: of any rows, and of rows of the same labels."""
    low, high = chance(findings)
    apart = _within(noise) - noise["chance_pct"] if _within(noise) is not None else 0.0
    if noise["ndr_mean_pct"] > high + max(apart, 0.0):
        return "better"
    if noise["ndr_mean_pct"] < low + min(apart, 0.0):
        return "worse"
    return "none" if math.isfinite(low) else "unknown"


def _within(noise: Row) -> Any:
    """The NDR of rows with the labels of those removed, where it differs from that of any rows."""
    found = noise["chance_within_labels_pct"]
    return None if missing(found) or abs(found - noise["chance_pct"]) < 1 else found


def _gained(after: Row) -> str:
    if after.get("vs_random_pairs", 0) < FEWEST_PAIRS:
        return "unknown"
    if after["vs_random_low_points"] > 0:
        return "better"
    return "worse" if after["vs_random_high_points"] < 0 else "none"


def _unlearned(cells: list[Row], say: Any) -> Iterator[str]:
    for c in cells[:1]:
        right, alone = count(c["correct_queries"]), count(c["majority_queries"])
        of = {"many": count(len(cells)), "cell": f"{c['name']}:", "queries": count(c["queries"])}
        yield say("unlearned", **of, right=right, by_class=alone)


def _detected(findings: Findings, rows: Tables, noise: Row | None, say: Any) -> Iterator[str]:
    if noise is None:
        return
    found, within = noise["ndr_mean_pct"], _within(noise)
    same = "" if within is None else say("same", within=percent(within))
    flips = count(sum(c["flips"] or 0 for c in findings.cells))
    yield say("detected", found=percent(found), flips=flips, same=same)
    free, best = rows.get("free_rankings", []), rows["detection"][0]
    told = ", ".join(f"{row['ranking']} {percent(row['ndr_mean_pct'])}" for row in free)
    equal = say("equal") if free and free[0]["ndr_mean_pct"] >= found else ""
    most = {"best": spoken(best["configuration"]), "most": percent(best["ndr_mean_pct"])}
    yield say("beside", free=told or "no other ranking", equal=equal, **most)


def _retrained(trained: Mapping[str, Row], ours: Row | None, say: Any) -> Iterator[str]:
    if ours is None:
        return
    beside = {label: trained[name] for name, (label, _) in BESIDE.items() if name in trained}
    others = ", ".join(f"{n} {fixed(r['mean_pct'])}{SPACE}%" for n, r in beside.items())
    told, against, pairs = {"mean": fixed(ours["mean_pct"])}, "", ours.get("vs_random_pairs")
    if pairs:
        low, high = (ours[f"vs_random_{end}_points"] for end in ("low", "high"))
        span = "" if missing(low) else say("span", low=signed(low), high=signed(high))
        few = say("few") if pairs < FEWEST_PAIRS else ""
        points, wins = signed(ours["vs_random_points"]), count(ours["vs_random_wins"])
        against = say("against", points=points, span=span, wins=wins, pairs=count(pairs), few=few)
    yield say("trained", **told, others=others or "nothing beside it", against=against)


def _listed(findings: Findings, rows: Tables, say: Any) -> Iterator[str]:
    """What was ranked by what, where nothing else says so."""
    if not rows.get("scored"):
        yield say("no scores")
        return
    if ranked := rows.get("ranking"):
        yield say("listed", rows=count(max(row["rank"] for row in ranked)))
    right = [c["correct_queries"] for c in findings.cells if c["correct_queries"] is not None]
    told = {key: count(sum(c[key] for c in findings.cells)) for key in ("rows", "queries")}
    yield say("counted", **told, right=say("right", right=count(sum(right))) if right else "")


def _rates(findings: Findings, noise: Row | None, whole: Mapping[str, str]) -> Iterator[Card]:
    if noise is None:
        return
    within = "" if _within(noise) is None else f"; of the same labels: {percent(_within(noise))}"
    detail = "random: {share}, in 95\u202f% of cases {low} to {high}".format(**whole) + within
    label = f"wrong labels in the lowest {whole['share']}"
    yield Card(label, rounded(noise["ndr_mean_pct"]), "%", detail, "helpful")
    areas = [auc_by_chance(c["rows"], c["flips"]) for c in findings.cells if c["flips"]]
    detail = f"random: {fixed(mean_sd('', areas, '')['mean'], 3)}, perfect: 1"
    yield Card("noise curve, area", fixed(noise["auc_mean"], 3), "", detail, "accent")


def _accuracies(trained: Mapping[str, Row], ours: Row | None) -> Iterator[Card]:
    if ours is None:
        return
    filtered = {ours["configuration"]: ("test accuracy, filtered", "helpful")}
    for name, (label, role) in {**filtered, **BESIDE}.items():
        if row := trained.get(name):
            span = f"{fixed(row['low_pct'])} to {fixed(row['high_pct'])} (95{SPACE}% interval)"
            detail = f"trials: {count(row['trials'])}" if missing(row["low_pct"]) else span
            yield Card(label, fixed(row["mean_pct"]), "%", detail, role)


# -- the sections --------------------------------------------------------------------------


def sections(findings: Findings, rows: Tables) -> Iterator[Section]:
    """In page order; the renderer leaves out what holds nothing."""
    words = words_of(findings, rows)
    notes, tested = words.of("notes"), bool(rows.get("accuracy"))

    def of(*names: str) -> list[Any]:
        pick = [(name, map_figures if name in MAPS else figures) for name in names]
        draw = {name: partial(getattr(module, name), findings, rows) for name, module in pick}
        return [words.figure(name, draw[name]) for name in names]

    def table(name: str, columns: Sequence[Column], **more: Any) -> Any:
        found = rows.get(more.get("file", name), [])
        return words.table(name, more.pop("rows", found), columns, **more)

    note = notes["free"] if rows.get("free_rankings") else ""
    found = [*of("curves", "grid")]
    found += [table("detection", views.DETECTION, rows=views.detection(rows), note=note)]
    found += [table("every detection", views.DETECTION, file="detection", folded=True)]
    yield Section("detection", "Wrong labels found", [*found, *of("deciles")], short="Detection")
    intro = words.say("notes", "rows")
    yield Section("rows", "Ranked rows", list(views.rankings(words, rows)), intro)
    again = [] if tested else [table("query_loss", views.QUERY_LOSS)]
    again += of("accuracy", "trends")
    again += [Text(notes["one trial"] if tested and len(findings.cells) == 1 else "", "note")]
    again += [*views.methods(words, findings, rows), Text(_published(findings, words), "note")]
    again += [views.gains(words, findings, rows)]
    again += [table("accuracy", views.accuracy(words.numbers["epoch"]), folded=True)]
    what = f"{'Accuracy' if tested else 'Query loss'} after filtering"
    yield Section("retrained", what, again if findings.retrained else [])
    pooled = [row for row in rows.get("theorem", []) if row["theta"] == ANY]
    layers = [*of("modules"), views.layers(words, rows), table("cancellation", views.CANCELLATION)]
    layers += [table("theorem", views.THEOREM, rows=pooled, note=notes["theorem"])]
    layers += [table("quartiles", views.QUARTILES, folded=True)]
    yield Section("layers", "Layers", layers)
    enough = [row for row in rows.get("proxies", []) if row["points"] >= FEWEST_POINTS]
    proxies = [*of("proxies"), table("proxies", views.PROXIES, rows=enough)] if enough else []
    yield Section("proxies", "Proxies for accuracy", proxies, short="Proxies")
    yield Section("agreement", "Agreement of scores", of("correlations"), short="Agreement")
    many = len(findings.cells) > MOST_CELLS
    model = [*of("training"), table("cells", views.CELLS, folded=many)]
    yield Section("model", "Data and model", [*model, table("conditioning", views.CONDITIONING)])
    took = [costs(rows.get("costs", [])), views.estimator_times(words, rows)]
    yield Section("cost", "Cost", took)
    yield Section("warnings", "Warnings", [Bullets([("", line) for line in findings.warnings])])
    yield remarks(findings.deviations, findings.quarantined)
    reading = [
        (name, text.format(**words.numbers))
        for needed, lines in words.of("reading").items()
        if not needed or rows.get(needed)
        for name, text in lines
    ]
    yield Section("reading", "How to read this", [Bullets(reading)])
    yield origin(findings.provenance)


def _published(findings: Findings, words: Words) -> str:
    """Where published numbers are from, and how many are empty, being unreadable."""
    every = findings.methods_published
    sources = sorted({row["source"] for row in (*every, *findings.layers_published)})
    keys = ("_mean_pct", "_sd_pct", "win_rate", "win_rate_sd")
    values = [value for row in every for key, value in row.items() if key.endswith(keys)]
    lost, fronts = sum(map(math.isnan, values)), sum(row["rank"] is None for row in every)
    told = {"lost": lost, "numbers": len(values), "fronts": fronts, "methods": len(every)}
    told_of = {key: count(number) for key, number in told.items()}
    unread = words.say("notes", "unread", **told_of) if lost + fronts else ""
    text = words.say("notes", "published", sources="; ".join(sources))
    return text + unread if sources else ""
