"""Stage report: from the run's committed arrays to one page, its tables and its raw numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from distinf.numerics.krylov import projected_pairs
from distinf.numerics.variants import VARIANTS
from distinf.report import publishing, render
from distinf.report.provenance import provenance_of, stage_costs
from distinf.report.rows import Row
from distinf.report.spectral import findings as of
from distinf.report.spectral import page, results
from distinf.report.spectral.tables import tables
from distinf.report.spectral.warnings import deviations, quarantined, warnings
from distinf.spectral import (
    attribution,
    curvature,
    evaluate,
    gradients,
    queries,
    scores,
    train,
)
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
    publishing.publish(session, found.to_json(), rows, render.html(page.page(found, rows), rows))


def findings(session: Session) -> of.Findings:
    """Everything that the page shows, read from committed arrays."""
    words, task, settings = results.wording(session), session.task, session.settings
    headline = results.run_families(session)[0]
    others = results.non_target_means(session)
    title = settings.report.title or f"Training {words.noun} that help, and the gain from them"
    return of.Findings(
        title=title,
        task=_sentence(session, words),
        question=words.question,
        metric=of.MetricInfo(
            name=words.metric, reference=words.reference,
            baseline=words.baseline_label, axis=words.axis, log=words.log,
        ),
        headline=of.Headline(
            loss=settings.actions.loss or session.outline.losses[0],
            variant=settings.actions.variant, noun=words.noun, pool=settings.actions.pool,
            steps=settings.actions.steps, update=settings.actions.update,
            aim=settings.actions.aim,
        ),
        outcomes=results.outcomes(session, headline),
        families=results.page_families(session),
        descriptions=_descriptions(session, words),
        targets=_targets(session, words),
        evaluation=_evaluation_points(session),
        axis_curves=results.axis_curves(session, headline) if task.axis else None,
        scores=_score_sets(session),
        top_samples=_top_samples(session, words),
        ritz=_ritz(session),
        solves=_solves(session),
        attributions=attribution.attributions(session),
        training=_training(session),
        costs=stage_costs(session),
        non_target_before=others["before"],
        non_target_reference=others.get("reference"),
        non_target_baseline=others.get("baseline"),
        label=f"{session.outline.training_rows:,} {words.noun}",
        data=session.keys["data"],
        beside={name: findings(inner) for name, inner in session.beside.items()},
        published=() if session.name else words.published,
        deviations=[*words.deviations, *deviations(session)],
        warnings=[*warnings(session), *_beside(session)],
        quarantined=quarantined(session),
        provenance=provenance_of(session),
    )  # fmt: skip


def _beside(session: Session) -> list[str]:
    """The warnings of the runs beside this one, each with the run's name."""
    return [f"{name}: {text}" for name, inner in session.beside.items() for text in warnings(inner)]


def _sentence(session: Session, words: Wording) -> str:
    settings, outline = session.settings, session.outline
    model = f"{outline.shapes.parameters:,}-parameter"
    rows, every = gradients.scored_rows(outline), outline.training_rows
    scored = "each of them" if rows == every else f"{rows:,} of the training {words.noun}"
    criterion = settings.targets.criterion
    largest = "with the largest gap" + (f" ({criterion})" if criterion != "relative" else "")
    most = settings.targets.per_condition
    if most and hasattr(session.task, "conditions"):
        largest += f", at most {most} under the same conditions"
    if session.name and session.context["chosen_in"]["evaluate"] != session.keys["evaluate"]:
        largest = "that the run improves"
    chosen = "named in the settings" if settings.targets.ids else largest
    pairs = len(queries.damped_spectrum(session).values_K)
    limit = "" if settings.actions.stop is None else "at most "
    return (
        f"A {model} {type(session.fresh_model()).__name__} was trained for "
        f"{settings.train.steps:,} steps on {every:,} {words.noun}; the influence "
        f"of {scored} on the "
        f"{len(evaluate.chosen_targets(session).ids)} evaluation {words.noun} {chosen} "
        f"was estimated from {pairs} Ritz pair{'' if pairs == 1 else 's'} of the "
        f"{OPERATORS[settings.curvature.kind]}, "
        f"and the model was fine-tuned for {limit}{settings.actions.steps} steps of "
        f"{settings.actions.batch_size} {words.noun} on what the scores chose."
    )


def _descriptions(session: Session, words: Wording) -> dict[str, str]:
    """Each selection as the subject of a sentence."""
    settings = session.settings.actions
    score = f"{settings.variant} score for the target"
    return {
        "helpful": f"the {settings.pool} {words.noun} with the highest {score}",
        "harmful": f"the {settings.pool} {words.noun} with the lowest {score}",
        "random": f"random training {words.noun}",
        "group": f"the {words.noun} with the highest joint score for the targets",
    }


def _named(session: Session, name: str, value: float) -> float | str:
    labels: Mapping[str, Sequence[str]] = getattr(session.task, "labels", {})
    named, place = labels.get(name, ()), int(value) if np.isfinite(value) else -1
    return named[place] if 0 <= place < len(named) else float(value)


