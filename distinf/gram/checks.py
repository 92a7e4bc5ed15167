"""What is refused before a run of the Gram recipe begins."""

import numpy as np

from distinf.gram import actions, configurations, factors, gradients, spread, tokens, train
from distinf.gram.session import TRAIN, Session
from distinf.gram.task import Checked, Prepared, described_rows, rehearse_probabilities
from distinf.tasks.methods import methods_to_try
from distinf.tasks.rehearsal import rehearse


def check(session: Session) -> str:
    """InputError for what can only fail later, hours into the run -> the method of gradients."""
    asked, method = session.asked_method, session.settings.gradients.chosen
    methods = methods_to_try(asked, method)
    first = next(iter(session.tasks.values()))  # the others have other datasets or seeds
    if isinstance(first, Checked):
        first.check()
    for task in session.tasks.values():
        if not isinstance(task, Prepared):
            method = gradients.rehearsed(session, task, rehearse(task), methods)
            methods = methods[methods.index(method) :]
            described_rows(task, np.arange(min(2, task.rows(TRAIN))))
            rehearse_probabilities(task)
    train.check(session)
    spread.check(session)
    factors.check(session)
    configurations.check(session.outline)
    actions.check(session)
    tokens.check(session)
    return method
