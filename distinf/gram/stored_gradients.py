"""Per-sample gradients as they were stored: which units hold them, and their rows."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import row_ranges
from distinf.gram.session import QUERY, Cell, Session
from distinf.gram.settings import StageSettings
from distinf.numerics.sparse import SparseRows
from distinf.runtime import Unit

NAME = "gradients"
WORDS = ("words.offsets", "words.ids", "words.rows")
SAYS_RIGHT = "says_right"


def split_units(settings: StageSettings, cell: Cell, split: str) -> list[Unit]:
    """The units of one split of a cell, in row order."""
    keys = cell.asked_keys if split == QUERY else cell.row_keys
    return [
        Unit(NAME, keys[NAME], a, b, {"cell": cell.name, "split": split})
        for a, b in row_ranges(cell.rows[split], settings.gradients.rows_per_unit)
    ]


def as_tensor(stored: np.ndarray) -> Tensor:
    """float32 of what `as_stored` made."""
    if stored.dtype == np.uint16:
        return torch.from_numpy(stored).view(torch.bfloat16).float()
    return torch.from_numpy(stored)


def dense_rows(session: Session, name: str, split: str, slab: int, start: int, stop: int) -> Tensor:
    """fp32 [stop - start, P]: rows of a slab."""
    cell = session.cell(name)
    out = torch.empty(stop - start, cell.blocks.width(slab))
    key = f"dense.{slab:03d}"
    for unit, a, b in _overlaps(session, name, split, start, stop):
        part = session.arrays(unit, [key])[key]
        out[a - start : b - start] = as_tensor(part[a - unit.start : b - unit.start])
    return out


def sparse_rows(session: Session, name: str, split: str, start: int, stop: int) -> SparseRows:
    """The embedding's rows of samples start:stop."""
    parts = []
    for unit, a, b in _overlaps(session, name, split, start, stop):
        stored = session.arrays(unit, WORDS)
        offsets, ids, rows = (torch.from_numpy(stored[key]) for key in WORDS)
        words = session.cell(name).blocks.embedding
        vocabulary = words.entries // words.width if words else None
        whole = SparseRows(offsets, ids.long(), rows, vocabulary)
        parts.append(whole.select(torch.arange(a - unit.start, b - unit.start)))
    return SparseRows.cat(parts)


def _overlaps(
    session: Session, name: str, split: str, start: int, stop: int
) -> Iterator[tuple[Unit, int, int]]:
    for unit in split_units(session.settings, session.cell(name), split):
        a, b = max(start, unit.start), min(stop, unit.stop)
        if a < b:
            yield unit, a, b


def columns(session: Session, name: str, split: str, key: str) -> np.ndarray:
    """A column of all rows of a split: "finite", "loss", and for queries "correct"."""
    wanted = split_units(session.settings, session.cell(name), split)
    return np.concatenate([session.arrays(unit, [key])[key] for unit in wanted])


def says_right(session: Session, name: str) -> bool:
    """Whether the task says which queries the model gets right; where not, all count."""
    wanted = split_units(session.settings, session.cell(name), QUERY)
    return all(session.record(unit)["summary"][SAYS_RIGHT] for unit in wanted)


def finite_rows(session: Session, name: str, split: str) -> np.ndarray:
    """bool [rows]: which have a finite loss and gradient."""
    found: np.ndarray = session.cached(
        ("finite", name, split), lambda: columns(session, name, split, "finite")
    )
    return found
