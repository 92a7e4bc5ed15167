"""Values by trial, a dataset and seed each, and the columns that tables have of them."""

import math
from collections.abc import Iterable

from distinf.numerics import means
from distinf.numerics.bootstrap import Trials, differences, estimate
from distinf.report.gram.findings import Findings
from distinf.report.rows import Row

ALL_ROWS = "all rows"  # a model that was trained on them


def datasets(findings: Findings) -> list[str]:
    return list(dict.fromkeys(c["dataset"] for c in findings.cells))


def keys(findings: Findings) -> dict[str, tuple[int, int]]:
    """Cell -> (place of its dataset, seed), as the bootstrap draws them."""
    order = datasets(findings)
    return {c["name"]: (order.index(c["dataset"]), c["seed"]) for c in findings.cells}


def by_trial(
    findings: Findings, rows: Iterable[Row], what: str, times: float = 100.0
) -> dict[str, dict[tuple[int, int], float]]:
    """Configuration -> the value, so many times, of every trial that has one."""
    at, found = keys(findings), {}  # type: ignore[var-annotated]
    for row in rows:
        if row[what] is not None and math.isfinite(row[what]):
            found.setdefault(row["configuration"], {})[at[row["cell"]]] = times * row[what]
    return found


def with_interval(prefix: str, trials: Trials) -> Row:
    """Columns `prefix`mean, sd, low and high, each ending in _pct."""
    found = estimate(trials)
    return {f"{prefix}{name}_pct": getattr(found, name) for name in ("mean", "sd", "low", "high")}


def mean_sd(prefix: str, values: Iterable[float], unit: str = "_pct") -> Row:
    """`with_interval` without one, where none is shown: a bootstrap costs 10 ms or more."""
    mean, sd, _ = means.mean_sd(values)
    return {f"{prefix}mean{unit}": mean, f"{prefix}sd{unit}": sd}


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


def falling(value: float) -> float:
    """Sort key: largest first, and a missing one last."""
    return -value if math.isfinite(value) else math.inf
