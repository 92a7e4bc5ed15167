"""Stage gram: the products of gradients that every estimator is made of, slab by slab, in tiles.

cross       per block [Q, rows], dot products of the queries with a range of training rows; norms
self        per block [rows, columns] of training rows with training rows; only where an estimator
            needs it, and only the tiles on and below the diagonal
sums        over all training rows of a slab: DataInf's U = W T [Q, P] (W = cross / (lambda +
            |g|^2), see estimators/datainf.py); Fisher's (F + lambda)^-1 g_q [Q, P] of the blocks
            that are narrower than there are rows (the others go through self), and that of EK-FAC
            in every block; the sums that the cancellation effect needs; and a few rows' products
            with each other (paired.py)
correction  per block [Q, rows], U T^T, and the scores of such solved queries; for the embedding,
            whose U would be as wide as the vocabulary, W K_tt from the tiles of self

A tile's memory does not depend on the number of training rows. Gradients are stored in fp32 or
less; their products are taken, summed and stored in fp64, as what a damping divides is a small
difference of these. Sums over tiles are taken in their order.

Shape legend: B blocks of a slab, Q queries, P entries of a slab, M and N training rows of a tile.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from distinf.engine.stage import Stage
from distinf.gram.blocks import SPARSE, Block
from distinf.gram.gradients import row_bytes
from distinf.gram.paired import EACH, QUERIES, SELF, chosen
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session, pool_phases
from distinf.gram.settings import EKFAC, OF_ALL_PAIRS, OF_WORDS
from distinf.gram.solved import ekfac_queries, fisher_queries, moments_of, query_slab
from distinf.gram.stopwatch import TOOK, Stopwatch, by_width
from distinf.gram.stored_gradients import dense_rows, sparse_rows
from distinf.gram.tiles import (
    FACTORS,
    NAME,
    PHASES,
    WORD_CROSS,
    compared_queries,
    dampings,
    named,
    narrow,
    phase_units,
    queries_at_once,
    slab_units,
)
from distinf.numerics.estimators import datainf
from distinf.numerics.products import SLAB, add_weighted, products, sqnorms
from distinf.numerics.sparse import SparseRows, sparse_gram
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.runtime.units import by_part

LEAST_TILE = 32.0  # rows: smaller ones are too many
TOP_WORDS = 10  # Vitel and Chhabra, section 3.1: TracIn-WE-top10


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """All phases' units, of every cell and slab."""
    return [
        (unit, _cost(outline, cell, unit))
        for cell in outline.cells.values()
        for phase in PHASES
        for unit in phase_units(outline.settings, cell, phase)
    ]


def _cost(outline: Outline, cell: Cell, unit: Unit) -> Cost:
    slab, phase = unit.job["slab"], unit.job["phase"]
    queries, rows = cell.rows[QUERY], unit.stop - unit.start
    of_words = slab == SPARSE and phase == "correction"
    blocks, width = len(cell.blocks.of(slab)), _width(cell, slab, of_words)
    first, last = unit.job.get("columns", (0, queries))
    side = last - first
    tile = min(rows, outline.settings.gram.rows_per_tile)
    tiles, asked = (4.0 * (tile if of_words else width) * many for many in (tile, side))
    if phase in ("sums", "correction"):
        asked *= 2  # of float64, as the products of all phases are
    held = tiles + asked + min(8.0 * SLAB, 2 * tiles + 2 * asked)
    made = 8.0 * queries * width if phase == "sums" else 8.0 * blocks * side * rows
    wanted = outline.settings.scores.estimators
    passes = 1.0 if "datainf" in wanted or phase != "sums" else 0.0
    flops = 2.0 * passes * width * rows * side
    if phase == "sums" and "fisher" in wanted:
        sides = [block.width for block in cell.blocks.of(slab) if narrow(cell, block)]
        flops += sum(2.0 * (rows + queries) * p**2 + p**3 / 3.0 for p in sides)
        held += 8.0 * sum(p**2 for p in sides) + 16.0 * max(sides, default=0) ** 2
        made *= 2
    if EKFAC in wanted and slab != SPARSE and phase in ("sums", "correction"):
        held, made = 2 * held, 2 * made
    if phase == "sums":
        few = min(2 * EACH, rows)
        both = few + min(QUERIES, queries)
        flops += 2.0 * width * few * both
        held += 4.0 * width * both
        made += 8.0 * blocks * few * both
    moved = slab != SPARSE  # the embedding's rows stay on the host
    computed = tiles * (2 if phase == "self" else 1)  # both of its sides are tiles
    parts = {"device" if moved else "host": computed, "staged": tiles}
    parts["host"] = parts.get("host", 0.0) + tiles
    per_row = row_bytes(outline.settings.gradients, cell, slab)
    weigh = 8.0 * blocks * queries * rows if phase == "sums" else 0.0
    asked_for = {"cross": per_row * queries, "correction": 8.0 * queries * width}.get(phase, 0.0)
    largest = max((block.width for block in cell.blocks.of(slab)), default=1)
    levers = [Lever("gram.rows_per_tile", tile, n, LEAST_TILE, where=at) for at, n in parts.items()]
    levers += [Lever("gradients.slab", width, held, largest)] if moved else []
    device = {"tiles": held, "results": made}
    host = by_part({"tiles": tiles, "results": made}, {} if moved else device)
    return Cost(
        flops, made, host, device if moved else 0.0,
        staged=tiles if moved else 0.0, levers=tuple(levers),
        read=per_row * (rows + side * (phase == "self")) + weigh,
        loaded={f"{phase} {cell.name} {slab}": asked_for},
    )  # fmt: skip