def _targets(session: Session, words: Wording) -> list[of.Target]:
    task, columns = session.task, evaluate.evaluation(session)
    chosen = evaluate.chosen_targets(session)
    return [
        of.Target(
            id=int(row),
            metric=float(columns[task.metric][row]),
            gap=float(gap),
            reference=float(columns[task.reference][row]) if task.reference else None,
            axis=float(columns[task.axis][row]) if task.axis else None,
            baseline=float(columns[words.baseline][row]) if words.baseline in columns else None,
            columns={n: _named(session, n, columns[n][row]) for n in words.columns if n in columns},
        )
        for row, gap in zip(chosen.ids, chosen.gaps, strict=True)
    ]


def _evaluation_points(session: Session) -> of.EvaluationPoints:
    task, columns = session.task, evaluate.evaluation(session)
    settings = session.settings.targets
    gap = evaluate.gap(columns, task, settings.criterion)
    rule = "a gap above 0"
    if task.reference:
        name = results.wording(session).reference or task.reference
        rule = f"{name} at least {settings.min_reference:g}, and {rule}"
    return of.EvaluationPoints(
        ids_E=np.arange(len(gap)),
        gap_E=gap,
        axis_E=columns[task.axis] if task.axis else None,
        eligible_E=evaluate.eligible_rows(columns, task, settings),
        metric_E=columns[task.metric],
        reference_E=columns[task.reference] if task.reference else None,
        least_reference=settings.min_reference,
        rule=rule,
        draws=len(np.unique(evaluate.conditions(columns, task))),
    )


def _score_sets(session: Session) -> list[of.ScoreSet]:
    nonpositive, shares = scores.nonpositive_counts(session), scores.outside_shares(session)
    ids = evaluate.chosen_targets(session).ids
    return [
        of.ScoreSet(
            loss,
            variant,
            dict(zip(ids.tolist(), scores.stored_scores(session, loss, variant), strict=True)),
            nonpositive[f"{loss}.{variant}"],
            dict(zip(ids.tolist(), shares[loss])) if variant == "classic" else {},
        )
        for loss in session.outline.losses
        for variant in VARIANTS
    ]


def _top_samples(session: Session, words: Wording) -> list[Row]:
    settings = session.settings.actions
    found = []
    for rank, target in enumerate(evaluate.chosen_targets(session).ids.tolist()):
        scores_N = scores.stored_scores(session, settings.loss, settings.variant)[rank]
        order = np.argsort(-np.where(np.isfinite(scores_N), scores_N, -np.inf), kind="stable")
        order = order[: int(np.isfinite(scores_N).sum())]
        best, worst = order[:TOP], order[::-1][:TOP]
        rows = np.concatenate([best, worst])
        batch = session.task.batch("train", rows)
        places = [*range(1, len(best) + 1), *range(-1, -len(worst) - 1, -1)]
        for i, (place, row) in enumerate(zip(places, rows.tolist(), strict=True)):
            shown = {n: _named(session, n, float(batch[n][i])) for n in words.columns if n in batch}
            own = {"target": target, "rank": place, "id": row, "score": float(scores_N[row])}
            found.append(own | {"columns": shown})
    return found


def _ritz(session: Session) -> of.Ritz:
    pairs, spectrum = curvature.stored_pairs(session), queries.damped_spectrum(session)
    values_M, _, residuals_M = projected_pairs(pairs.hessenberg)
    return of.Ritz(
        values_K=pairs.values.tolist(),
        residuals_K=pairs.residuals.tolist(),
        kept=len(spectrum.values_K),
        kept_K=_kept(len(pairs.values), spectrum.kept),
        damping=spectrum.damping,
        complement=session.settings.scores.complement,
        complement_mean=spectrum.complement,
        trace=pairs.trace,
        policy=spectrum.report.policy,
        dropped=spectrum.report.dropped + spectrum.report.changed,
        orthogonality=pairs.orthogonality,
        asymmetry=pairs.asymmetry,
        operator=OPERATORS[session.settings.curvature.kind],
        all_values=values_M.tolist(),
        all_residuals=residuals_M.tolist(),
    )


def _kept(count: int, places: Sequence[int] | None) -> list[bool]:
    return [places is None or place in places for place in range(count)]


def _solves(session: Session) -> list[Row]:
    ids = evaluate.chosen_targets(session).ids
    return [
        {"target": int(ids[rank]), "loss": loss}
        | {k: record["summary"][k] for k in ("status", "steps", "residual")}
        for (rank, loss), record in queries.solves(session).items()
    ]


def _training(session: Session) -> of.TrainingCurve | None:
    loss = train.loss_curve(session)
    if not len(loss):
        return None
    label = f"training loss ({session.outline.losses[0]})"
    return of.TrainingCurve(list(range(1, len(loss) + 1)), loss.tolist(), label)
