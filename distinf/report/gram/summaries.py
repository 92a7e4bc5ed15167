"""Findings over cells: orders, trials for the two-level bootstrap, one configuration's means."""

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from distinf.numerics.bootstrap import Estimate, Trials, differences, estimate
from distinf.numerics.metrics import auc_by_chance, ndr_by_chance
from distinf.report.gram.findings import (
    ALL,
    BASELINES,
    EMBEDDING,
    ESTIMATORS,
    HEAD,
    HOWS,
    CellFinding,
    Configuration,
    Findings,
)

Row = dict[str, Any]
Key = tuple[int, int]


def place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Sort key: those named in `order` first, the rest by name."""
    return (order.index(name), "") if name in order else (len(order), name)


def estimators(findings: Findings) -> list[str]:
    seen = {s.estimator for s in findings.scored} | {b.estimator for b in findings.blocks}
    return sorted(seen, key=lambda name: place(name, ESTIMATORS))


def hows(findings: Findings) -> list[str]:
    return sorted({s.how for s in findings.scored}, key=lambda name: place(name, HOWS))


def groups(names: Iterable[str]) -> list[str]:
    """Embedding, stretches of layers by their first one, other groups, head, all."""
    return sorted(set(names), key=_group)


def _group(name: str) -> tuple[int, int, str]:
    stretch = layers(name)
    if stretch is not None:
        return (1, stretch[0], name)
    return ({EMBEDDING: 0, HEAD: 3, ALL: 4}.get(name, 2), 0, name)


@lru_cache(maxsize=1024)
def layers(group: str) -> tuple[int, int] | None:
    """First and last layer of a group that is named by them, "00-05"."""
    match = re.fullmatch(r"(?:attention )?(\d+)-(\d+)", group)
    return (int(match[1]), int(match[2])) if match else None


def keys(findings: Findings) -> dict[str, Key]:
    """Cell -> (place of its dataset, seed), as the bootstrap draws them."""
    order = datasets(findings)
    return {c.name: (order.index(c.dataset), c.seed) for c in findings.cells}


def datasets(findings: Findings) -> list[str]:
    return list(dict.fromkeys(c.dataset for c in findings.cells))


def cell_of(findings: Findings) -> dict[str, CellFinding]:
    return {c.name: c for c in findings.cells}


def rates(findings: Findings) -> dict[str, dict[Key, float]]:
    """Configuration -> its NDR in percent by trial; those of known flips only."""
    return _by_configuration(findings, "ndr", 100)


def areas(findings: Findings) -> dict[str, dict[Key, float]]:
    """Configuration -> its AUC by trial."""
    return _by_configuration(findings, "auc", 1)


def _by_configuration(findings: Findings, what: str, times: float) -> dict[str, dict[Key, float]]:
    trial = keys(findings)
    found: dict[str, dict[Key, float]] = {}
    for scored in findings.scored:
        value = getattr(scored, what)
        if value is not None:
            found.setdefault(scored.name, {})[trial[scored.cell]] = times * value
    return dict(sorted(found.items(), key=lambda item: configuration_order(item[0])))


def accuracies(findings: Findings, what: str = "test_accuracy") -> dict[str, dict[Key, float]]:
    """Configuration or baseline -> its accuracy in percent by trial; baselines come last."""
    trial = keys(findings)
    found: dict[str, dict[Key, float]] = {}
    for r in findings.retrained:
        if math.isfinite(getattr(r, what)):
            found.setdefault(r.configuration, {})[trial[r.cell]] = 100 * getattr(r, what)
    return dict(sorted(found.items(), key=lambda item: configuration_order(item[0])))


def query_losses(findings: Findings) -> dict[str, list[float]]:
    """Configuration or baseline -> its least query loss in every cell; last, of all rows."""
    found: dict[str, list[float]] = {}
    for r in findings.retrained:
        found.setdefault(r.configuration, []).append(r.query_loss)
    found = dict(sorted(found.items(), key=lambda item: configuration_order(item[0])))
    whole = [min(c.history["query_loss"]) for c in findings.cells if c.history.get("query_loss")]
    return found | ({"all rows": whole} if found and whole else {})


def unfiltered(findings: Findings) -> dict[Key, float]:
    """Best test accuracy in percent of the training on all rows, by trial."""
    trial = keys(findings)
    best = {c.name: _best(c.history.get("test_accuracy", ())) for c in findings.cells}
    return {trial[name]: 100 * v for name, v in best.items() if math.isfinite(v)}


def _best(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return max(finite, default=math.nan)


def configuration_order(name: str) -> tuple[Any, ...]:
    made = Configuration.of(name)
    if made is None:
        return (1, place(name, BASELINES), (), ())
    return (0, place(made.estimator, ESTIMATORS), _group(made.group), place(made.how, HOWS))


def summary(prefix: str, found: Estimate, unit: str = "_pct") -> Row:
    """An estimate as columns `prefix`mean, sd, low and high, each ending in `unit`."""
    return {f"{prefix}{name}{unit}": getattr(found, name) for name in ("mean", "sd", "low", "high")}


def mean_sd(prefix: str, trials: Trials, unit: str = "_pct") -> Row:
    """`summary` without the interval, where none is shown: a bootstrap costs 10 ms or more."""
    finite = [v for v in trials.values() if math.isfinite(v)]
    mean = float(np.mean(finite)) if finite else math.nan
    sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return {f"{prefix}mean{unit}": mean, f"{prefix}sd{unit}": sd}


def falling(value: float) -> float:
    """Sort key: largest first, and a missing one last."""
    return -value if math.isfinite(value) else math.inf


def versus(ours: Trials, other: Trials, prefix: str) -> Row:
    """Paired difference in points, its interval, and in how many trials ours was higher."""
    apart = differences(ours, other)
    found = estimate(apart)
    return {
        f"{prefix}pairs": len(apart),
        f"{prefix}wins": sum(v > 0 for v in apart.values()),
        f"{prefix}ties": sum(v == 0 for v in apart.values()),
        f"{prefix}points": found.mean,
        f"{prefix}low_points": found.low,
        f"{prefix}high_points": found.high,
    }


def chance(findings: Findings) -> tuple[float, float] | None:
    """In percent: where 95 % of random rankings put the mean NDR over these cells."""
    known = [(c.rows, c.flips) for c in findings.cells if c.flips and c.rows > 1]
    if not known:
        return None
    low, high = ndr_by_chance(known, findings.headline.share)
    return 100 * low, 100 * high


def random_area(findings: Findings) -> float:
    """The AUC of a random ranking, mean over cells."""
    found = [auc_by_chance(c.rows, c.flips) for c in findings.cells if c.flips]
    return float(np.mean(found)) if found else math.nan


def spoken(name: str) -> str:
    """A configuration as the page prints it: estimator / layers / aggregation."""
    made = Configuration.of(name)
    return name if made is None else f"{made.estimator} / {made.group} / {made.how}"
