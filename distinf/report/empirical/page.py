"""The page of an empirical run, and its answer in the terminal."""

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from distinf.empirical.matrix import Matrix, finite, measured
from distinf.empirical.task import Contrasting
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
    "Dropout is off and running statistics stay as they are while a row is tuned on.",
    "Influence has the opposite sign of Eq. 4 of Matelsky et al., in which learning is negative; "
    "their Figure 5 speaks of positive values.",
)


def write(session: Session) -> None:
    """report/, from committed arrays alone."""
    runs, rows = found(session)
    rows["costs"] = cost_rows(stage_costs(session))
    main, buffer = runs[""], io.BytesIO()
    np.save(buffer, main.influence_NE, allow_pickle=False)
    findings = {"rows": main.influence_NE.shape[0], "columns": main.influence_NE.shape[1]}
    findings |= {"answer": answer(runs, rows), "warnings": list(warnings(runs))}
    publish(
        session, findings, rows, page(session, runs, rows),
        more={"influence.npy": buffer.getvalue()},
    )  # fmt: skip


def found(session: Session) -> tuple[dict[str, Matrix], dict[str, list[Row]]]:
    """What was measured, "" being the run's and others its variations', and their tables."""
    every = {"": session, **session.variations}
    runs = {name: measured(each) for name, each in every.items()}
    tasks = {name: each.task for name, each in every.items()}
    wanted = {k: t.contrasts() if isinstance(t, Contrasting) else () for k, t in tasks.items()}
    return runs, tables({name: finite(matrix) for name, matrix in runs.items()}, wanted)


def summary(session: Session) -> list[str]:
    """The page's answer, and what is to be warned of."""
    runs, rows = found(session)
    told = [f"warning: {line}" for line in warnings(runs)]
    return [*told, *answer(runs, rows), f"the matrix: {session.blobs.root}/report/influence.npy"]


def warnings(runs: Mapping[str, Matrix]) -> Iterator[str]:
    for name, matrix in runs.items():
        bad = int(matrix.diverged_N.sum())
        of = f"{name}: " if name else ""
        if bad:
            yield (
                f"{of}fine-tuning diverged on {bad} of {len(matrix.taken_N)} rows, which are left "
                "out of every measure; lower tune.lr"
            )
        elif not np.any(np.nan_to_num(matrix.influence_NE)):
            yield f"{of}no loss changed at all; raise tune.lr"


def answer(runs: Mapping[str, Matrix], rows: Tables) -> list[str]:
    """Sentences of numbers, those that are known."""
    matrix = runs[""]
    pairs = count(int(np.isfinite(matrix.influence_NE).sum()))
    said = [f"{count(len(matrix.taken_N))} rows, each by itself; {pairs} influences measured."]
    mine = [row for row in rows.get("measures", []) if not row["run"]]
    for name in dict.fromkeys(row["matrix"] for row in mine):
        of = {row["measure"]: row for row in mine if row["matrix"] == name}
        share, own = of["antisymmetric share"], of["largest is its own"]
        which = name or f"The matrix of the {count(share['samples'])} clean samples"
        said.append(
            f"{which} is {fixed(100 * share['value'])} % antisymmetric "
            f"({_interval(share)}50 % would be no relation at all); "
            f"{fixed(100 * own['value'], 0)} % of its samples help themselves most."
        )
    return [*said, *_conclusions(rows.get("contrasts", [])), *_noises(rows.get("noise", []))]


