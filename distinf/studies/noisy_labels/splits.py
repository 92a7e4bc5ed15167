"""Which rows train, ask and test: stratified by label, disjoint, drawn by the seed."""

from collections.abc import Mapping

import numpy as np

from distinf.errors import InputError
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
    sizes (paper 003: MRPC 204 and 204); otherwise it is refused.
    """
    found: dict[str, np.ndarray] = {}
    for source, parts in _sources(table).items():
        rows = np.arange(len(table.labels))
        if source:
            assert table.splits is not None
            rows = np.flatnonzero(table.splits == source)
        wanted = {part: sizes[part] for part in parts}
        _check(source, len(rows), wanted, shrink)
        draw = generator(seed, f"split/{source}")
        found |= stratified(table.labels, rows, _shrunk(len(rows), wanted), draw)
    for part, rows in found.items():
        if len(np.unique(table.labels[rows])) < 2:
            raise InputError(
                f"data: all {len(rows)} {part} rows have the same label; both must occur"
            )
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
