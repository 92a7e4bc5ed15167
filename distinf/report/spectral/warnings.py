"""What a reader of the report should know before believing it, a line each."""

from collections import Counter
from typing import Any

import numpy as np

from distinf.report.spectral import results
from distinf.spectral import curvature, evaluate, gradients, queries, scores, trajectory
from distinf.spectral.arms import arm_of
from distinf.spectral.pools import pool_rows
from distinf.spectral.session import Session
from distinf.tasks.task import Wording

MOST_NONPOSITIVE = 0.01  # of the rows, before a variant's denominators are warned of


def quarantined(session: Session) -> dict[str, list[int]]:
    rows = {*gradients.quarantined_rows(session), *trajectory.quarantined_rows(session)}
    return {"train": sorted(rows)} if rows else {}


def deviations(session: Session) -> list[str]:
    """From what is published of the methods that were chosen."""
    families = results.run_families(session)
    arms = [arm for family in families for arm, _, _ in family.members]
    found = [*trajectory.deviations(session), *_of_targets(session), *_of_inverse(session)]
    if session.settings.scores.scaling != "paper" and any(a.variant == "newfluence" for a in arms):
        found.append(
            "Newfluence divides by 1 - self / rows, the leave-one-out factor of a mean curvature "
            "(scores.scaling: mean); Eq. 6 of Tuononen et al. divides by 1 - self."
        )
    if any(arm.update == "second-order" for arm in arms):
        found.append(
            "A second-order step is eta times the mean over its rows; Eq. 16 of Tuononen et al. is "
            "a sum, and their eta is not known: how small its steps are says little."
        )
    if any(arm.newton_solves == "fresh" for arm in arms):
        found.append(
            "A second-order step takes the rows' gradients anew and keeps the curvature; Tuononen "
            "et al. (8.2) keep both (actions.newton_solves: stored)."
        )
    return found


def _of_targets(session: Session) -> list[str]:
    settings, words = session.settings.targets, results.wording(session)
    if settings.ids or not settings.per_condition or not getattr(session.task, "conditions", ()):
        return []
    return [
        f"Of {words.noun} under the same conditions at most {settings.per_condition} can be "
        "targets (targets.per_condition); Tuononen et al. take those of largest gap."
    ]


def _of_inverse(session: Session) -> list[str]:
    settings, found = session.settings.scores, []
    if settings.complement != "none":
        found.append(
            "The inverse curvature does not end at the Ritz pairs "
            f"(scores.complement: {settings.complement}); Schioppa et al. (2022, Eq. 7 of "
            "Tuononen et al.) truncate it."
        )
    if settings.damping:
        found.append(
            f"Every eigenvalue is raised by {settings.damping:g} (scores.damping); Eq. 7 of "
            "Tuononen et al. has no damping."
        )
    report = queries.damped_spectrum(session).report
    if report.changed or report.dropped:
        found.append(
            f"Of the Ritz values, {report.changed} were negative and count by their size, and "
            f"{report.dropped} were left out (scores.negative: {report.policy}); Tuononen et al. "
            "do not say what they do with such."
        )
    return found


def warnings(session: Session) -> list[str]:
    words = results.wording(session)
    found = _not_positive(session, words)
    asked, chosen = session.settings.targets.count, len(evaluate.chosen_targets(session).ids)
    without = evaluate.unusable_targets(session)
    if without:
        found.append(
            f"The run's targets {', '.join(map(str, without))} have no usable gap in this model "
            "and are left out of it."
        )
    elif chosen < asked:
        alike = session.settings.targets.per_condition
        most = f", at most {alike} under the same conditions" if alike else ""
        found.append(f"Only {chosen} of the {asked} targets asked for were eligible{most}.")
    metric = evaluate.evaluation(session)[session.task.metric]
    unknown = np.flatnonzero(~np.isfinite(metric)).tolist()
    if unknown:
        found.append(
            f"The metric of {len(unknown)} of {len(metric)} evaluation rows is not finite, and "
            f"they are left out of all means: {', '.join(map(str, unknown[:10]))}."
        )
    found += _shared_conditions(session)
    left_out = curvature.left_out_rows(session)
    if left_out:
        found.append(
            f"The curvature leaves out {len(left_out)} drawn rows whose loss is not finite: "
            f"{', '.join(map(str, left_out[:10]))}{' …' if len(left_out) > 10 else ''}."
        )
    found += _same_rows(session, words)
    found += _stopped(session)
    ends = [record["summary"]["status"] for record in queries.solves(session).values()]
    failed = sum(end != "converged" for end in ends)
    if failed:
        found.append(
            f"{failed} refined solves did not converge; their targets are scored from the "
            "Ritz pairs alone."
        )
    return found


