"""Scores of very small and very large gradients: as finite and as right as in float64."""

import pytest
import torch

import distinf
from distinf.errors import InputError
from distinf.numerics.aggregation import aggregate, alike
from distinf.numerics.estimators.datainf import DataInfSettings
from distinf.numerics.estimators.fisher import FisherSettings
from distinf.numerics.krylov import RitzPairs
from distinf.numerics.products import ORDINARY, scaled, scales, sqnorms
from distinf.numerics.sparse import SparseRows

N, Q, P = 9, 3, 40
SIZES = {
    "large": [1e20],
    "largest": [1e37],
    "small": [1e-30],
    "subnormal": [1e-42],
    "confident": [1.0, 1e-18, 1e-25],
    "mixed": [1e20, 1e-30, 1.0, 1e-8],
    "ordinary": [1.0, 1e-3],
}


def gradients(sizes):
    """float32 (train [N, P], query [Q, P]), rows of the sizes in turn."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(N + Q, P, generator=generator, dtype=torch.float64)
    each = torch.tensor(sizes, dtype=torch.float64).repeat(N + Q)[: N + Q]
    rows = (rows * each[:, None]).float()
    return rows[:N], rows[N:]


def inverse_scores(train, query, damping=None, variant="classic"):
    """Fisher's, by the dense inverse in parameter space, in rows of unit scale: float64."""
    unit = train.abs().max()
    train, query = train / unit, query / unit
    fisher = train.T @ train / N
    damping = fisher.trace() / 10 if damping is None else damping / unit**2
    inverse = torch.linalg.inv(fisher + damping * torch.eye(P, dtype=torch.float64))
    classic = query @ inverse @ train.T
    solved = train @ inverse
    below = {
        "classic": torch.ones(N, dtype=torch.float64),
        "theta-relative": solved.norm(dim=1) / unit,
        "ell-relative": (solved * train).sum(1).sqrt(),
        "newfluence": 1 - (solved * train).sum(1) / N,
    }
    return classic / below[variant]


def expected(train, query, estimator):
    train, query = train.double(), query.double()
    if estimator == "tracin":
        return query @ train.T
    if estimator == "cosine":
        unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (query, train)]
        return unit[0] @ unit[1].T
    damping = train.square().sum() / (10 * N * P)
    kernels = [query @ train.T]
    weights = (query @ train.T) / (damping + train.square().sum(1))
    return (kernels[0] - weights @ train @ train.T / N) / damping


def agrees(found, right, train, query, tolerance=3e-6):
    """Relative to the largest score of the same two sizes: float32 products promise no more."""
    assert torch.isfinite(found).all()
    scale = query.double().norm(dim=1)[:, None] * train.double().norm(dim=1)
    worst = ((found - right).abs() / scale).max() / (right.abs() / scale).max()
    assert worst < tolerance


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("estimator", ["tracin", "cosine", "datainf"])
def test_scores_are_those_of_float64(estimator, sizes):
    train, query = gradients(SIZES[sizes])
    found = distinf.influence(train, query, estimator)
    right = expected(train, query, estimator)
    if estimator == "cosine":
        torch.testing.assert_close(found, right, rtol=0, atol=1e-6)
    else:
        agrees(found, right, train, query)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("variant", ["classic", "theta-relative", "ell-relative", "newfluence"])
def test_fisher_scores_of_rows_of_very_different_size(variant, sizes):
    train, query = gradients(SIZES[sizes])
    found = distinf.influence(train, query, FisherSettings(variant=variant))
    right = inverse_scores(train.double(), query.double(), variant=variant)
    assert torch.isfinite(found).all()
    for row in range(N):  # each by its own scale: a small row's is not lost in a large one's
        size = query.double().norm(dim=1) / query.double().norm()
        close = (found[:, row] - right[:, row]).abs() / size
        assert (close / (right[:, row].abs() / size).max() < 1e-4).all()


@pytest.mark.parametrize("size", [1e20, 1e-30])
@pytest.mark.parametrize("settings", [FisherSettings, DataInfSettings])
def test_a_damping_of_ones_own(settings, size):
    train, query = gradients([size])
    found = distinf.influence(train, query, settings(damping=1.0))
    if size < 1:  # the damping is all that there is
        agrees(found, query.double() @ train.double().T, train, query)
    else:
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("sizes", ["large", "small", "mixed"])
def test_ritz_pairs(sizes):
    train, query = gradients(SIZES[sizes])
    vectors, _ = torch.linalg.qr(torch.randn(P, 4, dtype=torch.float64))
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    none = values * 0
    pairs = RitzPairs(values, vectors.T.contiguous(), none, 0.0, 0.0, 20.0, none)
    hessian = (vectors * (values - 10 / 36)) @ vectors.T
    hessian += 10 / 36 * torch.eye(P, dtype=torch.float64)
    inverse = torch.linalg.inv(hessian + 0.1 * torch.eye(P, dtype=torch.float64))
    for variant, below in (
        ("theta-relative", (train.double() @ inverse).norm(dim=1)),
        ("ell-relative", (train.double() @ inverse @ train.double().T).diagonal().sqrt()),
    ):
        found = distinf.influence(
            train, query, "arnoldi", curvature=pairs, damping=0.1, variant=variant
        )
        agrees(found, query.double() @ inverse @ train.double().T / below, train, query)


