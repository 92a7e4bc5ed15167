"""The answer of a spectral run in the terminal."""

from collections.abc import Sequence

from rich.table import Table

from distinf.numerics.means import mean_sd
from distinf.report.spectral import arm_outcomes, trials
from distinf.report.spectral.answer import no_better, paired, told_verdict, words_of
from distinf.report.spectral.findings import Findings, Headline, Outcome
from distinf.spectral import solves
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.damping import damping_of
from distinf.spectral.session import Session


def summary(session: Session) -> list[Table | str]:
    """What each selection did to its targets and to the other rows."""
    outcomes, words = arm_outcomes.main_outcomes(session), arm_outcomes.wording(session)
    table = Table(title="Gap reduction after fine-tuning", title_justify="left")
    others = f"{words.metric} of others"
    for name in ("fine-tuned on", "mean", "deviation", others, "trials"):
        table.add_column(name, justify="left" if name == "fine-tuned on" else "right")
    for selection in session.settings.actions.selections:
        mine = [o for o in outcomes if o.selection == selection]
        closed, price = trials.spread(mine), mean_sd(o.non_target_change_pct for o in mine)[0]
        if closed["trials"]:
            numbers = f"{closed['mean_pct']:.1f} %", f"{closed['sd_pct']:.1f}", f"{price:+.1f} %"
            known = ("" if "nan" in text else text for text in numbers)
            table.add_row(f"{selection} {words.noun}", *known, str(closed["trials"]))
    means = arm_outcomes.non_target_means(session)
    baseline = means.get("baseline")
    said = no_better(words.metric, means["before"], baseline, words.baseline_label)
    damping = damping_of(session, stored_pairs(session).values)
    told = f"damping {damping.value:.3g}: {damping.source}" if damping.source else ""
    verdict = _verdict(session, outcomes) if table.rows else ""
    found = (said, verdict, table if table.rows else None, told, solves.told(session))
    return [item for item in found if item]


def _verdict(session: Session, outcomes: Sequence[Outcome]) -> str:
    """What the page says first of influence and of choices without it."""
    head, noun = session.settings.actions, arm_outcomes.wording(session).noun
    loss = head.loss or session.outline.losses[0]
    of = Headline(loss, head.variant, head.update, head.aim, noun)
    found = Findings("", "", headline=of, outcomes=outcomes)
    pairs = paired(found, {"paired": trials.paired(found.by_selection())})
    return told_verdict(words_of(found), pairs)
