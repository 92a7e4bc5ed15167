"""What a run found, read from its committed arrays: the page's input, and the ranked rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from distinf.gram import actions, gradients, scores, tiles, train
from distinf.gram.actions import flipped_rows, lowest_first
from distinf.gram.blocks import SPARSE, layer
from distinf.gram.paired import Separated, separated
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import HOWS
from distinf.gram.task import METRICS, Deviating, Numbered, described_rows
from distinf.numerics.cancellation import cancellation, norm_cancellation
from distinf.numerics.metrics import (
    ndr,
    ndr_auc,
    ndr_of_labels,
    ndr_within_labels,
    noise_histogram,
    noise_shares,
)
from distinf.report.gram import findings as page
from distinf.report.gram import score_correlations
from distinf.report.gram.estimator_times import estimator_times
from distinf.report.gram.free_rankings import (
    FLIPPED,
    SUGGESTED,
    free_rankings,
    own_columns,
    suggested,
)
from distinf.report.gram.warnings import (
    by_split,
    given_labels,
    learned_nothing,
    majority_queries,
    summary,
    warnings,
)
from distinf.report.provenance import provenance_of, stage_costs
from distinf.report.rows import array_summary
from distinf.tasks.notes import beside
from distinf.tasks.task import telling

MODULES = ("query_key_value", "qkv_proj", "query", "value", "key", "dense", "q_proj", "k_proj",
           "v_proj", "o_proj", "c_attn", "c_proj")  # fmt: skip


def findings(session: Session) -> page.Findings:
    """Everything that the page shows."""
    settings, outline = session.settings, session.outline
    cells = list(outline.cells.values())
    first: Any = next(iter(session.tasks.values()))
    words = getattr(first, "wording", None)
    published = getattr(first, "published", ((), ()))
    estimator, group, how = scores.headline(session, cells[0])
    return page.Findings(
        title=settings.report.title or "Training rows that harm the model",
        task=_sentence(session, cells),
        question=getattr(words, "question", ""),
        headline=page.Headline(estimator, group, how, settings.actions.fraction),
        selected_epoch=settings.train.selected_epoch,
        cells=[_cell(session, cell) for cell in cells],
        scored=[found for cell in cells for found in _scored(session, cell)],
        free=[found for cell in cells for found in _free(session, cell)],
        blocks=[found for cell in cells for found in _blocks(session, cell)],
        cancellation=[found for cell in cells for found in _cancelled(session, cell)],
        separated=[found for cell in cells for found in _separated(session, cell)],
        correlations=score_correlations.correlations(session, cells),
        joint=score_correlations.joint(session, cells),
        retrained=list(_retrained(session)),
        ranking=[row for cell in cells for row in _top(session, cell)],
        conditioning=[found for cell in cells for found in _conditioning(session, cell)],
        costs=stage_costs(session),
        estimator_times=[found for cell in cells for found in estimator_times(session, cell)],
        deviations=[*getattr(words, "deviations", ()), *_deviations(session, cells[0])],
        methods_published=list(published[0]),
        layers_published=list(published[1]),
        warnings=warnings(session, cells),
        quarantined=_quarantined(session, cells),
        provenance=provenance_of(session),
    )  # fmt: skip


def _sentence(session: Session, cells: Sequence[Cell]) -> str:
    first, settings = cells[0], session.settings
    trained = sum(block.entries for block in first.blocks.dense)
    model = f"A model of {first.shapes.parameters:,} parameters"
    made = (
        f"was fine-tuned on {first.rows[TRAIN]:,} rows" if first.trained else "was taken as it is"
    )
    kept = summary(session.task(first.name)).get("vocabulary")
    model += f" (its embedding cut to the {kept:,} tokens that occur)" if kept else ""
    many = f", in {len(cells)} runs" if len(cells) > 1 else ""
    return (
        f"{model} {made}{many}; each training row's influence on {first.rows[QUERY]:,} query rows "
        f"was computed from the gradients of {trained:,} parameters in {len(first.blocks.dense)} "
        f"blocks by {len(settings.scores.estimators)} estimators."
    )


def _deviations(session: Session, cell: Cell) -> list[str]:
    task = session.task(cell.name)
    if not isinstance(task, Deviating):
        return []
    with telling("deviations()"):
        entries = {block.name: block.entries for block in cell.blocks.dense}
        return list(task.deviations(session.settings, entries))


def _history(stored: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {key: stored[key].tolist() for key in METRICS if key in stored}


def _cell(session: Session, cell: Cell) -> page.CellFinding:
    stored = train.stored_fit(session, cell.name)
    noise = flipped_rows(session, cell.name)
    task: Any = session.task(cell.name)
    of = getattr(task, "cell", None)  # a study's dataset and seed
    right, told = int(scores.right_queries(session, cell).sum()), suggested(session, cell)
    return page.CellFinding(
        name=cell.name,
        dataset=getattr(of, "dataset", cell.name),
        seed=getattr(of, "seed", session.seed),
        rows=cell.rows[TRAIN],
        queries=cell.rows[QUERY],
        correct_queries=right if gradients.says_right(session, cell.name) else None,
        flips=None if noise is None else int(noise.sum()),
        suggested_wrong=None if told is None else told.wrong,
        history=_history(stored),
        best=int(stored["best"]) if "best" in stored else None,
        truncated=sum(by_split(task, "truncated").values()),
        majority_queries=majority_queries(session, cell),
        learned_nothing=learned_nothing(session, cell),
        label_ndr=_by_label(session, cell),
    )


def _by_label(session: Session, cell: Cell) -> float | None:
    labels, noise = given_labels(session, cell), flipped_rows(session, cell.name)
    if labels is None or noise is None or not noise.any():
        return None
    return ndr_of_labels(labels, torch.from_numpy(noise), session.settings.actions.fraction)


def _rates(session: Session, cell: Cell, scores_N: np.ndarray) -> dict[str, Any]:
    """What these scores find; {} where no wrong label is known."""
    noise, labels = flipped_rows(session, cell.name), given_labels(session, cell)
    if noise is None or not noise.any():
        return {}
    share = session.settings.actions.fraction
    ordered, flipped = torch.from_numpy(lowest_first(scores_N)), torch.from_numpy(noise)
    return {
        "ndr": ndr(ordered, flipped, share),
        "auc": ndr_auc(ordered, flipped),
        "within_labels": None
        if labels is None
        else ndr_within_labels(ordered, labels, flipped, share),
        "deciles": noise_histogram(ordered, flipped, min(10, len(noise))).tolist(),
        "curve": noise_shares(ordered, flipped).tolist(),
    }


def _scored(session: Session, cell: Cell) -> Iterator[page.Scored]:
    for (estimator, group, how), scores_N in scores.all_scores(session, cell).items():
        rates = _rates(session, cell, scores_N)
        yield page.Scored(cell.name, estimator, group, how, scores=array_summary(scores_N), **rates)


def _free(session: Session, cell: Cell) -> Iterator[page.FreeRanking]:
    for name, scores_N in free_rankings(session, cell).items():
        rates = _rates(session, cell, scores_N)
        rates.pop("deciles", None)
        if rates:
            yield page.FreeRanking(cell.name, name, **rates)


def _blocks(session: Session, cell: Cell) -> Iterator[page.BlockScore]:
    noise = flipped_rows(session, cell.name)
    if noise is None or not noise.any():
        return
    share = session.settings.actions.fraction
    for (estimator, block), totals_HN in scores.block_totals(session, cell).items():
        number, numbered = layer(block)
        for h, how in enumerate(HOWS):
            ordered = torch.from_numpy(lowest_first(totals_HN[h]))
            flipped = torch.from_numpy(noise)
            yield page.BlockScore(
                cell.name, block, number if numbered else None, _module(block), _factor(block),
                estimator, how, ndr(ordered, flipped, share), ndr_auc(ordered, flipped),
            )  # fmt: skip


def _module(block: str) -> str:
    parts = block.split(".")
    return next((name for name in MODULES if name in parts), parts[-2] if len(parts) > 1 else block)


def _factor(block: str) -> str:
    return "A" if "lora_A" in block else "B" if "lora_B" in block else ""


def _cancelled(session: Session, cell: Cell) -> Iterator[page.Cancelled]:
    """Each group's cancellation effect (Vitel and Chhabra, Eq. 7), in L1 and by norms."""
    stored = {}
    for slab in cell.blocks.slabs:
        (unit,) = tiles.slab_units(session.settings, cell, "sums", slab)
        arrays = session.arrays(unit, ["sum", "abs_sum"])
        sqnorm_BN = tiles.tiled(session, cell, slab, "cross", "sqnorm")
        for place, block in enumerate(cell.blocks.of(slab)):
            span = slice(None) if slab == SPARSE else block.span
            stored[block.name] = (
                torch.from_numpy(arrays["abs_sum"][span]).flatten(),
                torch.from_numpy(arrays["sum"][span]).flatten(),
                torch.from_numpy(sqnorm_BN[place]),
            )
    for group, members in cell.groups.items():
        above, sums, sqnorms = zip(*(stored[m] for m in members), strict=True)
        sum_P, norms_N = torch.cat(sums), torch.stack(sqnorms).sum(0).sqrt()
        found = cancellation(torch.cat(above), sum_P)
        yield page.Cancelled(
            cell.name, group, found.l1, norm_cancellation(norms_N, sum_P), found.least,
            found.median, found.most,
        )  # fmt: skip


