"""Stage report: from the run's committed arrays to one page, its tables and its raw numbers."""

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distinf.numerics.variants import VARIANTS
from distinf.runtime import Cost, Runtime, Unit
from distinf.stages import actions, curvature, data, evaluate, gradients, queries, scores, train
from distinf.stages.page import findings as page
from distinf.stages.page.page import render
from distinf.stages.page.tables import csv_text, json_text, tables
from distinf.stages.session import Outline, Session
from distinf.stages.task import Wording

NAME = "report"
OPERATORS = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}
TOP = 5  # most helpful and most harmful rows listed per target


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One unit: the page."""
    return [(Unit(NAME, outline.basis[NAME]), Cost(bytes=3e6))]


def is_done(session: Session) -> bool:
    """The page is there, and it is this run's."""
    unit = units(session.outline)[0][0]
    page_is_there = "report/index.html" in session.blobs.names("report")
    return page_is_there and bool(session.done([unit]))


def run(session: Session, runtime: Runtime) -> None:
    """Write report/index.html, findings.json and every table as CSV and JSON; then say so."""
    write(session)
    unit = units(session.outline)[0][0]
    empty = {"group": "report", "files": {}, "bytes": 0}
    session.ledger(NAME).commit(unit, 1, {"manifest": empty, "summary": {}})


def write(session: Session) -> None:
    """The report's files. The page is put last, so that a page that is there is complete."""
    found = findings(session)
    for name, rows in tables(found).items():
        session.blobs.put(f"report/{name}.csv", csv_text(rows).encode())
        session.blobs.put(f"report/{name}.json", json_text(rows).encode())
    session.blobs.put("report/findings.json", json.dumps(found.to_json(), indent=1).encode())
    session.blobs.put("report/index.html", render(found).encode())


def wording(session: Session) -> Wording:
    """How this task wants to be spoken of."""
    given = getattr(session.task, "wording", None)
    return given if isinstance(given, Wording) else Wording(metric=session.task.metric)


def findings(session: Session) -> page.Findings:
    """Everything that the page shows, read from committed arrays."""
    words, task, settings = wording(session), session.task, session.settings
    title = settings.report.title or f"Training {words.noun} that help, and the gain from them"
    return page.Findings(
        title=title,
        task=_sentence(session, words),
        question=words.question,
        metric=page.MetricInfo(
            name=words.metric, reference=words.reference,
            baseline=words.baseline_label, axis=words.axis, log=words.log,
        ),
        headline=page.Headline(
            loss=settings.actions.loss or session.outline.losses[0],
            variant=settings.actions.variant, noun=words.noun, pool=settings.actions.pool,
            steps=settings.actions.steps,
        ),
        outcomes=outcomes(session),
        descriptions=_descriptions(session, words),
        targets=_targets(session, words),
        evaluation=_evaluation_points(session),
        axis_curves=_axis_curves(session, words) if task.axis else None,
        scores=_score_sets(session),
        top_samples=_top_samples(session, words),
        ritz=_ritz(session),
        solves=_solves(session),
        training=_training(session),
        costs=_costs(session),
        deviations=words.deviations,
        warnings=_warnings(session),
        quarantined=_quarantined(session),
        provenance=_provenance(session),
    )  # fmt: skip


def outcomes(session: Session) -> list[page.Outcome]:
    """One per fine-tuning job: gap reduction (Eq. 10) and what it did to other rows."""
    settings = session.settings.actions
    loss = settings.loss or session.outline.losses[0]
    targets = evaluate.chosen_targets(session)
    reference = _reference(session, targets.ids)
    before = _finite_mean(actions.non_targets_before(session))
    found = []
    for job in actions.chosen_jobs(session):
        stored = session.arrays(job)
        rank, selection = job.job["target"], job.job["selection"]
        metric = stored["metric_by_step"]
        guided = selection != "random"
        found.append(
            page.Outcome(
                selection=selection,
                target=int(targets.ids[rank]),
                seed=job.job["seed"],
                gap_reduction_pct=gap_reduction(metric[0], metric[-1], reference[rank]),
                metric_by_step=metric.tolist(),
                non_target_change_pct=_change_pct(_finite_mean(stored["others"]), before),
                loss=loss if guided else "",
                variant=settings.variant if guided else "",
            )
        )
    return found


def gap_reduction(before: float, after: float, reference: float) -> float:
    """Percent of the gap to the reference that is gone (paper 000, Eq. 10); NaN without a gap."""
    gap = before - reference
    return 100.0 * (before - after) / gap if gap > 0 else float("nan")


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _change_pct(after: float, before: float) -> float | None:
    """Percent change; None where there is nothing to compare with, or no number."""
    if not before > 0 or not np.isfinite(after):
        return None
    return 100.0 * (after / before - 1.0)


