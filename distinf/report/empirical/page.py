"""The page of an empirical run, and its answer in the terminal."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from distinf.empirical.matrix import Matrix, finite, measured
from distinf.empirical.measures import FROM_NOISY, OTHER, SAME, tables
from distinf.empirical.rates import plateau
from distinf.empirical.table import in_words
from distinf.empirical.yardstick import agreements
from distinf.engine.session import Session
from distinf.report.empirical import figures
from distinf.report.formats import count, fixed, number, percent
from distinf.report.provenance import cost_rows, costs, origin, provenance_of, stage_costs
from distinf.report.publishing import publish
from distinf.report.rows import Row, csv_text
from distinf.report.schema import Bullets, Column, Entry, Item, Page, Section, Table, Text, crossed
from distinf.report.words import Words

Tables = Mapping[str, Sequence[Row]]
NAMED = 10  # rows on which it diverged, at most
ESTIMATE = ("matrix", "estimator", "of")
PARTS = {"off": "off the diagonal", "within": "within columns"}  # of the yardstick


def write(session: Session) -> None:
    """report/, from committed arrays alone."""
    runs, rows = found(session)
    theirs = [  # what a variation's stages took that are its alone
        cost | {"stage": f"{name}: {cost['stage']}"}
        for name, each in session.variations.items()
        for cost in stage_costs(each)
    ]
    rows["costs"] = cost_rows([*stage_costs(session), *theirs])
    main, buffer = runs[""], io.BytesIO()
    np.save(buffer, main.influence_NE, allow_pickle=False)
    findings: dict[str, Any] = dict(zip(("rows", "columns"), main.influence_NE.shape))
    findings |= {"answer": answer(runs, rows), "warnings": list(warnings(runs, rows))}
    shown = Page(
        "Empirical influence",
        session.context["task"],
        findings["answer"],
        "What does training on one sample do to every other?",
        warnings=findings["warnings"],
        sections=list(sections(session, runs, rows)),
    )
    more = {"influence.npy": buffer.getvalue()}
    if sign := session.settings.report.matrix:
        more["matrix.csv"] = csv_text([*in_words(main, sign)]).encode()
    publish(session, findings, rows, shown, more=more)


def found(session: Session) -> tuple[dict[str, Matrix], dict[str, list[Row]]]:
    """What was measured, "" being the run's and others its variations', and their tables."""
    every = {"": session, **session.variations}
    runs = {name: measured(each) for name, each in every.items()}
    tasks = {name: each.task for name, each in every.items()}
    rows = tables({name: finite(matrix) for name, matrix in runs.items()}, tasks)
    swept = [{"run": name} | row for name, each in every.items() for row in plateau(each)]
    return runs, rows | {"yardstick": [*agreements(runs, every)], "rates": swept}


def summary(session: Session) -> list[str]:
    """The page's answer, and what is to be warned of."""
    runs, rows = found(session)
    told = [f"warning: {line}" for line in warnings(runs, rows)]
    return [*told, *answer(runs, rows), f"the matrix: {session.blobs.root}/report/influence.npy"]


def warnings(runs: Mapping[str, Matrix], rows: Tables) -> Iterator[str]:
    for name, matrix in runs.items():
        bad = np.flatnonzero(matrix.diverged_N).tolist()
        of = f"{name}: " if name else ""
        if bad:
            which = ", ".join(map(str, bad[:NAMED])) + ", …" * (len(bad) > NAMED)
            yield (
                f"{of}fine-tuning diverged on {len(bad)} of {len(matrix.taken_N)} rows ({which}), "
                "which are left out of every measure; lower tune.lr"
            )
        elif not np.any(np.nan_to_num(matrix.influence_NE)):
            yield f"{of}no loss changed at all; raise tune.lr"
        swept = [row for row in rows.get("rates", []) if row["run"] == name]
        good = [row["rate"] for row in swept if row["plateau"]]
        if any(row["own"] and not row["plateau"] for row in swept):
            where = f"take one from {min(good):g} to {max(good):g}" if good else "no rate swept is"
            yield f"{of}tune.lr is not where the matrix hardly depends on it; {where}"


def answer(runs: Mapping[str, Matrix], rows: Tables) -> list[str]:
    """Sentences of numbers, those that are known."""
    matrix = runs[""]
    pairs = count(int(np.isfinite(matrix.influence_NE).sum()))
    said = [f"{count(len(matrix.taken_N))} rows, each by itself; {pairs} influences measured."]
    mine = [row for row in rows.get("measures", []) if not row["run"]]
    for name in dict.fromkeys(row["matrix"] for row in mine):
        of = {row["measure"]: row for row in mine if row["matrix"] == name}
        share, own = of["antisymmetric share"], of["largest is its own"]
        known = f"{_span(share, 100)} %; " if np.isfinite(share["low"]) else ""
        which = name or f"The matrix of the {count(share['samples'])} clean samples"
        said.append(
            f"{which} is {number(100 * share['value'])} % antisymmetric "
            f"({known}50 % would be no relation at all); "
            f"{fixed(100 * own['value'], 0)} % of its samples help themselves most."
        )
    return [*said, *_conclusions(rows.get("contrasts", [])), *_noises(rows.get("noise", []))]


