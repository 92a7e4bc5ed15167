"""Configurations, "estimator/group/aggregation": their names, and the order that tables have."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from distinf.gram.blocks import ALL, EMBEDDING, HEAD
from distinf.gram.settings import BASELINES, HOWS

BETWEEN = "/"
ESTIMATORS = ("tracin", "cosine", "datainf", "fisher", "fisher-joint", "tracin-we-top10")


def parts(name: str) -> tuple[str, str, str] | None:
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
    return (0, place(made[0], ESTIMATORS), group_order(made[1]), place(made[2], HOWS))
