"""Influence, rankings without it and both combined, on texts with flipped labels, over seeds.

    python -m tests.benchmarks.bench_baselines uci_sentiment.tsv.gz OUT [--seeds 5] \\
        [--first 0] [--set data.train_rows=400 …]

Runs configs/noisy_labels/minilm.yaml once for each seed, each in a folder of its own in OUT (what
is there already is resumed), without retraining; then prints of every ranking the NDR at 30 % and
the AUC, mean ± deviation over seeds, and the combination against the better of influence and own
loss, with a 95 % interval over seeds and the wrong labels of each.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from distinf.numerics.bootstrap import estimate

CONFIG = Path(__file__).parents[2] / "configs" / "noisy_labels" / "minilm.yaml"
SHARE = 0.3
MINE = ("score", "own_loss", "combined")


def run(data: str, out: Path, seed: int, settings: list[str]) -> Path:
    """The finished run's report."""
    wanted = [f"data.path={data}", f"seed={seed}", "actions.configurations=[]", *settings]
    given = [part for each in wanted for part in ("--set", each)]
    folder = out / str(seed)
    command = [sys.executable, "-m", "distinf", "run", str(CONFIG), *given]
    command += ["--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return folder / "report"


def table(report: Path, name: str) -> list[dict[str, str]]:
    with open(report / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rates(report: Path) -> dict[str, tuple[float, float]]:
    """Ranking -> NDR and AUC of a run."""
    found = {r["configuration"]: (r["ndr"], r["auc"]) for r in table(report, "scored")}
    found |= {
        r["ranking"]: (float(r["ndr_mean_pct"]) / 100, r["auc_mean"])
        for r in table(report, "free_rankings")
    }
    return {name: (float(ndr), float(auc)) for name, (ndr, auc) in found.items()}


def caught(report: Path) -> dict[str, np.ndarray]:
    """Of influence, own loss and both combined: which wrong rows are among the lowest 30 %."""
    (path,) = report.glob("ranked_rows-*.csv")
    rows = sorted(table(report, path.stem), key=lambda row: int(row["row"]))
    wrong = np.array([row["flipped"].lower() == "true" for row in rows])
    found = {}
    for name in MINE:
        values = np.array([float(row[name]) for row in rows]) * (-1 if name == "own_loss" else 1)
        lowest = np.argsort(values, kind="stable")[: int(SHARE * len(rows))]
        found[name] = np.isin(np.arange(len(rows)), lowest)[wrong].astype(float)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    data = os.path.abspath(options.data)
    seeds = range(options.first, options.first + options.seeds)
    reports = [run(data, options.out, seed, options.set) for seed in seeds]
    every = [rates(report) for report in reports]
    print(f"{len(reports)} seeds; NDR at {SHARE:.0%}, AUC")
    means = {name: np.array([found[name] for found in every]) for name in every[0]}
    for name, values in sorted(means.items(), key=lambda item: -item[1][:, 0].mean()):
        spread = values.std(0, ddof=1) if len(values) > 1 else [float("nan")] * 2
        told = (f"{m:.3f} ± {sd:.3f}" for m, sd in zip(values.mean(0), spread, strict=True))
        print(f"| {name} | {' | '.join(told)} |")
    found = [caught(report) for report in reports]
    better = max(MINE[:2], key=lambda name: np.mean([each[name].mean() for each in found]))
    for other in dict.fromkeys((better, *MINE[:2])):
        apart = {
            (seed, k): float(value)
            for seed, each in enumerate(found)
            for k, value in enumerate(each["combined"] - each[other])
        }
        e = estimate(apart)
        mark = " (the better)" if other == better else ""
        print(f"combined - {other}{mark}: {e.mean:+.3f} ({e.low:+.3f} to {e.high:+.3f})")


if __name__ == "__main__":
    main()
