"""The empirical recipe: influence measured by fine-tuning on one row at a time."""

from distinf.empirical import base, tuning
from distinf.empirical.settings import StageSettings
from distinf.engine.recipe import Recipe
from distinf.report.empirical.page import summary, write

RECIPE = Recipe(
    settings=StageSettings,
    stages=(base.STAGE, tuning.STAGE),
    report=write,
    check=tuning.check,
    unevaluated="its influence is not foretold but measured, by training on one row at a time",
    summary=summary,
    unread=("tune.rows_per_unit", "tune.least_taken"),
)
