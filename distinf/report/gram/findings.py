"""What a run found: rows straight from its committed arrays, before any mean over cells.

A cell is one dataset and seed. Scores: above 0, training on the row helps the queries; the lowest
are filtered. Rates and accuracies are shares from 0 to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch

from distinf.gram import actions, factors, scores, stored_gradients, tiles
from distinf.gram.actions import flipped_rows
from distinf.gram.asking import answer
from distinf.gram.blocks import ALL, SPARSE
from distinf.gram.configurations import BETWEEN, all_scores, headline, in_order
from distinf.gram.paired import Separated, separated
from distinf.gram.ranking import FLIPPED, cell_ranking
from distinf.gram.sensitivity import sensitivity
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.stopwatch import TOOK, joint_name
from distinf.gram.task import Deviating, Numbered, described_rows
from distinf.gram.tokens import shares_of
from distinf.numerics.cancellation import cancellation, norm_cancellation
from distinf.numerics.comparison import mean_spearman
from distinf.report.gram import cells
from distinf.report.gram.warnings import summary, warnings
from distinf.report.provenance import Provenance, provenance_of, stage_costs
from distinf.report.rows import Row
from distinf.tasks.notes import with_notes
from distinf.tasks.task import error_context

EPOCHS = {  # train.selected_epoch in words
    "least_query_loss": "epoch of lowest query loss",
    "best_query_accuracy": "epoch of highest query accuracy",
    "last": "last epoch",
}


@dataclass(frozen=True)
class Findings:
    """Everything on the page; a part that is empty is left out of it.

    headline: the configuration that the answer is about, chosen before the run, not for its result.
    share: of the training rows, lowest scores, that are filtered. Rows of the lists have the keys
    that the function named for the list gives them; `joint` is of every estimator in every group.
    """

    title: str
    task: str  # one sentence: what was run
    question: str = ""
    headline: str = "datainf/all/vote"
    share: float = 0.3
    selected_epoch: str = "least_query_loss"  # one of EPOCHS: whose weights are scored
    cells: Sequence[Row] = ()
    scored: Sequence[Row] = ()
    free: Sequence[Row] = ()
    compared: Sequence[Row] = ()
    blocks: Sequence[Row] = ()
    cancellation: Sequence[Row] = ()
    separated: Sequence[Separated] = ()
    correlations: Sequence[Row] = ()
    joint: Row | None = None
    retrained: Sequence[Row] = ()
    ranking: Sequence[Row] = ()
    by_query: Sequence[Row] = ()
    conditioning: Sequence[Row] = ()
    estimator_times: Sequence[Row] = ()
    methods_published: Sequence[Row] = ()
    layers_published: Sequence[Row] = ()
    costs: Sequence[Row] = ()
    deviations: Sequence[str] = ()
    warnings: Sequence[str] = ()
    quarantined: Mapping[str, Sequence[int]] = field(default_factory=dict)  # "cell split" -> rows
    provenance: Provenance = field(default_factory=Provenance)
    sensitivity: Sequence[Row] = ()
    placed: Sequence[Row] = ()
    tokens: Sequence[Row] = ()


def findings(session: Session) -> Findings:
    """Everything that the page shows."""
    settings, cells = session.settings, list(session.outline.cells.values())
    task: Any = next(iter(session.tasks.values()))
    words, published = getattr(task, "wording", None), getattr(task, "published", ((), ()))
    parts: dict[str, Any] = {
        name: [row for cell in cells for row in of(session, cell)] for name, of in EACH.items()
    }
    return Findings(
        title=settings.report.title or "Training rows that harm the model",
        task=_sentence(session, cells),
        question=getattr(words, "question", ""),
        headline=BETWEEN.join(headline(session, cells[0])),
        share=settings.actions.fraction,
        selected_epoch=settings.train.selected_epoch,
        **parts,
        correlations=_correlations(session, cells),
        joint=_joint(session, cells),
        retrained=list(_retrained(session)),
        methods_published=list(published[0]),
        layers_published=list(published[1]),
        costs=stage_costs(session),
        deviations=[*getattr(words, "deviations", ()), *_deviations(session, cells[0])],
        warnings=warnings(session, parts["cells"]),
        quarantined=dict(_quarantined(session, cells)),
        provenance=provenance_of(session),
    )


def _sentence(session: Session, cells: Sequence[Cell]) -> str:
    first, estimators = cells[0], session.settings.scores.estimators
    kept = summary(session.task(first.name)).get("vocabulary")
    cut = f" (its embedding cut to the {kept:,} tokens that occur)" if kept else ""
    made = f"fine-tuned on {first.rows[TRAIN]:,} rows" if first.trained else "taken as it is"
    many = f", in {len(cells)} runs" if len(cells) > 1 else ""
    return (
        f"A model of {first.shapes.parameters:,} parameters{cut} was {made}{many}; each training "
        f"row's influence on {first.rows[QUERY]:,} query rows was computed from the gradients of "
        f"{sum(block.entries for block in first.blocks.dense):,} parameters in "
        f"{len(first.blocks.dense)} blocks by {len(estimators)} estimators."
    )


def _deviations(session: Session, cell: Cell) -> list[str]:
    task = session.task(cell.name)
    if not isinstance(task, Deviating):
        return []
    with error_context("deviations()"):
        entries = {block.name: block.entries for block in cell.blocks.dense}
        return list(task.deviations(session.settings, entries))


def _cancelled(session: Session, cell: Cell) -> Iterator[Row]:
    """Each group's cancellation effect (Vitel and Chhabra, Eq. 7), in L1 and by norms."""
    stored = {}
    for slab in cell.blocks.slabs:
        (unit,) = tiles.slab_units(session.settings, cell, "sums", slab)
        arrays = session.arrays(unit, ["sum", "abs_sum"])
        sqnorm_BN = tiles.tiled(session, cell, slab, "cross", "sqnorm")
        for place, block in enumerate(cell.blocks.of(slab)):
            span = slice(None) if slab == SPARSE else block.span
            found = arrays["abs_sum"][span].ravel(), arrays["sum"][span].ravel(), sqnorm_BN[place]
            stored[block.name] = tuple(map(torch.from_numpy, found))
    for group, members in cell.groups.items():
        above, sums, sqnorms = zip(*(stored[m] for m in members), strict=True)
        sum_P, norms_N = torch.cat(sums), torch.stack(sqnorms).sum(0).sqrt()
        c = cancellation(torch.cat(above), sum_P)
        told = {"l1": c.l1, "norm": norm_cancellation(norms_N, sum_P)}
        told |= {"least": c.least, "median": c.median, "most": c.most}
        yield {"cell": cell.name, "group": group, **told}


