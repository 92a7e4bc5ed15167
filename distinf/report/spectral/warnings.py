"""What a reader of the report should know before believing it, a line each."""

from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from distinf.report.rows import gathered
from distinf.report.spectral import arm_outcomes
from distinf.report.words import Words
from distinf.spectral import curvature, evaluate, gradients, scores, solves, spectra, trajectory
from distinf.spectral.arms import arm_of
from distinf.spectral.damping import damping_of
from distinf.spectral.pools import pool_rows
from distinf.spectral.session import Session

MOST_NONPOSITIVE = 0.01  # of the rows, before a variant's denominators are warned of


def quarantined(session: Session) -> dict[str, list[int]]:
    rows = {*gradients.quarantined_rows(session), *trajectory.quarantined_rows(session)}
    return {"train": sorted(rows)} if rows else {}


def _words(session: Session) -> Words:
    return Words(__package__, {"noun": arm_outcomes.wording(session).noun})


def deviations(session: Session) -> list[str]:
    """From what is published of the methods that were chosen."""
    words, targets, scoring = _words(session), session.settings.targets, session.settings.scores
    arms = [arm for family in arm_outcomes.run_families(session) for arm, _, _ in family.members]
    damping = damping_of(session, curvature.stored_pairs(session).values)
    report, most = spectra.damped_spectrum(session).report, targets.per_condition
    several = not targets.ids and most and getattr(session.task, "conditions", None)
    variants, newton = ({getattr(a, k) for a in arms} for k in ("variant", "newton_solves"))
    told: dict[str, Any] = {
        "conditions": several,
        "complement": scoring.complement != "none",
        "damping" if scoring.filter == "damped" else scoring.filter: damping.value,
        "ritz": report.changed or report.dropped,
        "seen": report.complement,
        "newfluence": scoring.scaling != "paper" and "newfluence" in variants,
        "second_order": any(arm.update == "second-order" for arm in arms),
        "fresh": "fresh" in newton,
    }
    numbers = {"most": most, "complement": scoring.complement, "damping": f"{damping.value:.3g}"}
    numbers |= {k: str(getattr(report, k)) for k in ("changed", "dropped", "policy")}
    if not scoring.negative:
        numbers["policy"] = f"{report.policy}, since no scores.damping is set"
    numbers["source"] = damping.source or "scores.damping"
    numbers["seen_as"] = "by its size" if report.policy == "absolute" else "as 0"
    numbers["seen"] = f"{report.complement or 0.0:.3g}"
    found = [words.say("deviations", key, **numbers) for key, said in told.items() if said]
    return [*trajectory.deviations(session), *found]


def warnings(session: Session) -> list[str]:
    words = _words(session)
    return [words.say("warnings", key, **numbers) for key, numbers in _found(session)]


def _found(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is to be warned of, and the numbers to say."""
    yield from _not_positive(session)
    settings, chosen = session.settings.targets, len(evaluate.chosen_targets(session).ids)
    without = evaluate.unusable_targets(session)
    if without:
        yield "unusable", {"targets": _listed(without)}
    elif chosen < settings.count:
        alike = settings.per_condition
        most = f", at most {alike} under the same conditions" if alike else ""
        yield "fewer", {"chosen": chosen, "asked": settings.count, "most": most}
    metric = evaluate.evaluation(session)[session.task.metric]
    unknown = np.flatnonzero(~np.isfinite(metric)).tolist()
    if unknown:
        some = _listed(unknown[:10])
        yield "metric", {"unknown": len(unknown), "rows": len(metric), "some": some}
    yield from _shared_conditions(session)
    left_out = curvature.left_out_rows(session)
    if left_out:
        some = _listed(left_out[:10]) + (" …" if len(left_out) > 10 else "")
        yield "curvature", {"many": len(left_out), "some": some}
    yield from _same_rows(session)
    yield from _stopped(session)
    failed = sum(not solves.is_usable(record) for record in solves.solves(session).values())
    if failed and session.settings.curvature.refine:  # by default it is said with what was refined
        yield "unsolved", {"failed": failed}


def _listed(rows: Any) -> str:
    return ", ".join(map(str, rows))


def _shared_conditions(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    targets = evaluate.chosen_targets(session)
    every = evaluate.conditions(evaluate.evaluation(session), session.task)
    if len(every) > 1 and len(np.unique(every)) == 1:
        yield "one_condition", {"rows": len(every)}
    both = zip(targets.conditions.tolist(), targets.ids.tolist(), strict=True)
    groups = [[i for _, i in mine] for mine in gathered(both, itemgetter(0)).values()]
    alike = " and ".join(_listed(ids) for ids in groups if len(ids) > 1)
    if alike:
        yield "alike", {"alike": alike, "targets": len(targets.ids), "distinct": len(groups)}


def _not_positive(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    """Variants whose denominator is not positive for many rows: signs turn, or scores are lost."""
    rows, scaling = gradients.scored_rows(session.outline), session.settings.scores.scaling
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
        told = f"{loss}, scores.scaling {scaling}" if variant == "newfluence" else loss
        numbers = {"variant": f"{variant[:1].upper()}{variant[1:]}", "told": told, "does": does}
        yield (
            "nonpositive",
            numbers | {"count": f"{count:,}", "rows": f"{rows:,}", "remedy": remedy},
        )


def _stopped(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    """How many fine-tunings actions.stop ended early, by selection."""
    families = arm_outcomes.run_families(session)
    jobs = {j.id: j for f in families for j in arm_outcomes.chosen_jobs(session, f)}
    limited = [job for job in jobs.values() if arm_of(job).stop is not None]
    taken = [(arm_of(job), session.record(job)["summary"]["steps"]) for job in limited]
    early = [(arm, steps) for arm, steps in taken if steps < arm.steps]
    if early:
        every, some = (Counter(arm.selection for arm, _ in of) for of in (taken, early))
        told = ", ".join(f"{some[name]} of {every[name]} {name}" for name in some)
        none = sum(not steps for _, steps in early)
        yield "stopped", {"early": len(early), "all": len(taken), "told": told, "none": none}


def _same_rows(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arms of one family that chose the same rows for every target: one experiment, not two."""
    found: dict[tuple[Any, ...], None] = {}
    for family in arm_outcomes.run_families(session):
        pools: dict[tuple[str, ...], dict[int, frozenset[int]]] = {}
        for job in arm_outcomes.chosen_jobs(session, family):
            arm = arm_of(job)
            if arm.variant and not job.job["seed"]:
                key = (arm.selection, str(arm.pool), arm.aim, f"{arm.loss} {arm.variant}")
                rows = pool_rows(session, job).rows.tolist()
                pools.setdefault(key, {})[job.job["target"]] = frozenset(rows)
        alike: dict[tuple[Any, ...], list[str]] = {}
        for (*arm_of_it, scored), rows_of in pools.items():
            alike.setdefault((*arm_of_it, *rows_of.items()), []).append(scored)
        for (selection, pool, aim, *_), names in alike.items():
            if len(names) > 1:
                found[" and ".join(names), selection, pool, aim, len(names)] = None
    for told in found:
        yield "same_rows", dict(zip(("names", "selection", "pool", "aim", "many"), told))
