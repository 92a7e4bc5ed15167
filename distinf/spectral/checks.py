"""What is refused before a run of the spectral recipe begins."""

from torch import nn

from distinf.naming import refuse_names
from distinf.spectral import (
    actions,
    attribution,
    curvature,
    damping,
    evaluate,
    factors,
    gradients,
    queries,
    train,
    trajectory,
)
from distinf.spectral.session import Session
from distinf.tasks.identity import has_own_rows
from distinf.tasks.methods import methods_to_try
from distinf.tasks.rehearsal import few_rows, rehearse
from distinf.tasks.task import STUDIES, GeneratingTask, build_task


def check(session: Session) -> str:
    """InputError for what can only fail later, hours into the run -> the method of gradients."""
    method = session.settings.gradients.chosen
    methods = methods_to_try(session.asked_method, method)
    if has_own_rows(session.task):
        model = rehearse(session.task)
        _refuse_parameters(model)
        method = gradients.rehearsed(session, model, methods)
    elif isinstance(session.task, GeneratingTask) and session.context["task"] not in STUDIES:
        _rehearse_made(session)
    evaluate.check(session)
    queries.check(session.outline)
    damping.check(session)
    factors.check(session)
    trajectory.check(session.outline)
    actions.check(session)
    train.check(session)
    curvature.check(session)
    attribution.check(session)
    return method


def _rehearse_made(session: Session) -> None:
    """On a few rows made here, of a task whose rows are made in the run."""
    other = build_task(session.context["task"], session.context["task_settings"], session.seed)
    few_rows(other)
    _refuse_parameters(rehearse(other))


def _refuse_parameters(model: nn.Module) -> None:
    """InputError for a name among the model's state that cannot be an array's in a checkpoint."""
    refuse_names("task: model()'s parameters and buffers", model.state_dict(), cased=True)
