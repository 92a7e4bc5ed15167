"""Stage report: from the run's committed arrays to one page, its tables and its raw numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distinf.numerics.krylov import projected_pairs
from distinf.report import publishing
from distinf.report.provenance import provenance_of, stage_costs
from distinf.report.rows import Row, plain
from distinf.report.spectral import arm_outcomes, page
from distinf.report.spectral import findings as of
from distinf.report.spectral.tables import tables
from distinf.report.spectral.warnings import deviations, quarantined, warnings
from distinf.report.words import Words
from distinf.spectral import (
    attribution,
    baselines,
    curvature,
    evaluate,
    gradients,
    pools,
    preconditioning,
    scores,
    solves,
    spectra,
    train,
)
from distinf.spectral.sensitivity import damping_sensitivity
from distinf.spectral.session import Session
from distinf.tasks.task import Wording

OPERATORS = {
    "hessian": "Hessian",
    "hessian-double-backward": "Hessian (double backward)",
    "gauss-newton": "Gauss-Newton matrix",
    "gauss-newton-double-backward": "Gauss-Newton matrix (double backward)",
}
TOP = 5  # most helpful and most harmful rows listed per target


def write(session: Session) -> None:
    """The report's files."""
    found = findings(session)
    rows = tables(found)
    publishing.publish(session, plain(found), rows, page.page(found, rows))


def findings(session: Session) -> of.Findings:
    """Everything that the page shows, read from committed arrays."""
    words, settings = arm_outcomes.wording(session), session.settings
    headline, head = arm_outcomes.run_families(session)[0], settings.actions
    chosen = {"pool": head.pool, "noun": words.noun, "variant": head.variant}
    told = Words(__package__, chosen)
    parts = {name: of_it(session) for name, of_it in EACH.items()}
    parts |= {f"non_target_{k}": v for k, v in arm_outcomes.non_target_means(session).items()}
    loss = head.loss or session.outline.losses[0]
    varied = session.variations.items()
    more = [f"{name}: {text}" for name, inner in varied for text in warnings(inner)]
    label = words.baseline_label
    return of.Findings(
        settings.report.title or f"Training {words.noun} that help, and the gain from them",
        _sentence(session, words),
        words.question,
        of.MetricInfo(words.metric, words.reference, label, words.axis, words.log),
        of.Headline(loss, head.variant, head.update, head.aim, words.noun, head.pool, head.steps),
        outcomes=arm_outcomes.outcomes(session, headline),
        descriptions={k: told.say("selections", k) for k in told.of("selections")},
        targets=_targets(session, words),
        axis_curves=arm_outcomes.axis_curves(session, headline),
        free_scores=_free_scores(session, loss),
        top_samples=_top_samples(session, words),
        label=f"{session.outline.training_rows:,} {words.noun}",
        data=session.keys["data"],
        variations={name: findings(inner) for name, inner in varied},
        published=() if session.name else words.published,
        deviations=[*words.deviations, *deviations(session)],
        warnings=[*warnings(session), *more],
        **parts,
    )


def _sentence(session: Session, words: Wording) -> str:
    settings, outline = session.settings, session.outline
    model = f"{outline.shapes.parameters:,}-parameter {type(session.fresh_model()).__name__}"
    rows, every = gradients.scored_rows(outline), outline.training_rows
    scored = "each of them" if rows == every else f"{rows:,} of the training {words.noun}"
    criterion, most = settings.targets.criterion, settings.targets.per_condition
    chosen = "with the largest gap" + (f" ({criterion})" if criterion != "relative" else "")
    if most and hasattr(session.task, "conditions"):
        chosen += f" (at most {most} under the same conditions)"
    if session.name and session.context["chosen_in"]["evaluate"] != session.keys["evaluate"]:
        chosen = "that the run improves"
    if settings.targets.ids:
        chosen = "named in the settings"
    pairs = len(spectra.damped_spectrum(session).values_K)
    limit = "" if settings.actions.stop is None else "at most "
    acted = (
        f", and the model was fine-tuned for {limit}{settings.actions.steps} steps of "
        f"{settings.actions.batch_size} {words.noun} on what the scores chose"
    )
    return (
        f"A {model} was trained for {settings.train.steps:,} steps on {every:,} {words.noun}; the "
        f"influence of {scored} on the {len(evaluate.chosen_targets(session).ids)} evaluation "
        f"{words.noun} {chosen} was estimated from {pairs} Ritz pair{'' if pairs == 1 else 's'} of "
        f"the {OPERATORS[settings.curvature.kind]}{acted if settings.actions.seeds else ''}."
    )


def _named(session: Session, name: str, value: float) -> float | str:
    labels: Mapping[str, Sequence[str]] = getattr(session.task, "labels", {})
    named, place = labels.get(name, ()), int(value) if np.isfinite(value) else -1
    return named[place] if 0 <= place < len(named) else float(value)


def _columns(session: Session, words: Wording, found: Mapping[str, Any], row: int) -> Row:
    """The row's columns that the task wants shown."""
    return {n: _named(session, n, float(found[n][row])) for n in words.columns if n in found}


def _targets(session: Session, words: Wording) -> list[of.Target]:
    task, columns = session.task, evaluate.evaluation(session)
    chosen = evaluate.chosen_targets(session)
    names = {k: getattr(task, k) for k in ("metric", "reference", "axis")}
    known = {k: n for k, n in {**names, "baseline": words.baseline}.items() if n in columns}
    return [
        of.Target(
            id=int(row),
            gap=float(gap),
            columns=_columns(session, words, columns, row),
            **{k: float(columns[n][row]) for k, n in known.items()},
        )
        for row, gap in zip(chosen.ids, chosen.gaps, strict=True)
    ]