def _width(cell: Cell, slab: int, of_words: bool) -> int:
    """Entries that a product of two rows goes over, about."""
    common = 32 if slab == SPARSE else 1  # distinct tokens that two rows have in common, at most
    return cell.rows[TRAIN] if of_words else common * cell.blocks.width(slab)


def run(session: Session, runtime: Runtime) -> None:
    """Phase by phase: DataInf's sums need all of cross, its correction all of the sums."""
    pool_phases(session, runtime, NAME, PHASES, phase_units)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    make, watch = PHASE[unit.job["phase"]], Stopwatch(session.device)
    arrays = make(session, unit, watch)
    at_once = queries_at_once(session.cell(unit.job["cell"]).rows[TRAIN])
    summary = {TOOK: watch.notes(), SELF: SELF in arrays}
    return session.commit(unit, attempt, arrays, summary=summary, chunk_rows=at_once)


def _needing(session: Session, *names: str) -> list[str]:
    """Those of these estimators that the run has; without names, all that need `cross`."""
    wanted = session.settings.scores.estimators
    return [e for e in wanted if (e in names if names else e not in OF_WORDS)]


# -- the phases ------------------------------------------------------------------------------


def _cross(session: Session, unit: Unit, watch: Stopwatch) -> dict[str, np.ndarray]:
    name, slab = unit.job["cell"], unit.job["slab"]
    blocks = session.cell(name).blocks.of(slab)
    if slab == SPARSE:
        return _sparse_cross(session, unit, by_width(blocks), watch)
    with watch.step(_needing(session), by_width(blocks)):
        train_NP = dense_rows(session, name, TRAIN, slab, unit.start, unit.stop).to(session.device)
        query_QP = query_slab(session, name, slab)
        return {
            **_blockwise("cross", blocks, query_QP, train_NP),
            "sqnorm": _sqnorms(blocks, train_NP),
            "query_sqnorm": _sqnorms(blocks, query_QP),
        }


def _sparse_cross(
    session: Session, unit: Unit, shares: Mapping[str, float], watch: Stopwatch
) -> dict[str, np.ndarray]:
    name, queries = unit.job["cell"], session.cell(unit.job["cell"]).rows[QUERY]
    with watch.step(session.settings.scores.estimators, shares):
        train = sparse_rows(session, name, TRAIN, unit.start, unit.stop)
        query: SparseRows = session.latest(
            "words", name, lambda: sparse_rows(session, name, QUERY, 0, queries)
        )
        found = {"sqnorm": train.sqnorms()[None].numpy()}
        found["query_sqnorm"] = query.sqnorms()[None].numpy()
        query, train = query.double(), train.double()
    with watch.step(_needing(session), shares):
        found[named("cross", 0)] = sparse_gram(query, train).numpy()
    if of_words := _needing(session, *WORD_CROSS):
        with watch.step(of_words, shares):
            top = train.top_rows(TOP_WORDS)
            found[named("top.train", 0)] = sparse_gram(query, top).numpy()
            both = sparse_gram(query.top_rows(TOP_WORDS), top)
            found[named("top.both", 0)] = both.numpy()
    return found


