"""The answer of a spectral run in the terminal."""

import numpy as np
from rich.table import Table

from distinf.report.spectral import results
from distinf.report.spectral.headline import no_better
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.damping import damping_of
from distinf.spectral.session import Session


def summary(session: Session) -> list[Table | str]:
    """What each selection did to its targets and to the other rows."""
    trials = results.headline_outcomes(session)
    words = results.wording(session)
    table = Table(title="Gap reduction after fine-tuning", title_justify="left")
    others = f"{words.metric} of others"
    for name in ("fine-tuned on", "mean", "deviation", others, "trials"):
        table.add_column(name, justify="left" if name == "fine-tuned on" else "right")
    for selection in session.settings.actions.selections:
        mine = [t for t in trials if t.selection == selection]
        found = np.array([t.gap_reduction_pct for t in mine])
        found = found[np.isfinite(found)]
        price = [t.non_target_change_pct for t in mine if t.non_target_change_pct is not None]
        if len(found):
            mean, deviation = (
                f"{found.mean():.1f} %",
                f"{found.std(ddof=1) if len(found) > 1 else 0.0:.1f}",
            )
            paid = f"{np.mean(price):+.1f} %" if price else ""
            table.add_row(f"{selection} {words.noun}", mean, deviation, paid, str(len(found)))
    means = results.non_target_means(session)
    baseline = means.get("baseline")
    said = no_better(words.metric, means["before"], baseline, words.baseline_label)
    damping = damping_of(session, stored_pairs(session).values)
    told = f"damping {damping.value:.3g}: {damping.source}" if damping.source else ""
    return [item for item in (said, table, told) if item]