def _separated(session: Session, cell: Cell) -> Iterator[Separated]:
    return separated(session, cell, flipped_rows(session, cell.name))


def _retrained(session: Session) -> Iterator[page.Retrained]:
    for filtered, stored in actions.results(session):
        noise = flipped_rows(session, filtered.cell)
        accuracy = stored.get("test_accuracy", np.array([np.nan]))
        best = int(stored["best"]) if "test_accuracy" in stored else 0
        yield page.Retrained(
            cell=filtered.cell,
            configuration=filtered.configuration,
            test_accuracy=_largest(accuracy),
            accuracy_at_best=float(accuracy[best]),
            query_loss=float(np.nanmin(stored["query_loss"])),
            kept=len(filtered.kept),
            job=filtered.job.id,
            kept_flips=None if noise is None else int(noise[filtered.kept].sum()),
            history=_history(stored),
        )


def _largest(values: np.ndarray) -> float:
    """NaN where none is a number."""
    return float(np.nanmax(values)) if np.isfinite(values).any() else float("nan")


def cell_ranking(session: Session, cell: Cell) -> list[dict[str, Any]]:
    """Every training row of a cell, lowest score first: its place, its number in the data, score,
    own loss, gradient norm, what the task can say of it, and the label to put in place of a wrong
    one, where the task tells classes. A row without a score (its gradient is not finite) comes
    first with an empty one."""
    key = scores.headline(session, cell)
    scores_N = scores.all_scores(session, cell)[key]
    order = np.argsort(lowest_first(scores_N), kind="stable")
    noise = flipped_rows(session, cell.name)
    own, labels = own_columns(session, cell), suggested(session, cell)
    task = session.task(cell.name)
    found = []
    for place, (row, told) in enumerate(zip(order.tolist(), described_rows(task, order)), 1):
        line = {"place": place, "score": float(scores_N[row])}
        line |= {name: float(values[row]) for name, values in own.items()}
        line |= {} if noise is None else {FLIPPED: bool(noise[row])}
        line |= {} if labels is None else {SUGGESTED: labels.labels[row]}
        found.append(beside(line, told, kept=(FLIPPED, SUGGESTED)))
    return found