def _self(session: Session, unit: Unit, watch: Stopwatch) -> dict[str, np.ndarray]:
    name, slab = unit.job["cell"], unit.job["slab"]
    ranges = ((unit.start, unit.stop), tuple(unit.job["columns"]))
    cell, blocks = session.cell(name), session.cell(name).blocks.of(slab)
    if slab == SPARSE:
        with watch.step(_needing(session, "datainf", *OF_ALL_PAIRS), by_width(blocks)):
            words = (sparse_rows(session, name, TRAIN, a, b).double() for a, b in ranges)
            return {named("self", 0): sparse_gram(*words).numpy()}
    shares = by_width(blocks)
    small = {b.name: shares.pop(b.name) for b in blocks if narrow(cell, b)}  # Fisher needs none
    wanted = _needing(session, *OF_ALL_PAIRS)
    with watch.step(wanted, shares), watch.step([e for e in wanted if e != "fisher"], small):
        rows, columns = (
            dense_rows(session, name, TRAIN, slab, a, b).to(session.device) for a, b in ranges
        )
        return _blockwise("self", blocks, rows, columns)


def _sums(session: Session, unit: Unit, watch: Stopwatch) -> dict[str, np.ndarray]:
    cell, slab, device = session.cell(unit.job["cell"]), unit.job["slab"], session.device
    if slab == SPARSE:
        return _sparse_sums(session, cell)
    blocks, width = cell.blocks.of(slab), cell.blocks.width(slab)
    datainf_wanted = "datainf" in session.settings.scores.estimators
    asked = _rows_asked(cell) if datainf_wanted else 0
    summed_QP = torch.zeros(asked, width, dtype=torch.float64, device=device)
    sum_P, abs_P = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))
    damping_B = dampings(session, cell, slab) if datainf_wanted else []
    moments, paired = moments_of(session, cell, slab), chosen(session, cell, slab)
    narrow_ones = [blocks[place] for place in moments]
    for tile in slab_units(session.settings, cell, "cross", slab):
        with watch.step(_needing(session, "datainf", "fisher"), by_width(blocks)):
            train_NP = dense_rows(session, cell.name, TRAIN, slab, tile.start, tile.stop)
            train_NP = train_NP.to(device)
        if paired is not None:
            paired.see(tile.start, train_NP)
        sum_P += train_NP.sum(0, dtype=torch.float64)
        abs_P += train_NP.abs().sum(0, dtype=torch.float64)
        with watch.step(["fisher"], by_width(narrow_ones)):
            for place, moment_PP in moments.items():
                part_NP = train_NP[:, blocks[place].span].double()
                moment_PP.addmm_(part_NP.T, part_NP)
        if not datainf_wanted:
            continue
        with watch.step(["datainf"], by_width(blocks)):
            stored = session.arrays(tile)
            for k, block in enumerate(blocks):
                weights_QN = _weights(cell, stored, k, damping_B[k]).to(device)
                add_weighted(summed_QP[:, block.span], weights_QN, train_NP[:, block.span])
    found = {"sum": sum_P, "abs_sum": abs_P} | ({"weighted": summed_QP} if datainf_wanted else {})
    with watch.step(["fisher"], by_width(narrow_ones)):
        found |= fisher_queries(session, cell, slab, moments)
    if EKFAC in session.settings.scores.estimators:
        with watch.step([EKFAC], by_width(blocks)):
            found |= ekfac_queries(session, cell, slab)
    arrays = {key: value.cpu().numpy() for key, value in found.items()}
    return arrays | (paired.products() if paired is not None else {})


def _sparse_sums(session: Session, cell: Cell) -> dict[str, np.ndarray]:
    """The same over the embedding's rows, for the tokens that occur: ids [V], sums [V, D]."""
    every = [
        sparse_rows(session, cell.name, TRAIN, tile.start, tile.stop).ids.unique()
        for tile in slab_units(session.settings, cell, "cross", SPARSE)
    ]
    ids_V = torch.cat(every).unique()
    shape = len(ids_V), cell.blocks.width(SPARSE)
    sums = {key: torch.zeros(shape, dtype=torch.float64) for key in ("sum", "abs_sum")}
    paired = chosen(session, cell, SPARSE)
    for tile in slab_units(session.settings, cell, "cross", SPARSE):
        words = sparse_rows(session, cell.name, TRAIN, tile.start, tile.stop)
        if paired is not None:
            paired.see(tile.start, words)
        places = torch.searchsorted(ids_V, words.ids)
        sums["sum"].index_add_(0, places, words.rows.double())
        sums["abs_sum"].index_add_(0, places, words.rows.double().abs())
    found = {key: value.float().numpy() for key, value in sums.items()} | {"ids": ids_V.numpy()}
    return found | (paired.products() if paired is not None else {})