def _correlations(session: Session, cells: Sequence[Cell]) -> list[Row]:
    """Spearman's, between estimators over all blocks, and between groups of each estimator."""
    estimators, groups = session.settings.scores.estimators, cells[0].groups
    wanted: dict[str, Mapping[Any, str]] = {
        f"estimators, all layers, {how}": {(e, ALL, how): e for e in estimators}
        for how in ("mean", "vote")
    }
    wanted |= {f"layer groups, {e}, mean": {(e, g, "mean"): g for g in groups} for e in estimators}
    found = (_correlation(session, cells, *each) for each in wanted.items())
    return [c for c in found if c is not None]


def _joint(session: Session, cells: Sequence[Cell]) -> Row | None:
    """Every estimator in every group against every other one, by mean scores (Vitel and Chhabra,
    Figure 12, for the run's model)."""
    keys = [key for key in all_scores(session, cells[0]) if key[2] == "mean"]
    named = {key: BETWEEN.join(key[:2]) for key in keys}
    ordered = dict(sorted(named.items(), key=lambda item: in_order(BETWEEN.join(item[0]))))
    return _correlation(session, cells, "estimators and layer groups, mean", ordered)


def _correlation(
    session: Session, cells: Sequence[Cell], title: str, named: Mapping[Any, str]
) -> Row | None:
    """Of those that the first cell has, mean over the cells that have them; None of fewer than two.
    values_MM: NaN where no cell has a number."""
    every = [all_scores(session, cell) for cell in cells]
    kept = [key for key in named if key in every[0]]
    per_cell = [[found[key] for key in kept] for found in every if found.keys() >= {*kept}]
    if len(kept) < 2:
        return None
    values_MM = mean_spearman([np.stack(scores_MN) for scores_MN in per_cell])
    return {"title": title, "names": [named[key] for key in kept], "values_MM": values_MM}


