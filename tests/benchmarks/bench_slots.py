"""Influence against choices of rows that need none, over several runs of the spectral recipe.

    python -m tests.benchmarks.bench_slots runs/seed0 runs/seed1 runs/seed2

Prints what each selection closed, and helpful minus every baseline and minus the best of them,
which for each target is the one that did best on all other targets and runs. Two intervals of
95 %: a bootstrap over the runs' targets, then the trials of each, and Student's over the runs'
means, which knows that targets of one run share its model.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from distinf.numerics.bootstrap import Trials, best_elsewhere, differences, estimate
from distinf.report.spectral.findings import BASELINES, BEST, SELECTED


def trials_of(runs: list[str]) -> dict[str, Trials]:
    """Selection -> trials of the headline; a draw is a run's targets of one condition."""
    found: dict[str, dict] = {}
    draws: dict[tuple[int, str], int] = {}
    for place, run in enumerate(runs):
        with open(Path(run, "report", "trials.csv"), newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                draw = draws.setdefault((place, row["condition"]), len(draws))
                key = draw, (place, row["target"], row["seed"])
                found.setdefault(row["selection"], {})[key] = float(
                    row["gap_reduction_pct"] or "nan"
                )
    return found


def by_run(values: Trials) -> tuple[float, float, float]:
    """Mean over the runs' means, and Student's interval."""
    runs = sorted({trial[0] for _, trial in values})
    means = [np.mean([v for (_, trial), v in values.items() if trial[0] == run]) for run in runs]
    half = stats.t.ppf(0.975, len(runs) - 1) * np.std(means, ddof=1) / np.sqrt(len(runs))
    return float(np.mean(means)), float(np.mean(means) - half), float(np.mean(means) + half)


def told(name: str, values: Trials) -> str:
    e, (mean, low, high) = estimate(values), by_run(values)
    wins = sum(v > 0 for v in values.values())
    return (
        f"{name:32} {e.mean:6.1f}  over targets {e.low:6.1f} to {e.high:5.1f}  over runs "
        f"{mean:6.1f} ({low:6.1f} to {high:5.1f})  above 0: {wins} of {e.trials}"
    )


def main(runs: list[str]) -> None:
    every = trials_of(runs)
    for name, values in every.items():
        print(told(name, values))
    controls = {name: every[name] for name in BASELINES if name in every}
    chosen = best_elsewhere(controls)
    controls[BEST] = {key: controls[name][key] for key, name in chosen.items()}
    for name, values in controls.items():
        print(told(f"{SELECTED} - {name}", differences(every[SELECTED], values)))
    print("best baseline, trials:", {n: [*chosen.values()].count(n) for n in controls if n != BEST})


if __name__ == "__main__":
    main(sys.argv[1:])
