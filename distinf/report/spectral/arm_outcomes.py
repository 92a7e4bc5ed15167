"""From the fine-tuning jobs' committed arrays to outcomes: what each arm did."""

from collections.abc import Sequence

import numpy as np

from distinf.numerics.means import binned_means, change_pct, finite_mean, gap_reduction
from distinf.report.rows import gathered
from distinf.report.spectral.findings import AxisCurves, Outcome
from distinf.report.spectral.findings import Family as Shown
from distinf.runtime import Unit
from distinf.spectral import actions, evaluate
from distinf.spectral.arms import Family, arm_of, families, family_jobs
from distinf.spectral.pools import job_ranks
from distinf.spectral.session import Session
from distinf.tasks.task import Wording


def wording(session: Session) -> Wording:
    """How this task wants to be spoken of."""
    given = getattr(session.task, "wording", None)
    return given if isinstance(given, Wording) else Wording(metric=session.task.metric)


def main_outcomes(session: Session) -> list[Outcome]:
    """Of the headline's family."""
    return outcomes(session, run_families(session)[0])


def run_families(session: Session) -> list[Family]:
    """The families of the run, the headline's first."""
    return families(session.settings.actions, session.outline.losses)


def chosen_jobs(session: Session, family: Family) -> list[Unit]:
    """The family's jobs on the targets that exist."""
    return family_jobs(session.outline, family, len(evaluate.chosen_targets(session).ids))


def outcomes(session: Session, family: Family) -> list[Outcome]:
    """One per job and target of it: gap reduction (Eq. 10), and what it did to other rows."""
    return [
        outcome
        for job in chosen_jobs(session, family)
        for outcome in session.cached(("outcomes", job.id), lambda job=job: _of(session, job))  # type: ignore[misc]
    ]


def page_families(session: Session) -> list[Shown]:
    """The experiments beside the headline, as the page takes them."""
    found = []
    for family in run_families(session)[1:]:
        several = any(arm.aim == "multi-target" for arm, _, _ in family.members)
        curves = axis_curves(session, family) if several else None
        found.append(Shown(family.name, family.varied, outcomes(session, family), curves))
    return found


def axis_curves(session: Session, family: Family) -> AxisCurves | None:
    """Means per bin over the non-targets, which every job evaluated; a curve for each arm.

    Where arms of one selection differ in more, the first of them stands. None without an axis.
    """
    task, columns = session.task, evaluate.evaluation(session)
    if not task.axis:
        return None
    ids = actions.non_target_ids(session)
    named = {"before": task.metric, **_untuned(session)}
    values = {name: columns[column][ids] for name, column in named.items()}
    for arm, mine in gathered(chosen_jobs(session, family), arm_of).items():
        if arm.selection not in values:
            others = [session.arrays(job, ["others"])["others"] for job in mine]
            values[arm.selection] = np.mean(others, axis=0)
    found = binned_means(columns[task.axis][ids], values, session.settings.report.bins)
    draws = len(np.unique(evaluate.conditions(columns, task)[ids]))
    return AxisCurves(*found, draws)


def _untuned(session: Session) -> dict[str, str]:
    """Role -> column of the reference and the baseline, those that were measured."""
    names = {"reference": session.task.reference, "baseline": wording(session).baseline}
    return {k: n for k, n in names.items() if n in evaluate.evaluation(session)}


def non_target_means(session: Session) -> dict[str, float]:
    """The non-targets' mean metric before fine-tuning, their mean reference and baseline."""
    ids, columns = actions.non_target_ids(session), evaluate.evaluation(session)
    found = {k: finite_mean(columns[n][ids]) for k, n in _untuned(session).items()}
    return {"before": finite_mean(actions.non_targets_before(session)), **found}


def _of(session: Session, job: Unit) -> list[Outcome]:
    arm, stored = arm_of(job), session.arrays(job)
    targets = evaluate.chosen_targets(session)
    after, before = finite_mean(stored["others"]), finite_mean(actions.non_targets_before(session))
    reference = finite_mean(_reference(session, actions.non_target_ids(session)))
    names = ["steps", "batch_size", "weight_decay", "optimizer", "retain"]
    names += ["stop"] if arm.stop is not None else []
    names += ["newton_lr", "newton_pairs", "newton_solves"] if arm.newton_lr else []
    further, found = {name: getattr(arm, name) for name in names}, []
    for column, rank in enumerate(job_ranks(job)):
        metric = stored["metric_by_step"][:, column]
        best = _reference(session, targets.ids[[rank]])[0]
        outcome = Outcome(
            selection=arm.selection,
            target=int(targets.ids[rank]),
            condition=int(targets.conditions[rank]),
            seed=job.job["seed"],
            gap_reduction_pct=gap_reduction(metric[0], metric[-1], best),
            metric_by_step=metric.tolist(),
            sibling_change_pct=change_pct(*stored["siblings"][::-1, column]),
            fresh_change_pct=change_pct(*stored["fresh"][::-1, column]),
            non_target_change_pct=change_pct(after, before),
            loss=arm.loss if arm.variant else "",
            pool=arm.pool or None,
            lr=arm.newton_lr or arm.lr,
            settings=further,
            non_target_metric=after,
            non_target_gap_reduction_pct=gap_reduction(before, after, reference),
            **{k: getattr(arm, k) for k in ("variant", "update", "aim", "order", "adapter")},
        )
        found.append(outcome)
    return found


def _reference(session: Session, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    name, columns = session.task.reference, evaluate.evaluation(session)
    return columns[name][ids].astype(np.float64) if name else np.zeros(len(ids))