def _reference(session: Session, ids: np.ndarray) -> np.ndarray:
    name = session.task.reference
    columns = evaluate.evaluation(session)
    return columns[name][ids].astype(np.float64) if name else np.zeros(len(ids))


def _sentence(session: Session, words: Wording) -> str:
    settings, outline = session.settings, session.outline
    model = f"{outline.shapes.parameters:,}-parameter"
    rows, every = gradients.scored_rows(outline), outline.rows["train"]
    scored = "each of them" if rows == every else f"{rows:,} of them"
    return (
        f"A {model} {type(session.fresh_model()).__name__} was trained for "
        f"{settings.train.steps:,} steps on {outline.rows['train']:,} {words.noun}; the influence "
        f"of {scored} on the "
        f"{len(evaluate.chosen_targets(session).ids)} evaluation {words.noun} with the largest gap "
        f"was estimated from {settings.curvature.keep} Ritz pairs of the "
        f"{OPERATORS[settings.curvature.kind]}, "
        f"and the model was fine-tuned for {settings.actions.steps} steps of "
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
    }


def _named(session: Session, name: str, value: float) -> float | str:
    labels: Mapping[str, Sequence[str]] = getattr(session.task, "labels", {})
    return labels[name][int(value)] if name in labels else float(value)


def _targets(session: Session, words: Wording) -> list[page.Target]:
    task, columns = session.task, evaluate.evaluation(session)
    chosen = evaluate.chosen_targets(session)
    return [
        page.Target(
            id=int(row),
            metric=float(columns[task.metric][row]),
            gap=float(gap),
            reference=float(columns[task.reference][row]) if task.reference else None,
            axis=float(columns[task.axis][row]) if task.axis else None,
            columns={n: _named(session, n, columns[n][row]) for n in words.columns if n in columns},
        )
        for row, gap in zip(chosen.ids, chosen.gaps, strict=True)
    ]


def _evaluation_points(session: Session) -> page.EvaluationPoints:
    task, columns = session.task, evaluate.evaluation(session)
    gap = evaluate.relative_gap(columns, task)
    least = session.settings.targets.min_reference
    eligible = np.isfinite(gap) & (gap > 0)
    rule = "a gap above 0"
    if task.reference:
        eligible &= columns[task.reference] >= least
        rule = f"{wording(session).reference or task.reference} at least {least:g}, and {rule}"
    return page.EvaluationPoints(
        ids_E=np.arange(len(gap)),
        gap_E=gap,
        axis_E=columns[task.axis] if task.axis else None,
        eligible_E=eligible,
        rule=rule,
    )


def _axis_curves(session: Session, words: Wording) -> page.AxisCurves:
    """Means per bin over the non-targets: the rows that every job evaluated."""
    task, columns = session.task, evaluate.evaluation(session)
    ids = actions.non_target_ids(session)
    x = columns[str(task.axis)][ids]
    edges = np.linspace(x.min(), np.nextafter(x.max(), np.inf), session.settings.report.bins + 1)
    place = np.clip(np.digitize(x, edges) - 1, 0, session.settings.report.bins - 1)
    counts = np.bincount(place, minlength=session.settings.report.bins)
    used = counts > 0

    def binned(values: np.ndarray) -> list[float]:
        sums = np.bincount(place, weights=values, minlength=len(counts))
        return (sums[used] / counts[used]).tolist()

    curves = {"before": binned(columns[task.metric][ids])}
    if task.reference:
        curves["reference"] = binned(columns[task.reference][ids])
    if words.baseline and words.baseline in columns:
        curves["baseline"] = binned(columns[words.baseline][ids])
    for selection in session.settings.actions.selections:
        jobs = [j for j in actions.chosen_jobs(session) if j.job["selection"] == selection]
        after = [session.arrays(job, ["others"])["others"] for job in jobs]
        curves[selection] = binned(np.mean(after, axis=0))
    centres = (edges[:-1] + edges[1:]) / 2
    return page.AxisCurves(centres[used].tolist(), counts[used].tolist(), curves)


def _score_sets(session: Session) -> list[page.ScoreSet]:
    unit = scores.score_unit(session.outline)
    nonpositive = session.done([unit])[unit.id]["summary"]["nonpositive"]
    ids = evaluate.chosen_targets(session).ids
    return [
        page.ScoreSet(
            loss,
            variant,
            dict(zip(ids.tolist(), scores.stored_scores(session, loss, variant), strict=True)),
            nonpositive[f"{loss}.{variant}"],
        )
        for loss in session.outline.losses
        for variant in VARIANTS
    ]


