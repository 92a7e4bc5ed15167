"""Truncation bounds against the dense operator they are about."""

import pytest
import torch

from distinf.errors import InputError
from distinf.numerics.truncation import marginal_reductions, truncation_bound


def symmetric(size: int = 12) -> torch.Tensor:
    """A symmetric matrix with eigenvalues of both signs."""
    noise = torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(5))
    return (noise + noise.T) / 2


@pytest.mark.parametrize("kind", ["max", "sum_sq"])
def test_bounds_are_the_norms_of_what_is_dropped(kind):
    matrix = symmetric()
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    bounds = truncation_bound(values[torch.randperm(12)], kind)
    assert bounds.shape == (12,)
    for kept in range(12):
        at = order[:kept]
        dropped = matrix - vectors[:, at] * values[at] @ vectors[:, at].T
        norm = torch.linalg.matrix_norm(dropped, 2 if kind == "max" else "fro")
        torch.testing.assert_close(bounds[kept], norm)


def test_no_unit_vector_errs_by_more_and_the_next_eigenvector_errs_by_as_much():
    matrix = symmetric()
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    at = order[:4]
    dropped = matrix - vectors[:, at] * values[at] @ vectors[:, at].T
    theta = torch.randn(12, 500, dtype=torch.float64, generator=torch.manual_seed(1))
    theta /= theta.norm(dim=0)
    errors = ((dropped @ theta) * theta).sum(0).abs()
    bound = truncation_bound(values)[4]
    assert errors.max() <= bound
    worst = vectors[:, order[4]]
    torch.testing.assert_close((worst @ dropped @ worst).abs(), bound)


def test_frobenius_is_the_looser_bound():
    values = torch.linalg.eigvalsh(symmetric())
    loose, tight = truncation_bound(values, "sum_sq"), truncation_bound(values)
    assert (loose[:-1] > tight[:-1]).all()
    torch.testing.assert_close(loose[-1], tight[-1])


def test_marginal_reductions_by_hand():
    lowered, share = marginal_reductions(truncation_bound([-4.0, 1.0, 3.0, 0.0, 0.0]))
    torch.testing.assert_close(lowered, torch.tensor([1.0, 2.0, 1.0, 0.0]).double())
    torch.testing.assert_close(share, torch.tensor([1 / 4, 2 / 3, 1.0, 0.0]).double())


def test_what_cannot_be_bounded_is_refused():
    with pytest.raises(InputError, match="finite"):
        truncation_bound([1.0, float("nan")])
    with pytest.raises(InputError, match="sum_sq"):
        truncation_bound([1.0], "sum")  # type: ignore[arg-type]
    assert truncation_bound([]).shape == (0,)
