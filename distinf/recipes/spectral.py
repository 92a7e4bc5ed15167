"""The spectral recipe: curvature first, then projections of gradients on its Ritz vectors."""

from distinf.engine.recipe import Asks, Evaluates, Recipe, Unrolls
from distinf.lazily import later
from distinf.spectral import (
    actions,
    attribution,
    curvature,
    data,
    evaluate,
    factors,
    gradients,
    queries,
    retraining,
    scores,
    train,
    trajectory,
    unrolling,
)
from distinf.spectral.asking import answers, ranking
from distinf.spectral.checks import check
from distinf.spectral.session import Session
from distinf.spectral.settings import StageSettings

RECIPE = Recipe(
    settings=StageSettings,
    stages=(
        data.STAGE,
        train.STAGE,
        evaluate.STAGE,
        evaluate.TARGETS,
        curvature.STAGE,
        queries.STAGE,
        factors.STAGE,
        gradients.STAGE,
        scores.STAGE,
        trajectory.STAGE,
        trajectory.TRACIN,
        attribution.STAGE,
        actions.STAGE,
        retraining.STAGE,
    ),
    report=later("distinf.report.spectral.report:write"),
    session=Session,
    check=check,
    decided=curvature.decided,
    lent=evaluate.targets_of_the_run,
    asks=Asks(ranking, answers, (data.STAGE, gradients.STAGE, scores.STAGE)),
    evaluates=Evaluates(
        retraining.STAGE,
        retraining.check,
        retraining.foretold,
        retraining.losses,
        (scores.STAGE, trajectory.TRACIN),
        retraining.passed,
        retraining.ALIGNED,
        Unrolls(unrolling.check, unrolling.scores),
        retraining.trained,
    ),
    summary=later("distinf.report.spectral.terminal:summary"),
    packages=("torch", "numpy", "sionna-no-rt", "sionna"),
    files=("train.checkpoint",),
    unread=("data.cache_mb", "gradients.check"),
)
