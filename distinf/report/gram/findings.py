"""What a run found: rows straight from its committed arrays, before any mean over cells.

A cell is one dataset and seed. Scores: above 0, training on the row helps the queries; the lowest
are filtered. Rates and accuracies are shares from 0 to 1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch

from distinf.gram import actions, factors, gradients, scores, tiles, train
from distinf.gram.actions import flipped_rows, lowest_first
from distinf.gram.blocks import ALL, SPARSE, layer
from distinf.gram.configurations import BETWEEN, all_scores, headline, in_order
from distinf.gram.paired import Separated, separated
from distinf.gram.ranking import FLIPPED, cell_ranking, free_rankings, suggested
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import HOWS
from distinf.gram.stopwatch import TOOK, joint_name
from distinf.gram.task import METRICS, Deviating, Numbered, Predicting, described_rows
from distinf.numerics import metrics
from distinf.numerics.cancellation import cancellation, norm_cancellation
from distinf.numerics.means import finite_mean
from distinf.report.gram.warnings import by_split, summary, warnings
from distinf.report.provenance import Provenance, StageCost, provenance_of, stage_costs
from distinf.report.rows import Row, array_summary
from distinf.tasks.notes import beside
from distinf.tasks.task import telling

MODULES = ("query_key_value", "qkv_proj", "query", "value", "key", "dense", "q_proj", "k_proj",
           "v_proj", "o_proj", "c_attn", "c_proj")  # fmt: skip
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
    blocks: Sequence[Row] = ()
    cancellation: Sequence[Row] = ()
    separated: Sequence[Separated] = ()
    correlations: Sequence[Row] = ()
    joint: Row | None = None
    retrained: Sequence[Row] = ()
    ranking: Sequence[Row] = ()
    conditioning: Sequence[Row] = ()
    estimator_times: Sequence[Row] = ()
    methods_published: Sequence[Row] = ()
    layers_published: Sequence[Row] = ()
    costs: Sequence[StageCost] = ()
    deviations: Sequence[str] = ()
    warnings: Sequence[str] = ()
    quarantined: Mapping[str, Sequence[int]] = field(default_factory=dict)  # "cell split" -> rows
    provenance: Provenance = field(default_factory=Provenance)


def findings(session: Session) -> Findings:
    """Everything that the page shows."""
    settings, cells = session.settings, list(session.outline.cells.values())
    task: Any = next(iter(session.tasks.values()))
    words, published = getattr(task, "wording", None), getattr(task, "published", ((), ()))

    def each(of: Callable[[Session, Cell], Iterable[Any]]) -> list[Any]:
        return [row for cell in cells for row in of(session, cell)]

    rows = [_cell(session, cell) for cell in cells]
    return Findings(
        title=settings.report.title or "Training rows that harm the model",
        task=_sentence(session, cells),
        question=getattr(words, "question", ""),
        headline=BETWEEN.join(headline(session, cells[0])),
        share=settings.actions.fraction,
        selected_epoch=settings.train.selected_epoch,
        cells=rows,
        scored=each(_scored),
        free=each(_free),
        blocks=each(_blocks),
        cancellation=each(_cancelled),
        separated=each(lambda run, cell: separated(run, cell, flipped_rows(run, cell.name))),
        correlations=_correlations(session, cells),
        joint=_joint(session, cells),
        retrained=list(_retrained(session)),
        ranking=each(_lowest),
        conditioning=each(_conditioning),
        estimator_times=each(estimator_times),
        methods_published=list(published[0]),
        layers_published=list(published[1]),
        costs=stage_costs(session),
        deviations=[*getattr(words, "deviations", ()), *_deviations(session, cells[0])],
        warnings=warnings(session, rows),
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
    with telling("deviations()"):
        entries = {block.name: block.entries for block in cell.blocks.dense}
        return list(task.deviations(session.settings, entries))


# -- what the scores found -----------------------------------------------------------------


def _cell(session: Session, cell: Cell) -> Row:
    """Of a dataset and seed: its sizes, and how the model does that is scored. None: not known.

    majority_queries: those that always saying their most frequent class gets right;
    learned_nothing: the model is within two standard errors of that. label_ndr: what removing rows
    by their given label alone finds; within_labels: rows at random of the labels that the headline
    removes. history: METRICS by epoch of the training on all rows; best: the epoch scored, from 0.
    """
    stored, noise = train.stored_fit(session, cell.name), flipped_rows(session, cell.name)
    task: Any = session.task(cell.name)
    of = getattr(task, "cell", None)  # a study's dataset and seed
    told, labels, queries = suggested(session, cell), _labels(task), cell.rows[QUERY]
    most, right, by_one_class = by_split(task, "largest_class").get(QUERY), None, None
    if gradients.says_right(session, cell.name):
        right = int(scores.right_queries(session, cell).sum())
    unlearned, label_ndr = False, None
    if most is not None:
        by_one_class = round(most * queries)
        share = by_one_class / queries
        error = np.sqrt(share * (1.0 - share) / queries)
        unlearned = right is not None and right / queries <= share + 2.0 * error
    if labels is not None and noise is not None and noise.any():
        flipped, share = torch.from_numpy(noise), session.settings.actions.fraction
        label_ndr = metrics.ndr_of_labels(labels, flipped, share)
    rates = _rates(session, cell, all_scores(session, cell)[headline(session, cell)])
    return {
        "name": cell.name,
        "dataset": getattr(of, "dataset", cell.name),
        "seed": getattr(of, "seed", session.seed),
        "rows": cell.rows[TRAIN],
        "queries": queries,
        "correct_queries": right,
        "flips": None if noise is None else int(noise.sum()),
        "majority_queries": by_one_class,
        "learned_nothing": bool(unlearned),
        "suggested_wrong": None if told is None else told.wrong,
        "label_ndr": label_ndr,
        "within_labels": rates.get("within_labels"),
        "truncated": sum(by_split(task, "truncated").values()),
        "best": int(stored["best"]) if "best" in stored else None,
        "history": _history(stored),
    }


def _history(stored: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {key: stored[key].tolist() for key in METRICS if key in stored}


def _labels(task: Any) -> torch.Tensor | None:
    """int64 [N]: the class that each training row is labelled with; None where none is told."""
    told = isinstance(task, Predicting) and task.classes() is not None
    return torch.from_numpy(np.asarray(task.given())) if told else None


def _rates(session: Session, cell: Cell, scores_N: np.ndarray) -> Row:
    """What these scores find: NDR, area, the NDR that rows at random of the same given labels have
    (None where none are told), the noise curve and its tenths; {} where no wrong label is known."""
    noise, labels = flipped_rows(session, cell.name), _labels(session.task(cell.name))
    if noise is None or not noise.any():
        return {}
    share = session.settings.actions.fraction
    of = torch.from_numpy(lowest_first(scores_N)), torch.from_numpy(noise)
    within = None if labels is None else metrics.ndr_within_labels(of[0], labels, of[1], share)
    return {
        "ndr": metrics.ndr(*of, share),
        "auc": metrics.ndr_auc(*of),
        "within_labels": within,
        "deciles": metrics.noise_histogram(*of, min(10, len(noise))).tolist(),
        "curve": metrics.noise_shares(*of).tolist(),
    }


def _scored(session: Session, cell: Cell) -> Iterator[Row]:
    """Of every configuration: its rates, and a summary of its scores."""
    for key, scores_N in all_scores(session, cell).items():
        row: Row = {"cell": cell.name, "configuration": BETWEEN.join(key)}
        row |= dict(zip(("estimator", "group", "how"), key, strict=True))
        row |= dict.fromkeys(("ndr", "auc", "within_labels")) | _rates(session, cell, scores_N)
        yield row | {"scores": array_summary(scores_N)}


def _free(session: Session, cell: Cell) -> Iterator[Row]:
    """What ranking by a number that every run has anyway finds: "own loss", "gradient norm"."""
    for name, scores_N in free_rankings(session, cell).items():
        if rates := _rates(session, cell, scores_N):
            rates.pop("deciles")
            yield {"cell": cell.name, "configuration": name, **rates}


def _blocks(session: Session, cell: Cell) -> Iterator[Row]:
    """Of every parameter tensor its own rate; `layer` None outside numbered layers."""
    noise = flipped_rows(session, cell.name)
    if noise is None or not noise.any():
        return
    share, flipped = session.settings.actions.fraction, torch.from_numpy(noise)
    for (estimator, block), totals_HN in scores.block_totals(session, cell).items():
        (number, numbered), parts = layer(block), block.split(".")
        last = parts[-2] if len(parts) > 1 else block
        for how, totals_N in zip(HOWS, totals_HN, strict=True):
            ordered = torch.from_numpy(lowest_first(totals_N))
            yield {
                "cell": cell.name,
                "block": block,
                "layer": number if numbered else None,
                "module": next((name for name in MODULES if name in parts), last),
                "factor": "A" if "lora_A" in block else "B" if "lora_B" in block else "",
                "estimator": estimator,
                "how": how,
                "ndr": metrics.ndr(ordered, flipped, share),
                "auc": metrics.ndr_auc(ordered, flipped),
            }


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
    kept, per_cell = [key for key in named if key in every[0]], []
    for found in every if len(kept) > 1 else ():
        if all(key in found for key in kept):
            scores_MN = np.stack([found[key] for key in kept])
            usable = torch.from_numpy(scores_MN[:, np.isfinite(scores_MN).all(0)])
            per_cell.append(metrics.spearman_matrix(usable).numpy())
    if not per_cell:
        return None
    values_MM = np.apply_along_axis(finite_mean, 0, np.stack(per_cell))
    return {"title": title, "names": [named[key] for key in kept], "values_MM": values_MM}


def _retrained(session: Session) -> Iterator[Row]:
    """Each configuration's training on what it left; several may share a job. `test_accuracy`: the
    best over epochs (what Vitel and Chhabra report); `accuracy_at_best`: at the selected epoch (NaN
    where no test rows are)."""
    for filtered, stored in actions.results(session):
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
            "history": _history(stored),
        }


def _lowest(session: Session, cell: Cell) -> Iterator[Row]:
    """The first rows of `cell_ranking`, as the page's table has them."""
    for row in cell_ranking(session, cell)[: session.settings.report.rows]:
        told = {"cell": cell.name, "rank": row.pop("place"), "row": row.pop("row")}
        told |= {"score": row.pop("score"), "label": str(row.pop("label", ""))}
        told |= {FLIPPED: row.pop(FLIPPED, None), "text": str(row.pop("text", ""))}
        yield beside(told, row)


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
        rows = np.flatnonzero(~gradients.finite_rows(session, cell.name, split))
        numbers = rows.tolist()
        if isinstance(task, Numbered):
            numbers = np.asarray(task.numbers(split))[rows].tolist()
        elif split == TRAIN:
            numbers = [told["row"] for told in described_rows(task, rows)]
        if numbers:
            yield f"{cell.name} {split}".strip(), numbers
