"""A second question to a finished run: query rows that it did not have.

What the run did for its training rows (training, curvature, their gradients) is found again by its
keys; new rows cost their own gradients, the products with what is stored, and the scores.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distinf.config import RunConfig, load, resolve
from distinf.config_file import assign
from distinf.digest import digest
from distinf.engine import running
from distinf.engine.lease import held
from distinf.engine.recipe import Answer
from distinf.engine.run import refuse_unfinished, reopen
from distinf.engine.session import Session, session_of
from distinf.engine.verifying import QUERY, folder_of
from distinf.errors import InputError
from distinf.masking import masked
from distinf.runtime import RuntimeSettings, hand_out, open_runtime
from distinf.runtime.units import flatten
from distinf.tasks.identity import MODEL, rows_of, stated
from distinf.tasks.task import SPLITS

OTHER_ROWS = (
    "query: these settings make the training rows others; a query may change the evaluation rows "
    "alone"
)


@dataclass(frozen=True)
class Asked:
    """root: the folder below the run's that has scores and tables. name: what ranks the rows."""

    root: str
    name: str
    answers: Sequence[Answer]


def ask(
    folder: str,
    changes: Sequence[tuple[str, Any]],
    watch: running.Watcher,
    *,
    ranking: str = "",
    top: int = 10,
) -> Asked:
    """Scores of the training rows of the run in `folder` for other queries.

    changes  (dotted setting of the task, value), which make its evaluation rows others and leave
             its training rows as they are
    ranking  what the recipe can rank by; "": what the run's report ranks by
    top      most helpful and most harmful rows of each query, in top-CELL.csv and .json

    InputError for a run that is not finished or that is another task's by now, for changes that
    make training rows others, and for a recipe that cannot be asked.
    """
    config, session = load(folder), reopen(folder)
    asks = config.RECIPE.asks
    if asks is None:
        raise InputError(f"{folder}: its recipe, {config.recipe}, cannot be asked again")
    refuse_unfinished(session, config, folder)
    other = _other(config, changes)
    rows = {split: rows_of(other.identity, split) for split in SPLITS}
    name, stages, settings = asks.ranking(session, ranking, rows)
    late = session_of(_context(config, other, session, settings), torch.device("cpu"))
    late.refuse_other_data()
    with held(session.blobs):
        _carry_out(late, stages, config, watch)
        _refuse_other_training_rows(session, late)
        answers = list(asks.answers(late, name))
        kind = f"{QUERY}{late.context['late']}"
        root = folder_of(kind)
        hand_out(session.blobs, kind, dict(_files(root, answers, top)))
    return Asked(f"{session.blobs.root}/{root}", name, answers)


def _other(config: RunConfig, changes: Sequence[tuple[str, Any]]) -> RunConfig:
    """The run with other settings of its task."""
    raw = config.model_dump(mode="json", exclude={"provenance", "beside"})
    for key, value in changes:
        assign(raw, f"settings.{key.removeprefix('settings.')}", value, "query")
    other = resolve(raw, "query")
    if flatten(other.settings) == flatten(config.settings):
        raise InputError("query: these are the run's own queries; give --queries FILE, or --set")
    return other


def _context(
    config: RunConfig, other: RunConfig, session: Session, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's own, with the task of the new queries and their digest."""
    cells = other.RECIPE.cells(other.identity)
    if cells.keys() != session.tasks.keys():
        raise InputError("query: these settings make other datasets or seeds; a query may not")
    for cell, before in session.context["seen"].items():
        now = other.seen[cell]
        if any(before.get(name) != now.get(name) for name in (MODEL, "model")):
            raise InputError("query: these settings make another model; a query may not")
        if any(before.get(name) != now.get(name) for name in ("rows('train')", "batch('train')")):
            raise InputError(OTHER_ROWS)
    made = {**session.context, "beside": {}, "task_settings": other.settings, "seen": other.seen}
    stages = {key: {**value, **settings.get(key, {})} for key, value in made["settings"].items()}
    late = digest([{name: stated(cell) for name, cell in cells.items()}, masked(other.settings)])
    return {**made, "settings": stages, "late": late}


def _carry_out(
    session: Session, stages: Sequence[str], config: RunConfig, watch: running.Watcher
) -> None:
    """Only what is not there: in this process where the run's workers are its own and on CPUs."""
    runtime = config.runtime
    if runtime.address is None and not runtime.num_gpus:
        runtime = RuntimeSettings(kind="local", threads=runtime.threads)
    with contextlib.closing(open_runtime(runtime)) as opened:
        for stage in (s for s in session.recipe.working if s.name in stages):
            wanted = stage.wanted_units(session)
            if not stage.is_done(session, wanted):
                running.run_stage(session, stage, wanted, opened, watch)


def _refuse_other_training_rows(before: Session, after: Session) -> None:
    for cell, task in before.tasks.items():
        mine, other = before.task_of(cell), after.task_of(cell)
        ids = np.unique(np.linspace(0, task.rows("train") - 1, 64).astype(np.int64))
        alike = mine.rows("train") == other.rows("train")
        if alike:
            one, two = mine.batch("train", ids), other.batch("train", ids)
            alike = one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
        if not alike:
            raise InputError(OTHER_ROWS)


def _files(root: str, answers: Sequence[Answer], top: int) -> Iterator[tuple[str, bytes]]:
    for answer in answers:
        of = f"-{answer.cell}" if answer.cell else ""
        whole = io.BytesIO()
        np.save(whole, answer.scores_QN, allow_pickle=False)
        yield f"{root}/scores{of}.npy", whole.getvalue()
        rows = list(extremes(answer, top))
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
        yield f"{root}/top{of}.csv", table.getvalue().encode()
        yield f"{root}/top{of}.json", json.dumps(rows, indent=1).encode()


def extremes(answer: Answer, top: int) -> Iterator[dict[str, Any]]:
    """Of each query the most helpful rows (place 1, 2, …) and the most harmful (-1, -2, …)."""
    for query, scores_N in zip(answer.queries, answer.scores_QN, strict=True):
        order = np.argsort(-scores_N, kind="stable")[: int(np.isfinite(scores_N).sum())]
        count = min(top, len(order))
        places = [*range(1, count + 1), *range(-1, -count - 1, -1)]
        rows = np.concatenate([order[:count], order[::-1][:count]])
        about = {f"query_{key}": value for key, value in query.items()}
        for place, row, known in zip(places, rows.tolist(), answer.rows(rows), strict=True):
            yield {**about, "place": place, "score": float(scores_N[row]), **known}
