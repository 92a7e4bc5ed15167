"""Gradients and products under scores.filter: preconditioned, by the optimizer's stored moments.

Ritz pairs are of P^1/2 H P^1/2 then, and coordinates and squared norms of P^1/2 g; elsewhere, and
under any other filter, gradients are as they are.
"""

import torch
from torch import Tensor

from distinf.numerics.krylov import Matvec
from distinf.numerics.parameters import Layout
from distinf.numerics.preconditioning import preconditioned, preconditioner
from distinf.spectral.session import Session
from distinf.spectral.train import trained_model, trained_optimizer


def is_asked(session: Session) -> bool:
    return session.settings.scores.filter == "preconditioned"


def rooted(session: Session, rows_P: Tensor) -> Tensor:
    """P^1/2 times each of the rows [..., P], where that is asked for."""
    return rows_P * _roots(session)[0].to(rows_P) if is_asked(session) else rows_P


def product(session: Session, matvec: Matvec) -> Matvec:
    """v -> P^1/2 H P^1/2 v + decay v of v -> H v, where that is asked for."""
    return preconditioned(matvec, *_roots(session)) if is_asked(session) else matvec


def _roots(session: Session) -> tuple[Tensor, Tensor]:
    """[P] each: the root of the preconditioner when training ended, and the decay."""
    return session.cached("preconditioner", lambda: _made(session))


def _made(session: Session) -> tuple[Tensor, Tensor]:
    train, model = session.settings.train, trained_model(session)
    optimizer = session.task.optimizer(model.parameters(), train.lr, train.weight_decay)
    trained_optimizer(session, model, optimizer)
    layout, named = (
        Layout.of(model, session.settings.curvature.blocks),
        dict(model.named_parameters()),
    )
    with torch.no_grad():
        found = {name: preconditioner(optimizer, named[name]) for name in layout.names}
    scale_P, decay_P = (layout.flatten({n: f[k] for n, f in found.items()}) for k in (0, 1))
    return scale_P.sqrt(), decay_P