def _conclusions(rows: Sequence[Row]) -> Iterator[str]:
    """Of every run, how often it helps the right conclusion."""
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        if not any(np.isfinite(row["low"]) for row in mine):
            continue
        right, wrong = (sum(each) for each in zip(*((r["low"] > 0, r["high"] < 0) for r in mine)))
        yield (
            f"{(name or 'this run').capitalize()}: of {count(len(mine))} contrasts {count(right)} "
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


def _interval(row: Row) -> str:
    return f"{_span(row, 100)} %; " if np.isfinite(row["low"]) else ""


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
    told_of = Figure(
        "domains", "Means over draws", "Rows: learned, or prompted; columns: whose loss is "
        "measured. In percent of the largest in each picture.", partial(figures.domains, runs),
    )  # fmt: skip
    yield Section("matrix", "The matrix", [*drawn, told_of, _measures(rows)])
    concluded = Figure(
        "contrasts", "Right and wrong conclusions", "Influence on the right conclusion less that "
        "on the wrong one, means over draws of words; right of 0 is right.",
        partial(figures.conclusions, rows.get("contrasts", [])), "contrasts",
    )  # fmt: skip
    yield Section(
        "conclusions",
        "Conclusions",
        [concluded, _table("Contrasts of conclusions", rows, "contrasts")],
    )
    of_noise = Figure(
        "noise", "What noise changes", "Mean difference in influence by sample, with its interval; "
        "what is learned from noisy samples should be below 0, what clean ones teach noisy ones "
        "above.",
        partial(figures.contrasts, rows.get("noise", [])), "noise",
    )  # fmt: skip
    yield Section("noise", "Noise", [of_noise, _table("Contrasts", rows, "noise")])
    yield Section("relations", "Who helps whom", [_table("Mean influence", rows, "relations")])
    intro = "What the step's first order (Eq. 3) tells of the measured influence on clean samples."
    told = [_table("Measured against first order", rows, "first_order")]
    yield Section("linear", "The kernel view", told if rows.get("first_order") else [], intro)
    yield Section("cost", "Cost", [costs(rows["costs"])])
    yield Section(
        "remarks", "Deviations", [Bullets([("", line) for line in (*_own(session), *DEVIATIONS)])]
    )
    where = f"report/influence.npy is the whole matrix, {matrix.influence_NE.shape} in fp64."
    yield Section("reading", "How to read this", [Bullets(READING), Text(where, "note")])
    yield origin(provenance_of(session))


def _own(session: Session) -> Sequence[str]:
    """The study's own deviations."""
    words = getattr(session.task, "wording", None)
    return words.deviations if words else ()


COLUMNS: Mapping[str, Sequence[Column]] = {
    "contrasts": [
        stub("run", "run"), stub("matrix", "matrix"), stub("contrast", "contrast"),
        text("learned", "after"), text("right", "right"), text("wrong", "wrong"),
    ],
    "noise": [
        stub("run", "run"), stub("contrast", "contrast"), stub("level", "level"),
        stub("pairs", "relation"), text("wished", "wished"),
    ],
    "relations": [
        stub("run", "run"), stub("tuned on", "trained"), stub("evaluated", "evaluated"),
        stub("pairs", "relation"),
    ],
    "first_order": [
        stub("run", "run"), stub("matrix", "matrix"), stub("tuned on", "trained"),
        Column("R²", "r2"),
        Column("correlation", "correlation"),
    ],
}  # fmt: skip
MEASURED: Mapping[str, Sequence[Column]] = {
    "contrasts": [Column("draws for the right one [%]", "right_pct", fixed)],
    "noise": [Column("pairs as wished [%]", "holds_pct", fixed)],
    "relations": [Column("pairs helped [%]", "helped_pct", fixed)],
}


def _table(title: str, rows: Tables, name: str) -> Table:
    """With the mean and its interval below it."""
    more = [] if name == "first_order" else [Column("influence", partial(_spanned, key="mean"))]
    samples = [] if name == "first_order" else [Column("samples", "samples", count)]
    columns = [*COLUMNS[name], *more, *MEASURED.get(name, ()), *samples]
    return Table(title, [_named(row) for row in rows.get(name, [])], columns, name)


def _measures(rows: Tables) -> Table:
    """A line for each matrix of each run, a column for each measure."""
    lines: dict[tuple[str, str], Row] = {}
    for row in rows.get("measures", []):
        line = lines.setdefault((row["run"], row["matrix"]), {**_named(row), "of": {}})
        line["of"][row["measure"]] = row
    names = dict.fromkeys(name for line in lines.values() for name in line["of"])
    columns = [Column(name, partial(_measure, name=name)) for name in names]
    stubs = [stub("run", "run"), stub("matrix", "matrix")]
    samples = [Column("samples", "samples", count)]
    return Table("Measures of it", [*lines.values()], [*stubs, *columns, *samples], "measures")


def _measure(line: Row, name: str) -> Entry:
    return _spanned(line["of"][name], "value") if name in line["of"] else Entry()


def _spanned(row: Row, key: str) -> Entry:
    below = "" if row.get("low") is None or not np.isfinite(row["low"]) else _span(row)
    return Entry(number(row[key]), below, row[key])


def _named(row: Row) -> Row:
    return {**row, "run": row["run"] or "this run"}
