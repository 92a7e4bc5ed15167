"""The basis route: its stages in order, and what is refused before any of them runs."""

from collections.abc import Sequence
from types import ModuleType

from distinf.stages.basis import (
    actions,
    attribution,
    curvature,
    data,
    evaluate,
    gradients,
    queries,
    report,
    scores,
    train,
    trajectory,
)
from distinf.stages.basis.session import Session
from distinf.stages.methods import methods_to_try
from distinf.stages.task import GeneratingTask, rehearse

STAGES: Sequence[ModuleType] = (
    data,
    train,
    evaluate,
    curvature,
    queries,
    gradients,
    scores,
    trajectory,
    attribution,
    actions,
    report,
)


def check(session: Session) -> str:
    """InputError for what can only fail later, hours into the run -> the method of gradients."""
    method = session.settings.gradients.chosen
    methods = methods_to_try(session.asked_method, method)
    if not isinstance(session.task, GeneratingTask):
        method = gradients.rehearsed(session, rehearse(session.task), methods)
    evaluate.check(session.outline)
    trajectory.check(session.outline)
    actions.check(session.outline)
    train.check(session)
    curvature.check(session)
    attribution.check(session)
    return method