def _conclusions(rows: Sequence[Row]) -> Iterator[str]:
    """Of every run, how often it helps the right conclusion."""
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        if not any(np.isfinite(row["low"]) for row in mine):
            continue
        said = name or "this run"
        right, wrong = (sum(each) for each in zip(*((r["low"] > 0, r["high"] < 0) for r in mine)))
        yield (
            f"{said[:1].upper()}{said[1:]}: of {count(len(mine))} contrasts {count(right)} "
            f"are for the right conclusion and {count(wrong)} for the wrong one, their intervals "
            "over draws beyond 0."
        )


def _noises(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if not row["run"] and row["contrast"] == FROM_NOISY and row["relation"] != OTHER:
            less = "less" if row["high"] < 0 else "more" if row["low"] > 0 else "not clearly less"
            yield (
                f"From a sample with {row['level']} others ({row['relation']}) learn {less} than "
                f"from the clean one: {number(row['mean'])} ({_span(row)}) in loss, in "
                f"{percent(row['holds_pct'])} of pairs less."
            )


def _span(row: Row, scale: float = 1.0) -> str:
    return f"{number(scale * row['low'])} to {number(scale * row['high'])}"


def sections(session: Session, runs: Mapping[str, Matrix], rows: Tables) -> Iterator[Section]:
    """In page order; the renderer leaves out what holds nothing."""
    shape = runs[""].influence_NE.shape
    numbers = {"strong": figures.STRONG, "rows": shape[0], "columns": shape[1]}
    words, matrix = Words("distinf.report.empirical", numbers), finite(runs[""])

    def table(name: str) -> Table:
        mine = [_named(row) for row in rows.get(name, [])]
        keys = {"mean": "influence", "value": "antisymmetric share of it"}
        shown = [
            Column(h, partial(_spanned, key=k)) for k, h in keys.items() if k in (mine or [{}])[0]
        ]
        return words.table(name, mine, shown)

    def drawn(name: str, *of: Any, draw: Any = None) -> Item:
        return words.figure(name, partial(draw or getattr(figures, name), *of))

    one, linear = {"tuned on (down), evaluated (across)": matrix}, dict[str, Matrix]()
    if matrix.first_order_NE is not None:
        told = replace(matrix, influence_NE=matrix.first_order_NE)
        linear = {"measured": matrix, "first order": told}
    whole = [drawn("pairwise", one), drawn("blocks", matrix), drawn("sizes", runs)]
    whole += [drawn("domains", runs), _wide(words, rows, "measures", "measure")]
    yield Section("matrix", "The matrix", whole)
    found, dots = rows.get("contrasts", []), figures.dots
    named = [drawn("contrasts", found, "{matrix}: {contrast}", draw=dots), table("contrasts")]
    named += [_wide(words, rows, "meanings", "regressor"), _wide(words, rows, "variances", "part")]
    yield Section("conclusions", "Conclusions", named)
    every = rows.get("noise", [])
    noisy = [row for row in every if row["relation"] == SAME] or every
    noise = drawn("noise", noisy, "{contrast}, {level}", draw=dots)
    yield Section("noise", "Noise", [noise, table("noise")])
    yield Section("relations", "Who helps whom", [table("relations")])
    parts = list(_parted(rows["yardstick"]))
    shown = drawn("yardstick", parts, "{matrix} {estimator} {of}", draw=dots)
    held = _wide(words, {"yardstick": parts}, "yardstick", "column", ESTIMATE)
    yield Section("yardstick", "The yardstick", [shown, held], words.of("yardstick"))
    yield Section("rates", "The learning rate", [table("rates")], words.of("rates"))
    kernel = [drawn("kernel", linear, draw=figures.pairwise), table("first_order")]
    yield Section("linear", "The kernel view", kernel, words.of("linear"))
    yield Section("cost", "Cost", [costs(rows["costs"])])
    own = getattr(getattr(session.task, "wording", None), "deviations", ())
    deviations = [("", line) for line in (*own, *words.of("deviations"))]
    yield Section("remarks", "Deviations", [Bullets(deviations)])
    reading = Bullets([(lead, rest) for lead, rest in words.of("reading")])
    yield Section("reading", "How to read this", [reading, Text(words.say("whole"), "note")])
    yield origin(provenance_of(session))


def _parted(rows: Sequence[Row]) -> Iterator[Row]:
    """The yardstick's rows, each part of a run's a column."""
    for row, part in product(rows, PARTS):
        mean, low, high = (row[f"{part}{end}"] for end in ("", "_low", "_high"))
        column = f"{row['run'] or 'this run'} | {PARTS[part]}"
        own = {"value": mean, "mean": mean, "low": low, "high": high, "hollow": part != "off"}
        yield {**row, **own, "column": column}


def _wide(
    words: Words, rows: Tables, table: str, by: str, of: Sequence[str] = ("run", "matrix")
) -> Table:
    """A line for each matrix of each run, or what else it is `of`; a column for each measure,
    "group | heading" where they have several."""
    mine = [_named(row) for row in rows.get(table, [])]
    return words.table(table, *crossed(mine, of, by, partial(_spanned, key="value")))


def _spanned(row: Row, key: str) -> Entry:
    below = "" if row.get("low") is None or not np.isfinite(row["low"]) else _span(row)
    return Entry(number(row[key]), below, row[key]) if np.isfinite(row[key]) else Entry()


def _named(row: Row) -> Row:
    return {**row, "run": row["run"] or "this run"}
