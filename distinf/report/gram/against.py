"""Influence, and what is combined of it and the loss, against the rankings without influence.

The best of these is chosen where it is not held against anything: by the other datasets or seeds,
of one dataset and seed by the other half of its wrong labels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from distinf.numerics.bootstrap import Trials, best_elsewhere, differences, estimate
from distinf.report.gram.findings import Findings
from distinf.report.gram.trials import keys
from distinf.report.rows import Row, grouped

BEST = "best of these"
COMBINED = "combined"
FEW_CELLS = 6  # below so many, wrong labels are resampled too: a few means give no interval
MEASURES = {"caught": "", "area": "auc_"}  # and what their columns begin with
Methods = Mapping[str, Trials]  # by ranking


def against(findings: Findings) -> list[Row]:
    """A row for each pair of rankings: ours, other, chosen (what stood for the best), pairs, and
    the difference ours - other in NDR and in AUC, in points, with 95 % intervals."""
    found = {what: _methods(findings, what) for what in MEASURES}
    names = [name for name in found["caught"] if name not in (findings.headline, COMBINED)]
    pairs = [(findings.headline, other) for other in (BEST, *names)]
    pairs += [(COMBINED, other) for other in (findings.headline, BEST, *names)]
    if not names or findings.headline not in found["caught"]:
        return []
    chosen = best_elsewhere({name: found["caught"][name] for name in names})
    best = {what: {k: of[name][k] for k, name in chosen.items()} for what, of in found.items()}
    every = {what: {**of, BEST: best[what]} for what, of in found.items()}
    said = ", ".join(dict.fromkeys(chosen.values()))
    return [
        {"ours": ours, "other": other, "chosen": said if other == BEST else ""}
        | _differences(every, ours, other, len(findings.cells) == 1)
        for ours, other in pairs
        if ours in found["caught"]
    ]


def _methods(findings: Findings, what: str) -> Methods:
    """Ranking -> (draw, trial) -> value. Of one cell the draws are two halves of its wrong labels,
    of a few the cells, and of more, whose means are the trials, the datasets."""
    at, found = keys(findings), {}
    for (name,), rows in grouped(findings.compared, "configuration").items():
        trials: dict = {}
        for number, row in enumerate(rows):
            values = 100 * np.asarray(row[what], dtype=float)
            if len(at) >= FEW_CELLS:
                trials[at[row["cell"]]] = float(values.mean())
            elif len(at) > 1:
                trials |= {(number, k): v for k, v in enumerate(values.tolist())}
            else:
                halves = np.random.default_rng(0).permutation(len(values)) % 2
                trials |= {(int(halves[k]), k): v for k, v in enumerate(values.tolist())}
        found[name] = trials
    return found


def _differences(every: Mapping[str, Methods], ours: str, other: str, one_cell: bool) -> Row:
    row: Row = {}
    for what, prefix in MEASURES.items():
        apart = differences(every[what][ours], every[what][other])
        if one_cell:  # its halves are of one draw
            apart = {(0, key): value for key, value in apart.items()}
        found = estimate(apart)
        row |= {"pairs": len(apart), f"{prefix}points": found.mean}
        row |= {f"{prefix}low_points": found.low, f"{prefix}high_points": found.high}
    return row


def verdict(rows: Sequence[Row], ours: str) -> str:
    """ "won" where the interval of the difference from the best baseline lies above 0, "lost" where
    below, else "even"; "" where nothing was compared."""
    mine = [row for row in rows if (row["ours"], row["other"]) == (ours, BEST)]
    if not mine:
        return ""
    return "won" if mine[0]["low_points"] > 0 else "lost" if mine[0]["high_points"] < 0 else "even"