def test_cosines_of_confident_rows_are_one_in_either_precision():
    direction = torch.randn(1, P, dtype=torch.float64)
    for dtype, sizes in ((torch.float32, (1e-40, 1e30)), (torch.float64, (1e-250, 1e290))):
        train = torch.cat([direction * size for size in sizes] + [direction * 0]).to(dtype)
        found = distinf.influence(train, -train[:2], "cosine")
        right = torch.tensor([[-1.0, -1.0, 0.0]] * 2, dtype=torch.float64)
        torch.testing.assert_close(found, right, rtol=0, atol=1e-4)


def test_embedding_rows_of_any_size():
    offsets, ids = torch.tensor([0, 2, 3]), torch.tensor([1, 4, 4])
    for size in (1e20, 1e-30):
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-3.0, -4.0]]) * size
        words = SparseRows(offsets, ids, rows, 6)
        dense = words.dense().flatten(1)
        for estimator in ("tracin", "cosine", "datainf", "fisher"):
            found = distinf.influence(words, words, estimator)
            torch.testing.assert_close(
                found, distinf.influence(dense, dense, estimator), rtol=1e-4, atol=0
            )


def test_gradients_of_zero_move_nothing():
    train, query = gradients([1.0])
    train[2] = 0
    for estimator in ("tracin", "cosine", "datainf", "fisher"):
        assert not distinf.influence(train, query, estimator)[:, 2].any()
    relative = distinf.influence(train, query, FisherSettings(variant="theta-relative"))
    assert torch.isnan(relative).all(0).tolist() == [row == 2 for row in range(N)]


def test_squares_that_overflow_float64_are_no_broken_gradient():
    rows = torch.full((2, 3), 1e200, dtype=torch.float64)
    with pytest.raises(InputError, match=r"overflow float64.*divide the loss"):
        distinf.influence(rows, rows, "tracin")
    assert torch.isfinite(distinf.influence(rows / 1e100, rows / 1e100, "tracin")).all()
    rows[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"1 train gradients are not finite \(rows \[0\]\)"):
        distinf.influence(rows, rows, "cosine")


def test_ordinary_rows_are_not_touched():
    rows = torch.randn(4, P)
    ones = scales(sqnorms(rows))
    assert scaled(rows, ones) is rows
    assert scales(torch.tensor([0.0, ORDINARY[0] ** 2 * 4])).tolist() == [1.0, 1.0]
    odd = rows * torch.tensor([[1e-44], [1e38], [1.0], [0.0]])
    found = scales(sqnorms(odd))
    back = scaled(odd, found).double() * found[:, None]
    assert torch.equal(back, odd.double())


def test_ranks_of_scores_that_float32_cannot_hold():
    scores = torch.tensor([[3e-60, 1e-60, 2e-60, -1e-60]], dtype=torch.float64)
    for factor in (1.0, 1e110, 1e60):
        assert aggregate(scores * factor, "rank").tolist() == [3.0, 1.0, 2.0, 0.0]
    close = torch.tensor([[1e-60, 1e-60 * (1 + 1e-9), 1.1e-60]], dtype=torch.float64)
    rounded = alike(close)[0]
    assert rounded[0] == rounded[1]
    assert rounded[1] < rounded[2]


@pytest.mark.parametrize("variant", ["classic", "theta-relative", "ell-relative"])
@pytest.mark.parametrize("damping", [1e-3, 1e-6])
@pytest.mark.parametrize("rank", ["more rows than entries", "rows alike", "one entry"])
def test_fisher_scores_where_a_small_damping_is_all_that_inverts(rank, damping, variant):
    torch.manual_seed(0)
    entries = 1 if rank == "one entry" else 6
    train, query = torch.randn(60, entries), torch.randn(Q, entries)
    if rank == "rows alike":
        train = train[:5].repeat(12, 1)
    found = distinf.influence(train, query, FisherSettings(damping=damping, variant=variant))
    train, query = train.double(), query.double()
    fisher = train.T @ train / 60 + damping * torch.eye(entries)
    solved = train @ torch.linalg.inv(fisher)
    below = {"classic": 1, "theta-relative": solved.norm(dim=1),
             "ell-relative": (solved * train).sum(1).sqrt()}[variant]  # fmt: skip
    torch.testing.assert_close(found, query @ solved.T / below, rtol=1e-3, atol=1e-4)


def test_datainf_of_rows_alike_is_a_small_difference_over_a_small_damping():
    train, query = torch.randn(1, P).repeat(4, 1), torch.randn(Q, P)
    found = distinf.influence(train, query, DataInfSettings(damping=1e-6))
    train, query = train.double(), query.double()
    right = query @ train.T / (1e-6 + train.square().sum(1))  # of one row exactly this
    torch.testing.assert_close(found, right, rtol=1e-5, atol=0)
