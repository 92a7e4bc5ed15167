"""Pictures of the scores' agreement and of the training that was scored.

Each function returns an inline <svg>, or None where the findings do not hold its data.
"""

import math
from collections import Counter
from typing import Any

import numpy as np

from distinf.report import maps
from distinf.report.formats import fixed, shortened
from distinf.report.gram.detection_figures import IN_CELL, MOST_BESIDE, STRENGTH
from distinf.report.gram.findings import Findings
from distinf.report.gram.tables import Tables
from distinf.report.svg import COLOR, DASH, drawing, export, legend, linear_axis, title

MOST_NUMBERED = 8
SERIES = {"train_loss": ("training rows", "soft"), "query_loss": ("queries", "accent"),
          "test_loss": ("test rows", "muted")}  # fmt: skip


def correlations_figure(findings: Findings, _rows: Tables, name: str, heading: str) -> str | None:
    """Spearman's correlation of the scores, one map per matrix."""
    matrices = [c for c in findings.correlations if len(c.names) > 1]
    if not matrices:
        return None
    most = max(len(c.names) for c in matrices)
    across = 1 if len(matrices) == 1 or 2 * most > MOST_BESIDE else 2
    down = math.ceil(len(matrices) / across)
    with drawing(name, down * (1.0 + 0.3 * max(3, most))) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, c in zip(panels, matrices):
            values_MM = np.asarray(c.values_MM, dtype=np.float64)
            maps.show(axes, STRENGTH * values_MM)
            labels = [shortened(n, 20) for n in c.names]
            axes.set_yticks(range(len(labels)), labels)
            axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
            for label in axes.get_xticklabels():
                label.set_rotation_mode("anchor")
            axes.tick_params(axis="both", length=0, labelsize=8.5)
            title(axes, shortened(c.title, 58))
            for i, j in np.ndindex(values_MM.shape) if len(labels) <= MOST_NUMBERED else ():
                if math.isfinite(values_MM[i, j]):
                    text = fixed(float(values_MM[i, j]), 2)
                    axes.text(j, i, text, color=COLOR["ink"], **IN_CELL)
        for axes in panels[len(matrices) :]:
            axes.set_visible(False)
        return export(figure, name, heading)


def training_figure(findings: Findings, _rows: Tables, name: str, heading: str) -> str | None:
    """Loss by epoch of the training on all rows, mean over cells, and the epochs scored."""
    cells = [c for c in findings.cells if any(len(c.history.get(s, ())) > 1 for s in SERIES)]
    if not cells:
        return None
    with drawing(name, 3.0) as figure:
        axes = figure.subplots()
        for series, (words, color) in SERIES.items():
            mine = [c.history[series] for c in cells if len(c.history.get(series, ()))]
            if not mine:
                continue
            length = min(len(s) for s in mine)
            mean = np.nanmean(np.array([s[:length] for s in mine], dtype=np.float64), axis=0)
            axes.plot(range(1, length + 1), mean, color=COLOR[color], label=words)
        scored = Counter(sorted(c.best for c in cells if c.best is not None))
        times = ", ".join(f"{best + 1} ({many}×)" for best, many in scored.items())
        label: str | None = f"epoch scored: {times}" if len(cells) > 1 else "epoch scored"
        for best in scored:
            style: dict[str, Any] = {"color": COLOR["helpful"], "ls": DASH["reference"], "lw": 1.2}
            axes.axvline(best + 1, label=label, **style)
            label = None
        linear_axis(axes, "x", integer=True)
        linear_axis(axes, "y")
        axes.set_xlabel("epoch")
        title(axes, "loss, mean over cells" if len(cells) > 1 else "loss")
        legend(figure, axes, most=60)
        return export(figure, name, heading)
