"""A second question to a finished run: query rows that it did not have, or rows to train on.

What the run did for its training rows (training, curvature, their gradients) is found again by its
keys; new rows cost their own gradients, the products with what is stored, and the scores.
Candidates are rows that the run was not trained on, scored as if added to its training rows: by its
model and its curvature, in which they have no part.
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
from distinf.engine.recipe import Answer, Asks
from distinf.engine.run import refuse_unfinished, reopen
from distinf.engine.session import Session, session_of
from distinf.engine.stage import Stage
from distinf.engine.verifying import QUERY, folder_of
from distinf.errors import InputError
from distinf.masking import masked
from distinf.runtime import RuntimeSettings, hand_out, open_runtime
from distinf.runtime.units import flatten
from distinf.tasks.identity import MODEL, needs_model, rows_of, stated
from distinf.tasks.task import SPLITS, Task

OTHER_ROWS = (
    "query: these settings make the training rows others; a query may change the evaluation rows "
    "alone"
)
OWN_QUERIES = "query: these are the run's own queries; give --queries FILE, or --set"
SAME_QUERIES = (
    "query: these settings leave the evaluation rows as they are, and the run has scored those"
)
OWN_ROWS = (
    "query: these candidates are the run's own training rows, which it has scored; give others, by "
    "--candidates FILE, or by --candidates and --set"
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
    candidates: Sequence[tuple[str, Any]] | None = None,
    ranking: str = "",
    top: int = 10,
) -> Asked:
    """Scores of the training rows of the run in `folder`, or of candidates, for other queries.

    changes     (dotted setting of the task, value), which make its evaluation rows others and leave
                its training rows as they are; none: the run's own queries, if candidates are scored
    candidates  likewise; with these and `changes` the task's training rows are the candidates
    ranking     what the recipe can rank by; "": what the run's report ranks by
    top         most helpful and most harmful rows of each query, in top-CELL.csv and .json

    InputError for a run that is not finished or that is another task's by now, for changes that
    make training rows others, for candidates that are the training rows, and for a recipe that
    cannot be asked.
    """
    config, session = load(folder), reopen(folder)
    asks = asks_of(config, folder, candidates is not None)
    refuse_unfinished(session, config, folder)
    own = candidates is not None and not changes
    other = config if own else _other(config, changes, OWN_QUERIES)
    rows = None if own else {split: rows_of(other.identity, split) for split in SPLITS}
    name, stages, settings = asks.ranking(session, ranking, rows, candidates is not None)
    late = session if own else _late(other, session, settings)
    work = [(late, stage) for stage in session.recipe.working if stage.name in stages]
    scored = late
    if candidates is not None:
        scored = _of_candidates(other, candidates, late, settings, name)
        work += [(scored, stage) for stage in asks.candidates[1:]]
    scored.refuse_other_data()
    with held(session.blobs):
        if candidates is not None:  # a file that cannot be read is told before any work
            _carry_out([(scored, asks.candidates[0])], config, watch)
            if _same_training_rows(session, scored):
                raise InputError(OWN_ROWS)
        _carry_out(work, config, watch)
        if late is not session and not _same_training_rows(session, late):
            raise InputError(OTHER_ROWS)
        if late is not session and _same_queries(session, late):
            raise InputError(SAME_QUERIES)
        answers = list(asks.answers(scored, name))
        kind = f"{QUERY}{scored.context['late']}"
        root = folder_of(kind)
        hand_out(session.blobs, kind, dict(_files(root, answers, top)))
    return Asked(f"{session.blobs.root}/{root}", name, answers)


def asks_of(config: RunConfig, folder: str, candidates: bool) -> Asks:
    """How the run's recipe is asked; InputError where it cannot be, or not about candidates."""
    asks = config.RECIPE.asks
    if asks is None or (candidates and not asks.candidates):
        about = "" if asks is None else " about candidates"
        raise InputError(f"{folder}: its recipe, {config.recipe}, cannot be asked again{about}")
    return asks


def _other(config: RunConfig, changes: Sequence[tuple[str, Any]], same: str) -> RunConfig:
    """The run with other settings of its task; InputError `same` where they are its own."""
    raw = config.model_dump(mode="json", exclude={"provenance", "variations"})
    for key, value in changes:
        assign(raw, f"settings.{key.removeprefix('settings.')}", value, "query")
    other = resolve(raw, "query")
    if flatten(other.settings) == flatten(config.settings):
        raise InputError(same)
    return other


