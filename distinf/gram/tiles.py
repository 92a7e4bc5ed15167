"""The tiles of a cell's products: which there are, by phase and slab, and how they are read.

gram.py makes them. Shape legend: B blocks of a slab, Q queries, N training rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from distinf.engine.session import row_ranges
from distinf.gram.blocks import SPARSE, Block
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import EKFAC, OF_ALL_PAIRS, StageSettings
from distinf.gram.stored_gradients import finite_rows
from distinf.numerics.estimators import datainf
from distinf.runtime import Unit
from distinf.store import array_of, open_group

NAME = "gram"
PHASES = ("cross", "self", "sums", "correction")
SCORES_AT_ONCE = 1 << 20  # of a block that are held at once: what the scores' memory goes by
MOST_QUERIES_AT_ONCE = 128
PRODUCTS = "float64"  # of a run from before they were, none is read
FACTORS = (0.1, 10.0)  # of the damping: other ones that rankings are compared with
MOST_COMPARED = 10  # queries, the first ones
WORD_CROSS = {"tracin-we-top10": "top.train", "tracin-we-both10": "top.both"}


def phase_units(settings: StageSettings, cell: Cell, phase: str) -> list[Unit]:
    """The units of one phase of a cell, in slab and tile order."""
    return [u for slab in cell.blocks.slabs for u in slab_units(settings, cell, phase, slab)]


def slab_units(settings: StageSettings, cell: Cell, phase: str, slab: int) -> list[Unit]:
    """The units of one phase of a slab, in tile order; none where the phase is not needed."""
    wanted = settings.scores.estimators
    tiles = row_ranges(cell.rows[TRAIN], settings.gram.rows_per_tile)
    job = {"cell": cell.name, "phase": phase, "slab": slab, "products": PRODUCTS}
    # What else is stored beside them is part of their names, so that asking for more is more work.
    if phase == "sums":
        fisher_damping = settings.scores.damping.get("fisher") if "fisher" in wanted else None
        more: dict[str, Any] = {"datainf": "datainf" in wanted, "fisher": "fisher" in wanted}
        if EKFAC in wanted and slab != SPARSE:
            more[EKFAC] = settings.scores.damping.get(EKFAC)
        return [_unit(cell, 0, cell.rows[TRAIN], job, **more, fisher_damping=fisher_damping)]
    if phase == "cross" and slab == SPARSE:
        job["top"] = any(name in wanted for name in WORD_CROSS)
    if phase == "self":
        wide = any(not narrow(cell, block) for block in cell.blocks.of(slab))
        needed = {name for name in OF_ALL_PAIRS if wide or name != "fisher"}
        needed |= {"datainf"} if slab == SPARSE else set()
        if not needed & set(wanted):
            return []
        pairs = [(a, b, c, d) for a, b in tiles for c, d in tiles if c <= a]
        return [_unit(cell, a, b, job, columns=[c, d]) for a, b, c, d in pairs]
    if phase == "correction" and slab == SPARSE:
        if "datainf" not in wanted:
            return []
    elif phase == "correction":
        if not {"datainf", "fisher", EKFAC} & set(wanted):
            return []
        (sums,) = slab_units(settings, cell, "sums", slab)
        job["of"] = sums.id
    return [_unit(cell, a, b, job) for a, b in tiles]


def queries_at_once(rows: int) -> int:
    """How many queries' scores of `rows` training rows are held at once."""
    return min(max(SCORES_AT_ONCE // rows, 1), MOST_QUERIES_AT_ONCE)


def compared_queries(cell: Cell) -> int:
    """Of how many queries there are scores at other dampings; none of those asked afterwards.

    Their rows follow those of all queries: in U, among solved queries and in their products, so
    many for each of FACTORS."""
    return min(cell.rows[QUERY], MOST_COMPARED) if cell.keys == cell.asked_keys else 0


def narrow(cell: Cell, block: Block) -> bool:
    """Whether Fisher's inverse is taken in parameter space: it is the smaller system."""
    return block.slab != SPARSE and block.width <= cell.rows[TRAIN]


def _unit(cell: Cell, start: int, stop: int, job: Mapping[str, Any], **more: Any) -> Unit:
    keys = cell.keys if job["phase"] == "self" else cell.asked_keys
    return Unit(NAME, keys[NAME], start, stop, {**job, **more})


# -- what was stored -------------------------------------------------------------------------


def dampings(session: Session, cell: Cell, slab: int) -> list[float]:
    """DataInf's lambda of each block of a slab: the setting, or the authors' default."""
    return session.cached(("damping", cell.name, slab), lambda: _dampings(session, cell, slab))


def _dampings(session: Session, cell: Cell, slab: int) -> list[float]:
    given = session.settings.scores.damping.get("datainf")
    sqnorm_BN = tiled(session, cell, slab, "cross", "sqnorm")
    count = int(finite_rows(session, cell.name, TRAIN).sum())
    return [
        given or datainf.default_damping(float(sqnorm_N.sum()), count, block.entries)
        for block, sqnorm_N in zip(cell.blocks.of(slab), sqnorm_BN, strict=True)
    ]


def named(key: str, place: int) -> str:
    """The array of the block at `place` in its slab."""
    return f"{key}.{place:03d}"


def rows_of(
    session: Session, cell: Cell, slab: int, phase: str, key: str, start: int, stop: int
) -> np.ndarray:
    """[stop - start, N]: some rows of a block's array, its tiles side by side."""
    parts = []
    for unit in slab_units(session.settings, cell, phase, slab):
        manifest = session.manifest(unit)
        group = open_group(session.blobs, manifest)
        parts.append(array_of(group, manifest, key).values(start, stop))
    return np.concatenate(parts, axis=-1)


def tiled(session: Session, cell: Cell, slab: int, phase: str, key: str) -> np.ndarray:
    """[B, ..., N]: an array of all training rows, its tiles side by side."""
    wanted = slab_units(session.settings, cell, phase, slab)
    return np.concatenate([session.arrays(unit, [key])[key] for unit in wanted], axis=-1)


def self_gram(session: Session, cell: Cell, slab: int, place: int) -> np.ndarray:
    """fp64 [N, N] of the block at `place` in its slab."""
    count, key = cell.rows[TRAIN], named("self", place)
    gram_NN = np.empty((count, count))
    for unit in slab_units(session.settings, cell, "self", slab):
        c, d = unit.job["columns"]
        tile = session.arrays(unit, [key])[key]
        gram_NN[unit.start : unit.stop, c:d] = tile
        gram_NN[c:d, unit.start : unit.stop] = tile.T
    return gram_NN