def _shared_conditions(session: Session) -> list[str]:
    targets = evaluate.chosen_targets(session)
    every = evaluate.conditions(evaluate.evaluation(session), session.task)
    found = []
    if len(every) > 1 and len(np.unique(every)) == 1:
        found.append(
            f"All {len(every)} evaluation rows have the same conditions and may be one draw of "
            "them: there is no interval over conditions, and those shown say nothing of others."
        )
    alike = [
        ", ".join(map(str, targets.ids[targets.conditions == number].tolist()))
        for number in dict.fromkeys(targets.conditions.tolist())
        if (targets.conditions == number).sum() > 1
    ]
    if not alike:
        return found
    distinct = len(np.unique(targets.conditions))
    return [
        *found,
        f"Targets {' and '.join(alike)} have the same conditions and may be one draw of them (one "
        f"frame): {len(targets.ids)} targets are evidence like {distinct} independent ones.",
    ]


def _not_positive(session: Session, words: Wording) -> list[str]:
    """Variants whose denominator is not positive for many rows: signs turn, or scores are lost."""
    rows, scaling = gradients.scored_rows(session.outline), session.settings.scores.scaling
    found = []
    for name, count in scores.nonpositive_counts(session).items():
        loss, variant = name.rsplit(".", 1)
        if count <= MOST_NONPOSITIVE * rows:
            continue
        does = "which leaves them without a score"
        remedy = "a larger scores.damping"
        if variant != "newfluence":
            remedy = f"scores.negative: absolute, or {remedy}"
        elif scaling == "paper":
            does = "which turns the sign of their scores: what it calls helpful is harmful there"
            remedy = f"scores.scaling: mean, or {remedy}"
        label = f"{variant[:1].upper()}{variant[1:]}"
        told = f"{loss}, scores.scaling {scaling}" if variant == "newfluence" else loss
        found.append(
            f"{label} ({told}): the denominator is not positive for {count:,} of {rows:,} "
            f"{words.noun}, {does}. Believe its arms only with {remedy}."
        )
    return found


def _stopped(session: Session) -> list[str]:
    """How many fine-tunings actions.stop ended early, by selection."""
    jobs = {j.id: j for f in results.run_families(session) for j in results.chosen_jobs(session, f)}
    limited = [job for job in jobs.values() if arm_of(job).stop is not None]
    taken = [(arm_of(job), session.record(job)["summary"]["steps"]) for job in limited]
    early = [(arm, steps) for arm, steps in taken if steps < arm.steps]
    if not early:
        return []
    every, some = (Counter(arm.selection for arm, _ in of) for of in (taken, early))
    told = ", ".join(f"{some[name]} of {every[name]} {name}" for name in some)
    none = sum(not steps for _, steps in early)
    return [
        f"actions.stop ended {len(early)} of {len(taken)} fine-tunings before their last step "
        f"({told}), {none} of them before the first: the selections are not compared after equally "
        "many steps, and one that was held back shows less of what it does."
    ]


def _same_rows(session: Session, words: Wording) -> list[str]:
    """Arms of one family that chose the same rows for every target: one experiment, not two."""
    found: dict[str, None] = {}
    for family in results.run_families(session):
        pools: dict[tuple[str, str, str, str], dict[int, frozenset[int]]] = {}
        for job in results.chosen_jobs(session, family):
            arm = arm_of(job)
            if arm.variant and not job.job["seed"]:
                key = (arm.selection, str(arm.pool), arm.aim, f"{arm.loss} {arm.variant}")
                rows = pool_rows(session, job).rows.tolist()
                pools.setdefault(key, {})[job.job["target"]] = frozenset(rows)
        alike: dict[tuple[Any, ...], list[str]] = {}
        for (selection, pool, aim, scored), rows_of in pools.items():
            alike.setdefault((selection, pool, aim, *rows_of.items()), []).append(scored)
        for (selection, pool, aim, *_), names in alike.items():
            if len(names) > 1:
                line = (
                    f"{' and '.join(names)} chose the same {words.noun} ({selection}, pool of "
                    f"{pool}, {aim}): their outcomes are one experiment, not {len(names)}."
                )
                found[line] = None
    return list(found)