def _top(session: Session, cell: Cell) -> Iterator[page.RankedRow]:
    shown = ("place", "score", "flipped", "row", "text", "label")
    for row in cell_ranking(session, cell)[: session.settings.report.rows]:
        yield page.RankedRow(
            cell=cell.name,
            rank=row["place"],
            row=row["row"],
            score=row["score"],
            text=str(row.get("text", "")),
            label=str(row.get("label", "")),
            flipped=row.get("flipped"),
            columns={k: v for k, v in row.items() if k not in shown},
        )


def _conditioning(session: Session, cell: Cell) -> Iterator[page.Conditioning]:
    for unit in scores.cell_units(session.settings, cell):
        for note in session.record(unit)["summary"]["notes"]:
            if "condition" in note:
                yield page.Conditioning(
                    cell.name, note["estimator"], note["block"], note["damping"], note["condition"]
                )


def _quarantined(session: Session, cells: Sequence[Cell]) -> dict[str, list[int]]:
    found = {}
    for cell in cells:
        for split in (TRAIN, QUERY):
            rows = np.flatnonzero(~gradients.finite_rows(session, cell.name, split))
            if len(rows):
                numbers = _numbers(session.task(cell.name), split, rows)
                found[f"{cell.name} {split}".strip()] = numbers
    return found


def _numbers(task: Any, split: str, rows: np.ndarray) -> list[int]:
    """The rows' numbers in the user's own data, where the task knows them."""
    if isinstance(task, Numbered):
        return np.asarray(task.numbers(split))[rows].tolist()
    return [told["row"] for told in described_rows(task, rows)] if split == TRAIN else rows.tolist()
