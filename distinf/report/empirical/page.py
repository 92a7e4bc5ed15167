"""The page of an empirical run, and its answer in the terminal."""

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from distinf.empirical.matrix import Matrix, finite, measured
from distinf.engine.session import Session
from distinf.report.empirical import figures
from distinf.report.empirical.figures import STRONG
from distinf.report.empirical.findings import FROM_NOISY, OTHER, tables
from distinf.report.formats import count, fixed, number, percent
from distinf.report.provenance import cost_rows, costs, origin, provenance_of, stage_costs
from distinf.report.publishing import publish
from distinf.report.rows import Row
from distinf.report.schema import (
    Bullets,
    Column,
    Entry,
    Figure,
    Page,
    Section,
    Table,
    Text,
    stub,
    text,
)

Tables = Mapping[str, Sequence[Row]]
READING = [
    ("Influence.", "The loss of the column's sample before, less after, fine-tuning on the row's "
     "sample alone. Above 0: training on it helps. Eq. 4 of Matelsky et al. has the other sign."),
    ("Antisymmetric share.", "Off the diagonal: 0 where M_ij = M_ji, 0.5 where the two have no "
     "relation, 1 where they are opposite. One small step of plain SGD gives 0. Bands (rows that "
     "help all, columns that all help) have some of their own, so it stands without them too."),
    ("Variance.", "Of the influences off the diagonal: what the means of rows, or of columns, "
     "explain, and what the two together do not."),
    ("Noise.", "By sample, the mean over others; intervals by bootstrap over the samples tuned on. "
     "One would wish a noisy sample to teach less than a clean one, and a clean one to teach "
     "noisy ones more than they teach it."),
    ("Intervals.", "95 %: jackknife over samples for the measures of the matrix, bootstrap over "
     "samples tuned on for means. They say nothing of other base models or draws of noise."),
]  # fmt: skip
DEVIATIONS = (
    "Matelsky et al. do not give the network, its training, the rate or the number of digits: all "
    "are this configuration's.",
    "Dropout is off and running statistics stay as they are while a row is tuned on.",
    "Influence has the opposite sign of their Eq. 4, in which learning is negative; their Figure 5 "
    "speaks of positive values.",
)


def write(session: Session) -> None:
    """report/, from committed arrays alone."""
    runs = matrices(session)
    rows = tables({name: finite(matrix) for name, matrix in runs.items()})
    rows["costs"] = cost_rows(stage_costs(session))
    main, buffer = runs[""], io.BytesIO()
    np.save(buffer, main.influence_NE, allow_pickle=False)
    findings = {"rows": main.influence_NE.shape[0], "columns": main.influence_NE.shape[1]}
    findings |= {"answer": answer(runs, rows), "warnings": list(warnings(runs))}
    publish(
        session, findings, rows, page(session, runs, rows),
        more={"influence.npy": buffer.getvalue()},
    )  # fmt: skip


def matrices(session: Session) -> dict[str, Matrix]:
    """ "" is the run's, others its variations'."""
    every = {"": session, **session.variations}
    return {name: measured(each) for name, each in every.items()}


def summary(session: Session) -> list[str]:
    """The page's answer, and what is to be warned of."""
    runs = matrices(session)
    rows = tables({name: finite(matrix) for name, matrix in runs.items()})
    told = [f"warning: {line}" for line in warnings(runs)]
    return [*told, *answer(runs, rows), f"the matrix: {session.blobs.root}/report/influence.npy"]


def warnings(runs: Mapping[str, Matrix]) -> Iterator[str]:
    for name, matrix in runs.items():
        bad = int((~np.isfinite(matrix.influence_NE)).any(1).sum())
        of = f"{name}: " if name else ""
        if bad:
            yield (
                f"{of}fine-tuning diverged on {bad} of {len(matrix.taken_N)} rows, which are left "
                "out of every measure; lower tune.lr"
            )
        elif not np.any(matrix.influence_NE):
            yield f"{of}no loss changed at all; raise tune.lr"


def answer(runs: Mapping[str, Matrix], rows: Tables) -> list[str]:
    """Three sentences of numbers, those that are known."""
    matrix = runs[""]
    tuned, evaluated = map(count, matrix.influence_NE.shape)
    said = [f"Fine-tuned on each of {tuned} rows by itself; the losses of {evaluated} measured."]
    found = {row["measure"]: row for row in rows.get("measures", []) if not row["run"]}
    if found:
        share, own = found["antisymmetric share"], found["largest is its own"]
        said.append(
            f"The matrix of the {count(share['samples'])} clean samples is "
            f"{fixed(100 * share['value'])} % antisymmetric ({_span(share, 100)} %; 50 % would be "
            f"no relation at all); {fixed(100 * own['value'], 0)} % of them help themselves most."
        )
    for row in rows.get("noise", []):
        if not row["run"] and row["contrast"] == FROM_NOISY and row["relation"] != OTHER:
            less = "less" if row["high"] < 0 else "more" if row["low"] > 0 else "not clearly less"
            said.append(
                f"From a sample with {row['level']} others ({row['relation']}) learn {less} than "
                f"from the clean one: {number(row['mean'])} ({_span(row)}) in loss, in "
                f"{percent(row['holds_pct'])} of pairs less."
            )
    return said


