"""Which rows train, ask and test: stratified by class, disjoint, drawn by the seed.

Rows of one group (a pair, an author) are all in one part.
"""

from collections.abc import Mapping

import numpy as np

from distinf.errors import InputError
from distinf.studies.noisy_labels.classes import shown
from distinf.studies.noisy_labels.files import Table
from distinf.studies.noisy_labels.noise import generator

PARTS = ("train", "evaluation", "test")  # the evaluation rows are the queries
SETTING = {"train": "train_rows", "evaluation": "query_rows", "test": "test_rows"}


def split_rows(
    table: Table, sizes: Mapping[str, int], seed: int, *, shrink: bool
) -> dict[str, np.ndarray]:
    """Indices into the table by part, each in a drawn order.

    Training rows come from the source's train rows, queries and tests from its validation rows
    (tests from its test rows where it has some); from all rows where it has no splits.
    shrink: a source with too few rows is used whole, queries and tests in the proportion of their
    sizes (Vitel and Chhabra: MRPC 204 and 204); otherwise it is refused. With groups a part can be
    a few rows smaller than asked for: a group that does not fit is not cut.
    """
    _refuse_single_rows(table)
    found: dict[str, np.ndarray] = {}
    for source, parts in _sources(table).items():
        rows = np.arange(len(table.labels))
        if source:
            assert table.splits is not None
            rows = np.flatnonzero(table.splits == source)
        wanted = {part: sizes[part] for part in parts}
        _check(source, len(rows), wanted, shrink)
        draw = generator(seed, f"split/{source}")
        sizes_here = _shrunk(len(rows), wanted)
        if table.groups is None:
            found |= stratified(table.labels, rows, sizes_here, draw)
        else:
            found |= grouped(table.labels, table.groups, rows, sizes_here, draw)
    _check_parts(table, found, sizes)
    return {part: found[part] for part in PARTS}


def stratified(
    labels: np.ndarray, rows: np.ndarray, sizes: Mapping[str, int], draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """Disjoint parts of `rows`, each with the labels in the proportion of what is left of them."""
    pools = [draw.permutation(rows[labels[rows] == label]) for label in np.unique(labels[rows])]
    found = {}
    for part, size in sizes.items():
        taken = _quotas([len(pool) for pool in pools], size)
        chosen = [pool[:count] for pool, count in zip(pools, taken)]
        pools = [pool[count:] for pool, count in zip(pools, taken)]
        found[part] = draw.permutation(np.concatenate(chosen))
    return found


def grouped(
    labels: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray,
    sizes: Mapping[str, int],
    draw: np.random.Generator,
) -> dict[str, np.ndarray]:
    """As `stratified`, by whole groups; a group counts for the class of its first row."""
    _, first, of_row, counts = np.unique(
        groups[rows], return_index=True, return_inverse=True, return_counts=True
    )
    classes = labels[rows][first]
    pools = [draw.permutation(np.flatnonzero(classes == label)) for label in np.unique(classes)]
    found = {}
    for part, size in sizes.items():
        quotas = _quotas([int(counts[pool].sum()) for pool in pools], size)
        taken = [_fitting(counts[pool], quota) for pool, quota in zip(pools, quotas)]
        chosen = np.concatenate([pool[some] for pool, some in zip(pools, taken)])
        pools = [pool[~some] for pool, some in zip(pools, taken)]
        left = draw.permutation(np.concatenate(pools))
        more = left[_fitting(counts[left], size - int(counts[chosen].sum()))]
        pools = [pool[~np.isin(pool, more)] for pool in pools]
        here = np.isin(of_row, np.concatenate([chosen, more]))
        found[part] = draw.permutation(rows[here])
    return found


def _fitting(counts: np.ndarray, size: int) -> np.ndarray:
    """bool [groups]: one after another, those that leave no more than `size` rows in all."""
    taken = np.zeros(len(counts), dtype=bool)
    for place, count in enumerate(counts.tolist()):
        if count <= size:
            taken[place], size = True, size - count
    return taken


def _refuse_single_rows(table: Table) -> None:
    """A class of one row is a label mistyped, or nothing that can be learned and asked for."""
    counts = np.bincount(table.labels, minlength=len(table.classes))
    single = np.flatnonzero(counts == 1)
    if len(single):
        told = [
            f"{shown(table.classes[k])} (row {table.rows[table.labels == k][0]})"
            for k in single[:3].tolist()
        ]
        more = f" and {len(single) - 3} more" if len(single) > 3 else ""
        raise InputError(
            f"data.label: {', '.join(told)}{more} occurs in one row only; mend the label, leave "
            "the row out, or merge its class with another"
        )


def _check_parts(table: Table, found: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
    """InputError for a part of one class, for a class without training rows, for too few rows."""
    for part, rows in found.items():
        if table.groups is not None and len(rows) < max(2, sizes[part] / 2):
            raise InputError(
                f"data.group: only {len(rows)} {part} rows of {sizes[part]} (data.{SETTING[part]}) "
                "can be had without parting a group; ask for others, or leave data.group out"
            )
        if len(np.unique(table.labels[rows])) < 2:
            raise InputError(
                f"data: all {len(rows)} {part} rows have the same label; two at least must occur"
            )
    trained = np.unique(table.labels[found["train"]])
    for part in PARTS[1:]:
        unknown = np.setdiff1d(table.labels[found[part]], trained)
        if len(unknown):
            raise InputError(
                f"data: no training row has class {shown(table.classes[unknown[0]])}, which "
                f"{part} rows have; raise data.train_rows, or leave that class out"
            )


def _quotas(counts: list[int], size: int) -> list[int]:
    """`size` shared out in the proportion of `counts`, by the largest remainder."""
    exact = np.array(counts) * size / max(sum(counts), 1)
    taken = np.floor(exact).astype(int)
    last = np.argsort(taken - exact, kind="stable")[: size - taken.sum()]
    taken[last] += 1
    return taken.tolist()


def _sources(table: Table) -> dict[str, tuple[str, ...]]:
    """Which of the source's splits gives which parts; '' is all of it."""
    if table.splits is None:
        return {"": PARTS}
    if (table.splits == "test").any():
        return {"train": ("train",), "validation": ("evaluation",), "test": ("test",)}
    return {"train": ("train",), "validation": ("evaluation", "test")}


def _check(source: str, rows: int, wanted: Mapping[str, int], shrink: bool) -> None:
    if rows < 2 * len(wanted):
        what = f"split '{source}' has" if source else "the file has"
        raise InputError(f"data: {what} {rows} rows; {', '.join(wanted)} rows come from there")
    if rows < sum(wanted.values()) and not shrink:
        settings = " + ".join(f"data.{SETTING[part]}={size}" for part, size in wanted.items())
        what = f"'{source}' rows" if source else "rows"
        raise InputError(f"{settings}: there are only {rows} {what}; ask for fewer")


def _shrunk(rows: int, wanted: Mapping[str, int]) -> dict[str, int]:
    total = sum(wanted.values())
    if rows >= total:
        return dict(wanted)
    sizes = _quotas(list(wanted.values()), rows)
    return dict(zip(wanted, sizes))