def _late(other: RunConfig, session: Session, settings: Mapping[str, Any]) -> Session:
    """The run's own, with the task of the new queries and their digest."""
    cells = _cells(other, session)
    for cell, before in session.context["seen"].items():
        now = other.seen[cell]
        if any(before.get(name) != now.get(name) for name in ("rows('train')", "batch('train')")):
            raise InputError(OTHER_ROWS)
    late = digest([cells, masked(other.settings)])
    return _asking(other, session, settings, late=late)


def _of_candidates(
    other: RunConfig,
    changes: Sequence[tuple[str, Any]],
    asked: Session,
    settings: Mapping[str, Any],
    name: str,
) -> Session:
    """A session whose training rows are the candidates: `asked` has the queries."""
    pool = _other(other, changes, OWN_ROWS)
    cells = _cells(pool, asked)
    before = asked.context["seen"].items()
    if all(_training(pool.seen[cell]) == _training(seen) for cell, seen in before):
        raise InputError(OWN_ROWS)
    late = digest(["candidates", asked.context.get("late", ""), cells, masked(pool.settings)])
    return _asking(pool, asked, settings, late=late, asked=asked.context, ranking=name)


def _training(seen: Mapping[str, str]) -> dict[str, str]:
    """What is seen of a task's training rows, where it has them from the start, or of all rows."""
    of = ("rows('train')", "batch('train')")
    whole = {name: text for name, text in seen.items() if not needs_model(name)}
    return {name: whole[name] for name in of} if of[1] in whole else whole


def _asking(
    other: RunConfig, session: Session, settings: Mapping[str, Any], **more: Any
) -> Session:
    made = {
        **session.context,
        "variations": {},
        "task_settings": other.settings,
        "seen": other.seen,
    }
    stages = {key: {**value, **settings.get(key, {})} for key, value in made["settings"].items()}
    return session_of({**made, "settings": stages, **more}, torch.device("cpu"))


def _cells(other: RunConfig, session: Session) -> dict[str, dict[str, str]]:
    """The digests of each cell; InputError where there are other cells, or models."""
    cells = other.RECIPE.cells(other.identity)
    if cells.keys() != session.tasks.keys():
        raise InputError("query: these settings make other datasets or seeds; a query may not")
    for cell, before in session.context["seen"].items():
        now = other.seen[cell]
        if any(before.get(name) != now.get(name) for name in (MODEL, "model")):
            raise InputError("query: these settings make another model; a query may not")
    return {name: stated(cell) for name, cell in cells.items()}


def _carry_out(
    work: Sequence[tuple[Session, Stage]], config: RunConfig, watch: running.Watcher
) -> None:
    """Only what is not there: in this process where the run's workers are its own and on CPUs."""
    runtime = config.runtime
    if runtime.address is None and not runtime.num_gpus:
        runtime = RuntimeSettings(kind="local", threads=runtime.threads)
    with contextlib.closing(open_runtime(runtime)) as opened:
        for session, stage in work:
            wanted = stage.wanted_units(session)
            if not stage.is_done(session, wanted):
                running.run_stage(session, stage, wanted, opened, watch)


def _same_training_rows(before: Session, after: Session) -> bool:
    """Of every cell, as many, and those of a sample alike."""
    return all(_alike(*tasks, "train", 64) for tasks in _tasks(before, after))


def _same_queries(before: Session, after: Session) -> bool:
    """Of every cell all of them."""
    split = SPLITS[1]
    return all(_alike(*tasks, split, tasks[0].rows(split)) for tasks in _tasks(before, after))


def _tasks(before: Session, after: Session) -> Iterator[tuple[Task, Task]]:
    return ((before.task_of(cell), after.task_of(cell)) for cell in before.tasks)


def _alike(mine: Task, other: Task, split: str, most: int) -> bool:
    """As many rows, and `most` of them alike."""
    count = mine.rows(split)
    if count != other.rows(split):
        return False
    ids = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
    return all(_same_batch(mine, other, split, ids[k : k + 64]) for k in range(0, len(ids), 64))


def _same_batch(mine: Task, other: Task, split: str, ids: np.ndarray) -> bool:
    one, two = mine.batch(split, ids), other.batch(split, ids)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def _files(root: str, answers: Sequence[Answer], top: int) -> Iterator[tuple[str, bytes]]:
    for answer in answers:
        of = f"-{answer.cell}" if answer.cell else ""
        whole = io.BytesIO()
        np.save(whole, answer.scores_QN, allow_pickle=False)
        yield f"{root}/scores{of}.npy", whole.getvalue()
        rows = list(answer.extremes(top))
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
        yield f"{root}/top{of}.csv", table.getvalue().encode()
        yield f"{root}/top{of}.json", json.dumps(rows, indent=1).encode()
