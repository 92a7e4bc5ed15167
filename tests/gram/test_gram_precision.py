"""A run's scores at small dampings against dense float64 algebra of the gradients that it stored:
what is left after a division by lambda is a small difference of products."""

import numpy as np
import pytest
import torch

from distinf.gram.scores import block_totals
from distinf.gram.session import QUERY, TRAIN
from distinf.gram.stored_gradients import dense_rows
from tests.gram.test_gram_route import scored, session_of

SHARES = (1e-3, 1e-6)  # of the mean squared norm of a block's gradients


def stored(session, cell, block):
    """fp64 [N, P] and [Q, P]: a block's gradients as they lie on the disk."""
    found = []
    for split in (TRAIN, QUERY):
        rows = dense_rows(session, cell.name, split, block.slab, 0, cell.rows[split])
        found.append(rows[:, block.span].double())
    return found


def expected(estimator, train_NP, query_QP, damping):
    """fp64 [Q, N] by the singular values of the training gradients, of which lambda is no small
    difference: where no gradient lies there is nothing to be divided."""
    count, cross_QN = len(train_NP), query_QP @ train_NP.T
    if estimator == "datainf":
        weights_QN = cross_QN / (damping + train_NP.square().sum(1))
        return (cross_QN - weights_QN @ (train_NP @ train_NP.T) / count) / damping
    left_NR, values_R, right_RP = torch.linalg.svd(train_NP, full_matrices=False)
    inverse_R = values_R / (values_R.square() / count + damping)
    return (query_QP @ right_RP.T * inverse_R) @ left_NR.T


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rows", [30, 60], ids=["blocks wider than rows too", "all narrow"])
def test_scores_at_a_small_damping_have_the_digits_of_float64(tmp_path, share, rows):
    settings = {"rows": rows, "queries": 6, "seeds": 1}
    damping = dict.fromkeys(("datainf", "fisher"), share * 0.1)
    scores = {"estimators": [*damping], "damping": damping}
    session = scored(session_of(tmp_path / "run", settings=settings, scores=scores))
    (cell,) = session.outline.cells.values()
    totals = block_totals(session, cell)
    for block in cell.blocks.dense:
        train_NP, query_QP = stored(session, cell, block)
        for name in damping:
            wanted_N = expected(name, train_NP, query_QP, damping[name]).mean(0).numpy()
            found_N = totals[name, block.name][0]
            np.testing.assert_allclose(found_N, wanted_N, rtol=1e-5, atol=1e-6 * wanted_N.max())
