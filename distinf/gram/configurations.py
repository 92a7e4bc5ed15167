"""Configurations, "estimator/group/aggregation": their names and order, and the scores of each."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from distinf.errors import InputError
from distinf.gram.blocks import ALL, EMBEDDING, HEAD
from distinf.gram.scores import block_totals, cell_units
from distinf.gram.session import Cell, Outline, Session
from distinf.gram.settings import BASELINES, EKFAC, HOWS, JOINT, OF_WORDS

BETWEEN = "/"
# Estimators as pages list them; others follow by name.
ORDER = ("tracin", "cosine", "datainf", "fisher", JOINT, OF_WORDS[0])
Key = tuple[str, str, str]


def parts(name: str) -> Key | None:
    """("datainf", "all", "vote"); None of a baseline."""
    estimator, first, rest = name.partition(BETWEEN)
    group, last, how = rest.rpartition(BETWEEN)
    return (estimator, group, how) if first and last else None


def spoken(name: str) -> str:
    """As the page prints it: estimator / layers / aggregation."""
    return " / ".join(parts(name) or (name,))


def place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Sort key: those named in `order` first, the rest by name."""
    return (order.index(name), "") if name in order else (len(order), name)


def groups(names: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return sorted(set(names), key=group_order)


def group_order(name: str) -> tuple[int, int, str]:
    """Sort key: embedding, stretches of layers by their first one, other groups, head, all."""
    stretch = layers(name)
    if stretch is not None:
        return (1, stretch[0], name)
    return ({EMBEDDING: 0, HEAD: 3, ALL: 4}.get(name, 2), 0, name)


@lru_cache(maxsize=1024)
def layers(group: str) -> tuple[int, int] | None:
    """First and last layer of a group that is named by them, "00-05"."""
    match = re.fullmatch(r"(?:attention )?(\d+)-(\d+)", group)
    return (int(match[1]), int(match[2])) if match else None


def in_order(name: str) -> tuple[Any, ...]:
    """Sort key: by estimator, group and aggregation; then the baselines, then other names."""
    made = parts(name)
    if made is None:
        return (1, place(name, BASELINES), (), ())
    return (0, place(made[0], ORDER), group_order(made[1]), place(made[2], HOWS))


def configurations(outline: Outline, cell: Cell) -> list[str]:
    """Every configuration that there will be of a cell."""
    sparse = {cell.blocks.embedding.name} if cell.blocks.embedding else set()
    return [
        BETWEEN.join((estimator, group, how))
        for estimator in outline.settings.scores.estimators
        for group, members in cell.groups.items()
        if estimator not in OF_WORDS or set(members) <= sparse
        if estimator != EKFAC or not set(members) & sparse
        for how in HOWS
    ]


def check(outline: Outline) -> None:
    """InputError for a ranking by scores that there will not be."""
    for cell in outline.cells.values():
        named, known = outline.settings.report.ranking, configurations(outline, cell)
        if named and named not in known:
            raise InputError(f"report.ranking: {not_among(named, known)}")


def not_among(name: str, known: Sequence[str]) -> str:
    """What to say of a configuration that there is not."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    every = (", ".join(dict.fromkeys(part)) for part in zip(*(k.split(BETWEEN) for k in known)))
    hint = f"did you mean '{near[0]}'?" if near else "use one each of " + " / ".join(every)
    return f"'{name}' is not among the scores; {hint}"


# -- what was stored -------------------------------------------------------------------------


def all_scores(session: Session, cell: Cell) -> dict[Key, np.ndarray]:
    """(estimator, group, how) -> fp64 [N], low = detrimental; a mean is over the group's blocks."""
    return session.cached(("scores", cell.name), lambda: _all_scores(session, cell))


def _all_scores(session: Session, cell: Cell) -> dict[Key, np.ndarray]:
    found: dict[Key, np.ndarray] = {}
    totals = block_totals(session, cell)
    for estimator in session.settings.scores.estimators:
        for group, members in cell.groups.items():
            blocks = [totals[estimator, b] for b in members if (estimator, b) in totals]
            if len(blocks) == len(members):
                for how, summed_N in zip(HOWS, np.sum(blocks, axis=0), strict=True):
                    scale = len(blocks) if how == "mean" else 1
                    found[estimator, group, how] = summed_N / scale
    for unit in cell_units(session.settings, cell):
        if "group" in unit.job:
            totals_HN = session.arrays(unit)["totals"][0, :, 0]
            found |= {(JOINT, unit.job["group"], how): totals_HN[h] for h, how in enumerate(HOWS)}
    return found


def headline(session: Session, cell: Cell) -> Key:
    """What ranks a cell's rows: the setting, or votes of Fisher, DataInf or what there is.

    Chosen on data of its own (tests/benchmarks/RESULTS.md, "How the default ranking was chosen").
    """
    found = all_scores(session, cell)
    if named := session.settings.report.ranking:
        return named_configuration(named, found)
    estimators = ("fisher", "datainf", session.settings.scores.estimators[0])
    wanted = [(name, group, "vote") for name in estimators for group in (ALL, EMBEDDING)]
    return next((key for key in wanted if key in found), next(iter(found)))


def named_configuration(name: str, found: Mapping[Key, np.ndarray]) -> Key:
    """Its key; InputError with what there is."""
    key = parts(name)
    if key is None or key not in found:
        raise InputError(not_among(name, [BETWEEN.join(each) for each in found]))
    return key