def _span(row: Row, scale: float = 1.0) -> str:
    return f"{number(scale * row['low'])} to {number(scale * row['high'])}"


def page(session: Session, runs: Mapping[str, Matrix], rows: Tables) -> Page:
    first, *rest = answer(runs, rows)
    return Page(
        "Empirical influence",
        session.context["task"],
        answer=(first, *rest) if rest else (first,),
        question="What does training on one sample do to every other?",
        warnings=list(warnings(runs)),
        sections=list(sections(session, runs, rows)),
    )


def sections(session: Session, runs: Mapping[str, Matrix], rows: Tables) -> Iterator[Section]:
    matrix = finite(runs[""])
    drawn: list[Any] = [
        Figure(
            "matrix", "The pairwise matrix",
            "Rows: the sample tuned on; columns: the sample whose loss is measured, both by class. "
            f"Green helps, orange harms; full colour from {STRONG:g} % of the sizes on.",
            partial(figures.pairwise, matrix),
        ),
        Figure(
            "blocks", "By noise", "Rows: noise of the sample tuned on; columns: of the one that is "
            "evaluated. One scale; as above.", partial(figures.blocks, matrix),
        ),
        Figure(
            "sizes", "How influence is spread", "Off the diagonal of the clean samples' matrix, a "
            "curve for each run: the share of pairs with at least this influence, in size.",
            partial(figures.sizes, runs),
        ),
    ]  # fmt: skip
    yield Section("matrix", "The matrix", [*drawn, _table("Measures of it", rows, "measures")])
    of_noise = Figure(
        "noise", "What noise changes", "Mean difference in influence by sample, with its interval; "
        "what is learned from noisy samples "
        "should be below 0, what clean ones teach noisy ones above.",
        partial(figures.contrasts, rows.get("noise", [])), "noise",
    )  # fmt: skip
    yield Section("noise", "Noise", [of_noise, _table("Contrasts", rows, "noise")])
    yield Section("relations", "Who helps whom", [_table("Mean influence", rows, "relations")])
    intro = "What the step's first order (Eq. 3) tells of the measured influence on clean samples."
    told = [_table("Measured against first order", rows, "first_order")]
    yield Section("linear", "The kernel view", told if rows.get("first_order") else [], intro)
    yield Section("cost", "Cost", [costs(rows["costs"])])
    yield Section("remarks", "Deviations", [Bullets([("", line) for line in DEVIATIONS])])
    where = f"report/influence.npy is the whole matrix, {matrix.influence_NE.shape} in fp64."
    yield Section("reading", "How to read this", [Bullets(READING), Text(where, "note")])
    yield origin(provenance_of(session))


COLUMNS: Mapping[str, Sequence[Column]] = {
    "measures": [stub("run", "run"), stub("measure", "measure")],
    "noise": [
        stub("run", "run"), stub("contrast", "contrast"), stub("level", "level"),
        stub("pairs", "relation"), text("wished", "wished"),
    ],
    "relations": [
        stub("run", "run"), stub("tuned on", "trained"), stub("evaluated", "evaluated"),
        stub("pairs", "relation"),
    ],
    "first_order": [
        stub("run", "run"), stub("tuned on", "trained"), Column("R²", "r2"),
        Column("correlation", "correlation"),
    ],
}  # fmt: skip
MEASURED: Mapping[str, Sequence[Column]] = {
    "noise": [Column("pairs as wished [%]", "holds_pct", fixed)],
    "relations": [Column("pairs helped [%]", "helped_pct", fixed)],
}


def _table(title: str, rows: Tables, name: str) -> Table:
    """With the value and its interval below it."""
    found = rows.get(name, [])
    key = "value" if name == "measures" else "mean"

    def value(row: Row) -> Entry:
        below = "" if row.get("low") is None or not np.isfinite(row["low"]) else _span(row)
        return Entry(number(row[key]), below, row[key])

    more = [] if name == "first_order" else [Column("influence" if key == "mean" else key, value)]
    samples = [] if name == "first_order" else [Column("samples", "samples", count)]
    columns = [*COLUMNS[name], *more, *MEASURED.get(name, ()), *samples]
    return Table(title, [{**row, "run": row["run"] or "this run"} for row in found], columns, name)
