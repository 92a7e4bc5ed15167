"""The run's own training unrolled: exact influence of every row on every target's loss.

Held against training without rows beside the stored scores (`distinf evaluate RUN --unrolled`).
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.unrolling import Step, Training, replayed, unrolled
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.queries import target_gradients
from distinf.spectral.session import Session
from distinf.spectral.train import starting_model, step_rows, trained_model

APART = 1e-2  # of the way that training went: where the replay may end beside it


def check(session: Session) -> None:
    """InputError for a training that cannot be unrolled, before any of it is done again."""
    if session.settings.train.precision != "float32":
        raise InputError("evaluate: --unrolled needs a run of train.precision: float32")
    _training(session, starting_model(session)).check()


def scores(
    session: Session, cell: str, targets: slice, tell: Callable[[float], None]
) -> Mapping[str, np.ndarray]:
    """Unrolls.scores: fp64 [targets, N] of each loss, by the run's own batches and optimizer.

    InputError if the training done again ends elsewhere: then it is no training of the run's.
    """
    model = starting_model(session)
    training, end = _training(session, model), trained_model(session)
    trace = replayed(training, lambda share: tell(0.2 * share))
    _refuse_elsewhere(model, end, trace.end)
    batch = session.batch("evaluation", chosen_targets(session).ids[targets])
    losses = session.task.losses
    grads = [
        target_gradients(session, end, loss, batch, training.layout) for loss in losses.values()
    ]
    found = unrolled(
        trace, torch.cat(grads), session.outline.training_rows,
        lambda share: tell(0.2 + 0.8 * share),
    )  # fmt: skip
    parts = found.cpu().numpy().reshape(len(losses), -1, found.shape[1])
    return dict(zip(losses, parts, strict=True))


def _training(session: Session, model: nn.Module) -> Training:
    settings = session.settings.train
    return Training(
        model,
        next(iter(session.task.losses.values())),
        lambda ids: session.batch("train", ids),
        [Step(step_rows(session, k), settings.rate(k)) for k in range(settings.steps)],
        session.task.optimizer(model.parameters(), settings.lr, settings.weight_decay),
    )


def _refuse_elsewhere(start: nn.Module, end: nn.Module, found: Mapping[str, torch.Tensor]) -> None:
    went = apart = 0.0
    for name, value in found.items():
        first, last = (model.get_parameter(name).detach().double() for model in (start, end))
        went += float((last - first).square().sum())
        apart += float((value.double() - last).square().sum())
    if not apart <= APART**2 * went:
        raise InputError(
            "evaluate: --unrolled: the training done again ends at other weights than the run's "
            f"({(apart / went if went else apart) ** 0.5:.1g} of the way apart): it draws at "
            "random, or has something that evaluation mode leaves out"
        )
