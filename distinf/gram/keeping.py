"""Trained weights and the rows that they are of, as files: of the scored models and of every job.

Under adapters/ in the run's folder, one folder for each: safetensors as the task has them, or
weights.safetensors, and rows.jsonl, what the task says of the rows that were trained on. An index
says which configurations share a job; it comes last.
"""

import json
from collections.abc import Mapping

import numpy as np

from distinf.blobs import Blobs
from distinf.gram import actions
from distinf.gram.session import TRAIN, Session
from distinf.gram.task import Exported, described_rows
from distinf.gram.train import WEIGHT, stored_fit
from distinf.tasks.task import Task

FOLDER = "adapters"
SCORED = "scored"
ROWS = "rows.jsonl"


def keep(session: Session) -> None:
    """What actions.adapters asks for; anew each time, from what is committed."""
    if not session.settings.actions.adapters:
        return
    folders: dict[str, str] = {}  # by job
    index: dict[str, dict[str, str]] = {}
    for cell in session.outline.cells.values():
        if cell.trained:
            folder = index.setdefault(cell.name, {})[SCORED] = _folder(cell.name, SCORED)
            rows = np.arange(cell.rows[TRAIN])
            fit = stored_fit(session, cell.name)
            _put(session.blobs, folder, session.task(cell.name), fit, rows)
    for filtered in actions.filterings(session):
        folder = _folder(filtered.cell, filtered.configuration)
        if filtered.job.id not in folders:
            folders[filtered.job.id] = folder
            fit = session.arrays(filtered.job)
            _put(session.blobs, folder, session.task(filtered.cell), fit, filtered.kept)
        index[filtered.cell][filtered.configuration] = folders[filtered.job.id]
    session.blobs.put(f"{FOLDER}/index.json", json.dumps(index, indent=1).encode())


def _folder(cell: str, configuration: str) -> str:
    return "/".join(filter(None, [FOLDER, cell, configuration.replace("/", "-")]))


def _put(
    blobs: Blobs, folder: str, task: Task, fit: Mapping[str, np.ndarray], rows: np.ndarray
) -> None:
    weights = {k.removeprefix(WEIGHT): v for k, v in fit.items() if k.startswith(WEIGHT)}
    for name, data in _files(task, weights).items():
        blobs.put(f"{folder}/{name}", data)
    lines = [json.dumps(row, ensure_ascii=False) for row in described_rows(task, rows)]
    blobs.put(f"{folder}/{ROWS}", ("\n".join(lines) + "\n").encode())


def _files(task: Task, weights: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
    if isinstance(task, Exported):
        return task.exported(weights)
    from safetensors.numpy import save

    return {"weights.safetensors": save(dict(weights))}
