"""The Gram recipe: gradients once, then products of them."""

from distinf.engine.recipe import Asks, Evaluates, Recipe
from distinf.gram import (
    actions,
    baselines,
    candidates,
    data,
    factors,
    gradients,
    gram,
    retraining,
    scores,
    tokens,
    train,
)
from distinf.gram.asking import answers, ranking
from distinf.gram.checks import check
from distinf.gram.session import Session
from distinf.gram.settings import StageSettings
from distinf.gram.task import cells_of
from distinf.lazily import later

RECIPE = Recipe(
    settings=StageSettings,
    stages=(
        data.STAGE, train.STAGE, gradients.STAGE, factors.STAGE, gram.STAGE, scores.STAGE,
        baselines.STAGE, tokens.STAGE, actions.STAGE, retraining.STAGE,
    ),
    report=later("distinf.report.gram.page:write"),
    session=Session,
    cells=cells_of,
    check=check,
    asks=Asks(ranking, answers, (data.STAGE, gradients.STAGE, candidates.STAGE)),
    evaluates=Evaluates(
        retraining.STAGE,
        retraining.check,
        retraining.foretold,
        retraining.losses,
        (scores.STAGE,),
        retraining.passed,
        trained=retraining.trained,
    ),
    summary=later("distinf.report.gram.terminal:summary"),
    packages=("torch", "numpy", "transformers", "peft", "accelerate", "bitsandbytes"),
    unread=(
        "train.evaluation_batch", "gradients.check", "gradients.devices", "actions.resources_gpus",
    ),
)  # fmt: skip
