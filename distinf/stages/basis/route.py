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


def check(session: Session) -> None:
    """InputError for what can only fail later, hours into the run."""
    if not isinstance(session.task, GeneratingTask):
        rehearse(session.task)
    evaluate.check(session.outline)
    trajectory.check(session.outline)
    actions.check(session.outline)
    train.check(session)
    curvature.check(session)
    attribution.check(session)