def _retrained(session: Session) -> Iterator[Row]:
    """Each configuration's training on what it left; several may share a job. `test_accuracy`: the
    best over epochs (what Vitel and Chhabra report); `accuracy_at_best`: at the selected epoch (NaN
    where no test rows are)."""
    for filtered, stored in actions.histories(session):
        noise = flipped_rows(session, filtered.cell)
        accuracy = stored.get("test_accuracy", np.array([np.nan]))
        known = np.isfinite(accuracy).any()
        yield {
            "cell": filtered.cell,
            "configuration": filtered.configuration,
            "kept": len(filtered.kept),
            "kept_flips": None if noise is None else int(noise[filtered.kept].sum()),
            "test_accuracy": float(np.nanmax(accuracy)) if known else float("nan"),
            "accuracy_at_best": float(accuracy[stored["best"] if len(accuracy) > 1 else 0]),
            "query_loss": float(np.nanmin(stored["query_loss"])),
            "job": filtered.job.id,
            "history": cells.history(stored),
        }


def _lowest(session: Session, cell: Cell) -> Iterator[Row]:
    """The first rows of `cell_ranking`, as the page's table has them."""
    for row in cell_ranking(session, cell)[: session.settings.report.rows]:
        told = {"cell": cell.name, "rank": row.pop("place"), "row": row.pop("row")}
        told |= {"score": row.pop("score"), "label": str(row.pop("label", ""))}
        told |= {FLIPPED: row.pop(FLIPPED, None), "text": str(row.pop("text", ""))}
        yield with_notes(told, row)


def _by_query(session: Session, cell: Cell) -> Iterator[Row]:
    """Each query's most helpful and most harmful rows, by the headline's estimator and layers."""
    top = session.settings.report.per_query
    if top:
        name = BETWEEN.join(headline(session, cell)[:2])
        yield from ({"cell": cell.name, **r} for r in answer(session, cell, name).extremes(top))


def _conditioning(session: Session, cell: Cell) -> Iterator[Row]:
    """Of the damped Fisher matrix of a block or group: an upper bound of (largest eigenvalue + λ)
    / λ, and so of its condition number."""
    for unit in scores.cell_units(session.settings, cell):
        for note in session.record(unit)["summary"]["notes"]:
            if "condition" in note:
                named = {k: note[k] for k in ("estimator", "block", "damping", "condition")}
                yield {"cell": cell.name, **named}


def estimator_times(session: Session, cell: Cell) -> Iterator[Row]:
    """What each estimator took in each group: all steps that it needs but the gradients, also those
    that others need; alone_s: of those that only it needs. None of a run without such notes."""
    units = [u for phase in tiles.PHASES for u in tiles.phase_units(session.settings, cell, phase)]
    units += factors.cell_units(session.settings, cell)
    units += scores.cell_units(session.settings, cell)
    notes = [note for u in units for note in session.record(u)["summary"].get(TOOK, ())]
    scored = dict.fromkeys((e, group) for e, group, _ in all_scores(session, cell))
    for estimator, group in scored if notes else ():
        of = {*cell.groups[group], joint_name(group)}
        mine = [n for n in notes if estimator in n["estimators"] and n["of"] in of]
        took = {key: float(sum(n[key] for n in mine)) for key in ("wall_s", "processor_s")}
        took["alone_s"] = float(sum(n["wall_s"] for n in mine if len(n["estimators"]) == 1))
        yield {"cell": cell.name, "estimator": estimator, "group": group, **took}


def _quarantined(session: Session, cells: Sequence[Cell]) -> Iterator[tuple[str, list[int]]]:
    """By cell and split, the rows' numbers in the user's own data, where the task knows them."""
    for cell, split in product(cells, (TRAIN, QUERY)):
        task = session.task(cell.name)
        rows = np.flatnonzero(~stored_gradients.finite_rows(session, cell.name, split))
        numbers = rows.tolist()
        if isinstance(task, Numbered):
            numbers = np.asarray(task.numbers(split))[rows].tolist()
        elif split == TRAIN:
            numbers = [told["row"] for told in described_rows(task, rows)]
        if numbers:
            yield f"{cell.name} {split}".strip(), numbers


EACH = {
    "cells": cells.cell, "scored": cells.scored, "free": cells.free, "compared": cells.compared,
    "blocks": cells.blocks, "cancellation": _cancelled,
    "separated": lambda s, cell: separated(s, cell, flipped_rows(s, cell.name)),
    "ranking": _lowest, "by_query": _by_query, "conditioning": _conditioning,
    "estimator_times": estimator_times, "sensitivity": sensitivity,
    "placed": cells.placed, "tokens": shares_of,
}  # fmt: skip
