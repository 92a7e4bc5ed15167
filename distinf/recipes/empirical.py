"""The empirical recipe: influence measured by fine-tuning on one row at a time."""

from distinf.empirical import base, estimates, rates, tuning
from distinf.empirical.session import Session
from distinf.empirical.settings import StageSettings
from distinf.engine.recipe import Recipe
from distinf.lazily import later


def check(session: Session) -> str:
    """InputError for what can only fail later -> no method of gradients to choose."""
    estimates.check(session, tuning.check(session))
    return ""


RECIPE = Recipe(
    settings=StageSettings,
    stages=(base.STAGE, rates.STAGE, tuning.STAGE, estimates.STAGE),
    report=later("distinf.report.empirical.page:write"),
    session=Session,
    check=check,
    unevaluated="its influence is not foretold but measured, by training on one row at a time",
    summary=later("distinf.report.empirical.page:summary"),
    unread=("tune.rows_per_unit", "tune.least_taken"),
)