def _evaluation_points(session: Session) -> of.EvaluationPoints:
    task, columns = session.task, evaluate.evaluation(session)
    settings, reference = session.settings.targets, columns.get(task.reference or "")
    gap, rule = evaluate.gap(columns, task, settings.criterion), "a gap above 0"
    if task.reference:
        name = arm_outcomes.wording(session).reference or task.reference
        rule = f"{name} at least {settings.min_reference:g}, and {rule}"
    return of.EvaluationPoints(
        np.arange(len(gap)), gap, columns.get(task.axis or ""),
        evaluate.eligible_rows(columns, task, settings), rule, columns[task.metric], reference,
        settings.min_reference, len(np.unique(evaluate.conditions(columns, task))),
    )  # fmt: skip


def _score_sets(session: Session) -> list[of.ScoreSet]:
    nonpositive, shares = scores.nonpositive_counts(session), scores.outside_shares(session)
    ids, found = evaluate.chosen_targets(session).ids.tolist(), []
    for loss in session.outline.losses:
        for variant in scores.stored_variants(session.outline):
            by_target = dict(zip(ids, scores.stored_scores(session, loss, variant), strict=True))
            outside = dict(zip(ids, shares[loss])) if variant == "classic" else {}
            lost = nonpositive[f"{loss}.{variant}"]
            found.append(of.ScoreSet(loss, variant, by_target, lost, outside))
    return found


def _free_scores(session: Session, loss: str) -> list[of.ScoreSet]:
    """Of every target, also those that are the same for all."""
    ids = evaluate.chosen_targets(session).ids.tolist()
    every = {**baselines.products(session, loss), **baselines.own_columns(session)}
    every |= baselines.conditions_of_rows(session)
    return [
        of.ScoreSet(loss, name, dict(zip(ids, np.broadcast_to(v, (len(ids), v.shape[-1])))))
        for name, v in every.items()
    ]


def _top_samples(session: Session, words: Wording) -> list[Row]:
    settings, found = session.settings.actions, list[Row]()
    loss = settings.loss or session.outline.losses[0]
    cosine_TN = baselines.products(session, loss)["cosine"]
    for rank, target in enumerate(evaluate.chosen_targets(session).ids.tolist()):
        scores_N = scores.stored_scores(session, settings.loss, settings.variant)[rank]
        free = {**baselines.own_columns(session), "cosine": cosine_TN[rank]}
        order = np.argsort(-np.where(np.isfinite(scores_N), scores_N, -np.inf), kind="stable")
        order = order[: int(np.isfinite(scores_N).sum())]
        best, worst = order[:TOP], order[::-1][:TOP]
        rows = np.concatenate([best, worst])
        batch = session.task.batch("train", rows)
        places = [*range(1, len(best) + 1), *range(-1, -len(worst) - 1, -1)]
        for i, (place, row) in enumerate(zip(places, rows.tolist(), strict=True)):
            own = {"target": target, "rank": place, "id": row, "score": float(scores_N[row])}
            own |= {name: float(values[row]) for name, values in free.items()}
            found.append(own | {"columns": _columns(session, words, batch, i)})
    return found


def _ritz(session: Session) -> of.Ritz:
    pairs, spectrum = curvature.stored_pairs(session), spectra.damped_spectrum(session)
    before, seen = spectra.unfiltered_spectrum(session), pairs.seen
    values_M, _, residuals_M = projected_pairs(pairs.hessenberg)
    places, count = spectrum.kept, len(pairs.values)
    prefix = "preconditioned " if preconditioning.is_asked(session) else ""
    return of.Ritz(
        values_K=pairs.values.tolist(),
        residuals_K=pairs.residuals.tolist(),
        kept=len(spectrum.values_K),
        kept_K=[places is None or place in places for place in range(count)],
        damping=spectrum.damping,
        complement=session.settings.scores.complement,
        complement_mean=before.complement,
        complement_error=None if seen is None else seen.error,
        quotients_R=() if seen is None else seen.quotients_R.tolist(),
        filter=session.settings.scores.filter,
        trace=pairs.trace,
        policy=spectrum.report.policy,
        dropped=spectrum.report.dropped + spectrum.report.changed,
        orthogonality=pairs.orthogonality,
        asymmetry=pairs.asymmetry,
        operator=prefix + OPERATORS[session.settings.curvature.kind],
        all_values=values_M.tolist(),
        all_residuals=residuals_M.tolist(),
    )


def _solves(session: Session) -> list[Row]:
    ids = evaluate.chosen_targets(session).ids
    return [
        {"target": int(ids[rank]), "loss": loss}
        | {k: record["summary"][k] for k in ("status", "steps", "residual", "agreement")}
        for (rank, loss), record in solves.solves(session).items()
    ]


def _training(session: Session) -> of.TrainingCurve | None:
    loss, label = train.loss_curve(session), f"training loss ({session.outline.losses[0]})"
    steps = list(range(1, len(loss) + 1))
    return of.TrainingCurve(steps, loss.tolist(), label) if len(loss) else None


EACH: dict[str, Any] = {
    "families": arm_outcomes.page_families, "evaluation": _evaluation_points,
    "scores": _score_sets, "classes": pools.classes_of_rows, "ritz": _ritz, "solves": _solves,
    "refined": solves.told, "sensitivity": damping_sensitivity,
    "attributions": attribution.attributions, "training": _training, "costs": stage_costs,
    "quarantined": quarantined, "provenance": provenance_of,
}  # fmt: skip