def _top_samples(session: Session, words: Wording) -> list[page.ScoredSample]:
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
            found.append(page.ScoredSample(target, place, row, float(scores_N[row]), shown))
    return found


def _ritz(session: Session) -> page.Ritz:
    pairs, spectrum = curvature.stored_pairs(session), queries.damped_spectrum(session)
    return page.Ritz(
        values_K=pairs.values.tolist(),
        residuals_K=pairs.residuals.tolist(),
        kept=len(spectrum.values_K),
        kept_K=_kept(len(pairs.values), spectrum.kept),
        damping=spectrum.damping,
        complement_mean=spectrum.complement,
        trace=pairs.trace,
        policy=spectrum.report.policy,
        dropped=spectrum.report.dropped + spectrum.report.changed,
        orthogonality=pairs.orthogonality,
        asymmetry=pairs.asymmetry,
        operator=OPERATORS[session.settings.curvature.kind],
    )


def _kept(count: int, places: Sequence[int] | None) -> list[bool]:
    return [places is None or place in places for place in range(count)]


def _solves(session: Session) -> list[page.Solve]:
    ids = evaluate.chosen_targets(session).ids
    return [
        page.Solve(
            int(ids[rank]), loss, record["summary"]["status"], record["summary"]["steps"],
            record["summary"]["residual"],
        )
        for (rank, loss), record in queries.solves(session).items()
    ]  # fmt: skip


def _training(session: Session) -> page.TrainingCurve | None:
    loss = train.loss_curve(session)
    if not len(loss):
        return None
    label = f"training loss ({session.outline.losses[0]})"
    return page.TrainingCurve(list(range(1, len(loss) + 1)), loss.tolist(), label)


def _costs(session: Session) -> list[page.StageCost]:
    times = session.times()
    found = []
    for stage in (data, train, evaluate, curvature, queries, gradients, scores, actions):
        records = session.done([unit for unit, _ in stage.units(session.outline)]).values()
        spent = [t for t in times if t["stage"] == stage.NAME]
        if not records:
            continue
        found.append(
            page.StageCost(
                stage=stage.NAME,
                units=len(records),
                seconds=sum(t["seconds"] for t in spent),
                worker_seconds=sum(t["busy_s"] for t in spent),
                bytes=sum(r["manifest"]["bytes"] for r in records),
            )
        )
    return found


def _quarantined(session: Session) -> dict[str, list[int]]:
    rows = gradients.quarantined_rows(session)
    return {"train": rows} if rows else {}


def _warnings(session: Session) -> list[str]:
    found = []
    asked, chosen = session.settings.targets.count, len(evaluate.chosen_targets(session).ids)
    if chosen < asked:
        found.append(f"Only {chosen} of the {asked} targets asked for were eligible.")
    metric = evaluate.evaluation(session)[session.task.metric]
    unknown = np.flatnonzero(~np.isfinite(metric)).tolist()
    if unknown:
        found.append(
            f"The metric of {len(unknown)} of {len(metric)} evaluation rows is not finite, and "
            f"they are left out of all means: {', '.join(map(str, unknown[:10]))}."
        )
    shown = [(t.axis, *t.columns.values()) for t in _targets(session, wording(session))]
    if session.task.axis and len(shown) > 1 and len(set(shown)) == 1:
        found.append(
            "The targets have the same conditions and may be one draw of them: they are less "
            "evidence than as many independent ones."
        )
    left_out = curvature.left_out_rows(session)
    if left_out:
        found.append(
            f"The curvature leaves out {len(left_out)} drawn rows whose loss is not finite: "
            f"{', '.join(map(str, left_out[:10]))}{' …' if len(left_out) > 10 else ''}."
        )
    failed = [s for s in _solves(session) if s.status != "converged"]
    if failed:
        found.append(
            f"{len(failed)} refined solves did not converge; their targets are scored from the "
            "Ritz pairs alone."
        )
    return found


def _provenance(session: Session) -> page.Provenance:
    import yaml

    text = session.blobs.get("config.yaml").decode()
    stored: dict[str, Any] = yaml.safe_load(text)
    record = stored.get("provenance") or {}
    return page.Provenance(
        config_yaml=text,
        command="distinf run config.yaml",
        fingerprint=session.basis[NAME],
        versions=record.get("versions", {}),
        machine={k: str(v) for k, v in record.get("machine", {}).items()}
        | {"processor": platform.machine()},
        seeds={"run": session.seed},
    )
