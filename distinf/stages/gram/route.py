"""The Gram route: its stages in order, and what is refused before any of them runs."""

from collections.abc import Sequence
from types import ModuleType

from distinf.stages.gram import actions, data, gradients, gram, report, scores, train
from distinf.stages.gram.session import Session
from distinf.stages.gram.task import Prepared
from distinf.stages.task import rehearse

STAGES: Sequence[ModuleType] = (data, train, gradients, gram, scores, actions, report)


def check(session: Session) -> None:
    """InputError for what can only fail later, hours into the run."""
    for task in session.tasks.values():
        if not isinstance(task, Prepared):
            rehearse(task)
    scores.check(session.outline)
    actions.check(session)