def _correction(session: Session, unit: Unit, watch: Stopwatch) -> dict[str, np.ndarray]:
    name, slab = unit.job["cell"], unit.job["slab"]
    blocks = session.cell(name).blocks.of(slab)
    if slab == SPARSE:
        with watch.step(["datainf"], by_width(blocks)):
            return {named("correction", 0): _sparse_correction(session, unit)}
    (sums,) = slab_units(session.settings, session.cell(name), "sums", slab)
    with watch.step(_needing(session, "datainf", "fisher", EKFAC), by_width(blocks)):
        stored = session.latest("sums", sums.id, lambda: session.arrays(sums))
        train_NP = dense_rows(session, name, TRAIN, slab, unit.start, unit.stop).to(session.device)
    found: dict[str, np.ndarray] = {}
    for place, block in enumerate(blocks):
        solved = {key: stored.get(named(key, place)) for key in ("fisher", EKFAC)}
        weighted = stored["weighted"][:, block.span] if "weighted" in stored else None
        for key, query_QP in {"correction": weighted, **solved}.items():
            if query_QP is not None:
                with watch.step(["datainf" if key == "correction" else key], {block.name: 1.0}):
                    solved_QP = torch.from_numpy(query_QP).to(session.device)
                    products_QN = products(solved_QP, train_NP[:, block.span])
                    found[named(key, place)] = products_QN.cpu().numpy()
    return found


def _sparse_correction(session: Session, unit: Unit) -> np.ndarray:
    """fp64 [Q, rows]."""
    cell = session.cell(unit.job["cell"])
    (damping,) = dampings(session, cell, SPARSE)
    tiles = {
        (tile.start, tile.job["columns"][0]): tile
        for tile in slab_units(session.settings, cell, "self", SPARSE)
    }
    summed_QN = torch.zeros(_rows_asked(cell), unit.stop - unit.start, dtype=torch.float64)
    for part in slab_units(session.settings, cell, "cross", SPARSE):
        cross = session.arrays(part, [named("cross", 0), "sqnorm"])
        weights_QM = _weights(cell, cross, 0, damping)
        # Only the tiles on and below the diagonal are stored.
        tile = tiles[max(part.start, unit.start), min(part.start, unit.start)]
        gram = torch.from_numpy(session.arrays(tile, [named("self", 0)])[named("self", 0)])
        summed_QN += weights_QM @ (gram if part.start >= unit.start else gram.T)
    return summed_QN.numpy()


PHASE = {"cross": _cross, "self": _self, "sums": _sums, "correction": _correction}


# -- pieces ----------------------------------------------------------------------------------


def _rows_asked(cell: Cell) -> int:
    """Q, and the queries that are compared at other dampings."""
    return cell.rows[QUERY] + len(FACTORS) * compared_queries(cell)


def _weights(cell: Cell, cross: Mapping[str, np.ndarray], place: int, damping: float) -> Tensor:
    """fp64 [Q and those compared, rows]: DataInf's W of a block and a range of training rows."""
    sqnorm_N = torch.from_numpy(cross["sqnorm"][place])
    products_QN = torch.from_numpy(cross[named("cross", place)])
    first_QN = products_QN[: compared_queries(cell)]
    parts = ((products_QN, 1.0), *((first_QN, factor) for factor in FACTORS))
    weights_QN = torch.cat([datainf.weights(part, sqnorm_N, f * damping) for part, f in parts])
    return weights_QN.nan_to_num(0.0)  # 0/0: no gradient at all


def _sqnorms(blocks: Sequence[Block], rows_NP: Tensor) -> np.ndarray:
    """fp64 [B, N]."""
    return np.stack([sqnorms(rows_NP[:, block.span]).cpu().numpy() for block in blocks])


def _blockwise(
    key: str, blocks: Sequence[Block], first_MP: Tensor, second_NP: Tensor
) -> dict[str, np.ndarray]:
    """fp64 [M, N] of each block: its products."""
    return {
        named(key, place): products(first_MP[:, b.span], second_NP[:, b.span]).cpu().numpy()
        for place, b in enumerate(blocks)
    }


STAGE = Stage(
    NAME, "products of gradients", needs=("gradients", "factors"),
    reads=("gram", "scores.damping.datainf"),
    uncounted=("scores.estimators", "scores.damping"),
    units=units, run=run,
)  # fmt: skip
