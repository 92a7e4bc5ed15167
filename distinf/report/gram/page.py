"""The page: an answer of a few fixed sentences with numbers in them, tables and figures."""

import math
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache, partial
from importlib.resources import files as resources
from typing import Any

import yaml

from distinf.gram.ranking import cell_ranking
from distinf.gram.session import Session
from distinf.numerics.bootstrap import RESAMPLES
from distinf.numerics.metrics import auc_by_chance, ndr_by_chance
from distinf.report import publishing
from distinf.report import render as renderer
from distinf.report.formats import SPACE, count, fixed, missing, percent, rounded, signed
from distinf.report.gram import figures, views
from distinf.report.gram.configurations import spoken
from distinf.report.gram.findings import EPOCHS, Findings
from distinf.report.gram.findings import findings as gathered
from distinf.report.gram.tables import Tables, tables
from distinf.report.gram.trials import ALL_ROWS, mean_sd
from distinf.report.provenance import costs, origin, remarks
from distinf.report.rows import Row
from distinf.report.schema import Bullets, Card, Figure, Page, Section, Text

# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6
BESIDE = {"random": ("at random", "random"), "full": ("known noise removed", "ink"),
          ALL_ROWS: ("on all rows", "ink")}  # fmt: skip


@lru_cache
def words() -> Mapping[str, Any]:
    text = (resources("distinf.report.gram") / "words.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
    return found


def write(session: Session) -> None:
    """Every row ranked, the tables, and the page."""
    cells = session.outline.cells.values()
    rankings = {views.ranking_name(c.name): cell_ranking(session, c) for c in cells}
    found = gathered(session)
    rows = tables(found)
    text = render(found, rows, [*rankings, *rows])
    publishing.publish(session, found.to_json(), rows, text, rankings)


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


def numbers(findings: Findings, rows: Tables) -> dict[str, str]:
    """What words may hold of the whole run."""
    low, high = chance(findings)
    points = rows.get("proxy_points", [])
    return {
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


# -- the answer ----------------------------------------------------------------------------


def answer(findings: Findings, rows: Tables) -> tuple[str, list[str], list[Card]]:
    """(better, worse, none or unknown; sentences; cards). That a model learned nothing is told
    before any rate."""
    whole = numbers(findings, rows)

    def say(key: str, **more: Any) -> str:
        told: str = words()["answer"][key].format(**(whole | more))
        return told

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
    return verdict, sentences, [*_rates(findings, noise, whole), *_accuracies(trained, after)]


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
    others = ", ".join(
        f"{label} {fixed(trained[name]['mean_pct'])}{SPACE}%"
        for name, (label, _) in BESIDE.items()
        if name in trained
    )
    yield say("trained", mean=fixed(ours["mean_pct"]), others=others)
    if pairs := ours.get("vs_random_pairs"):
        low, high = (ours[f"vs_random_{end}_points"] for end in ("low", "high"))
        span = "" if missing(low) else say("span", low=signed(low), high=signed(high))
        few = say("few") if pairs < FEWEST_PAIRS else ""
        told = {"points": signed(ours["vs_random_points"]), "wins": count(ours["vs_random_wins"])}
        yield say("against", **told, span=span, pairs=count(pairs), few=few)


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
    whole, notes = numbers(findings, rows), words()["notes"]

    def of(*names: str) -> Iterator[Any]:
        for name in names:
            title, caption, file = (text.format(**whole) for text in words()["figures"][name])
            draw = partial(getattr(figures, name), findings, rows)
            yield Figure(name, title, caption, draw, file)

    found = [*of("curves", "grid"), *views.detection(findings, rows), *of("deciles")]
    yield Section("detection", "Wrong labels found", found, short="Detection")
    intro = notes["rows"].format(**whole)
    yield Section("rows", "Ranked rows", list(views.rankings(rows)), intro)
    alone = rows.get("accuracy") and len(findings.cells) == 1
    again = [views.query_loss(rows), *of("accuracy", "trends")]
    again += [Text(notes["one trial"] if alone else "", "note"), *views.methods(findings, rows)]
    again += [Text(_published(findings), "note"), views.gains(findings, rows)]
    again += [views.accuracy(rows, whole["epoch"])]
    what = f"{'Accuracy' if rows.get('accuracy') else 'Query loss'} after filtering"
    yield Section("retrained", what, again if findings.retrained else [])
    layers = [*of("modules"), views.layers(rows), views.cancellation(rows)]
    layers += [views.theorem(rows, notes["theorem"]), views.quartiles(rows)]
    yield Section("layers", "Layers", layers)
    proxies = views.proxies(findings, rows)
    stand = [*of("proxies"), proxies] if proxies.rows else []
    yield Section("proxies", "Proxies for accuracy", stand, short="Proxies")
    yield Section("agreement", "Agreement of scores", list(of("correlations")), short="Agreement")
    model = [*of("training"), views.cells(rows), views.conditioning(rows)]
    yield Section("model", "Data and model", model)
    took = views.estimator_times(findings, rows, notes["times"])
    yield Section("cost", "Cost", [costs(rows.get("costs", [])), took])
    yield Section("warnings", "Warnings", [Bullets([("", line) for line in findings.warnings])])
    yield remarks(findings.deviations, findings.quarantined)
    reading = [
        (name, text.format(**whole))
        for needed, lines in words()["reading"].items()
        if not needed or rows.get(needed)
        for name, text in lines
    ]
    yield Section("reading", "How to read this", [Bullets(reading)])
    yield origin(findings.provenance)


def _published(findings: Findings) -> str:
    """Where published numbers are from, and how many are empty, being unreadable."""
    every, notes = findings.methods_published, words()["notes"]
    sources = sorted({row["source"] for row in (*every, *findings.layers_published)})
    keys = ("_mean_pct", "_sd_pct", "win_rate", "win_rate_sd")
    values = [value for row in every for key, value in row.items() if key.endswith(keys)]
    lost, fronts = sum(map(math.isnan, values)), sum(row["rank"] is None for row in every)
    told = {"lost": lost, "numbers": len(values), "fronts": fronts, "methods": len(every)}
    text = notes["published"] + (notes["unread"] if lost + fronts else "")
    told_of = {key: count(number) for key, number in told.items()}
    return text.format(sources="; ".join(sources), **told_of) if sources else ""
