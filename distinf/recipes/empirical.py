"""The empirical recipe: influence measured by fine-tuning on one row at a time."""

from distinf.empirical.settings import StageSettings
from distinf.empirical.stages import STAGES, check
from distinf.engine.recipe import Recipe
from distinf.report.empirical.page import summary, write

RECIPE = Recipe(
    settings=StageSettings,
    stages=STAGES,
    report=write,
    check=check,
    summary=summary,
    unread=("tune.rows_per_unit", "tune.least_taken"),
)
