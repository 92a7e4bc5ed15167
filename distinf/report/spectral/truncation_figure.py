"""How much each further Ritz value lowers the truncation bound (Tuononen et al., Fig. 5 and 6)."""

from typing import Any

import numpy as np

from distinf.report.spectral.captions import Tables
from distinf.report.spectral.findings import Findings
from distinf.report.svg import COLOR, drawing, export, legend, linear_axis, log_axis, title


def truncation_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """Relative and absolute reduction per term added; the dashed line is the number kept."""
    terms = rows.get("truncation")
    if not terms or findings.ritz is None:
        return None
    x = np.array([r["terms"] for r in terms])
    kinds = (
        ("sum_sq", "soft", "s", "Frobenius norm of what is dropped"),
        ("max", "accent", "o", "largest value dropped"),
    )
    with drawing(name, 3.3) as figure:
        left, right = figure.subplots(1, 2)
        lowered: list[float] = []
        for kind, color, marker, label in kinds:
            share = np.array([r[f"lowered_{kind}_pct"] for r in terms])
            amount = np.array([r[f"lowered_{kind}"] for r in terms])
            lowered += amount[amount > 0].tolist()
            style: dict[str, Any] = {"color": COLOR[color], "ms": 3.4, "mew": 0, "lw": 0.8}
            left.plot(x, share, marker=marker, label=label, **style)
            right.plot(x, np.where(amount > 0, amount, np.nan), marker=marker, **style)
        kept = len(findings.ritz.values_K)
        for axes in (left, right):
            dashed = {"color": COLOR["random"], "lw": 1.3, "ls": (0, (5, 2))}
            axes.axvline(kept, label=f"k = {kept}, as chosen", **dashed)
            linear_axis(axes, "x", integer=True)
            axes.set_xlabel("terms kept, k")
        linear_axis(left, "y")
        left.set_ylim(bottom=0)
        log_axis(right, "y", lowered)
        title(left, "by how much term k lowers the bound [%]")
        title(right, "the same, absolute")
        legend(figure, left, most=40)
        return export(figure, name, heading)
