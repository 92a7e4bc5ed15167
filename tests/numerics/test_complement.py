"""The complement as training gradients see it, against dense float64 algebra."""

from dataclasses import replace

import pytest
import torch

import distinf
from distinf.errors import InputError
from distinf.numerics.complement import SeenComplement, seen_complement
from distinf.numerics.estimators.arnoldi import ArnoldiScoreSettings, spectrum_of
from distinf.numerics.krylov import arnoldi
from distinf.numerics.variants import spectrum
from tests.numerics.cases import symmetric

DIM, KEEP, ROWS = 30, 8, 12


@pytest.fixture(scope="module")
def case():
    """An indefinite H with its exact pairs, and gradients that lie in a corner of the space."""
    generator = torch.Generator().manual_seed(7)
    grads_RD = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    grads_RD *= torch.linspace(0.01, 3.0, DIM).double()
    matrix = symmetric(DIM)
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    return matrix, values[order], vectors[:, order].T, grads_RD


def dense_mean(matrix, inside_KD, grads_RD):
    rest_RD = grads_RD - grads_RD @ inside_KD.T @ inside_KD
    return float((rest_RD @ matrix * rest_RD).sum() / rest_RD.square().sum())


def test_it_is_the_mean_over_what_the_gradients_have_outside_the_pairs(case):
    matrix, values, vectors, grads_RD = case
    found = seen_complement(matrix.mv, vectors[:KEEP], grads_RD)
    expected = dense_mean(matrix, vectors[:KEEP], grads_RD)
    assert found.mean(values[:KEEP]) == pytest.approx(expected, rel=1e-10)
    rest_RD = grads_RD - grads_RD @ vectors[:KEEP].T @ vectors[:KEEP]
    quotients_R = (rest_RD @ matrix * rest_RD).sum(1) / rest_RD.square().sum(1)
    torch.testing.assert_close(found.quotients_R, quotients_R)
    assert float(quotients_R.min()) < expected < float(quotients_R.max())


def test_no_other_constant_is_closer_to_the_bilinear_form(case):
    matrix, values, vectors, grads_RD = case
    rest_RD = grads_RD - grads_RD @ vectors[:KEEP].T @ vectors[:KEEP]
    mean = seen_complement(matrix.mv, vectors[:KEEP], grads_RD).mean(values[:KEEP])

    def left(constant):
        weights_R = rest_RD.square().sum(1)
        return float((weights_R * (quotients_R - constant).square()).sum())

    quotients_R = (rest_RD @ matrix * rest_RD).sum(1) / rest_RD.square().sum(1)
    assert left(mean) < min(left(mean + 1e-3), left(mean - 1e-3))


def test_pairs_that_a_policy_drops_join_it_without_another_product(case):
    matrix, values, vectors, grads_RD = case
    found = seen_complement(matrix.mv, vectors[:KEEP], grads_RD)
    kept = tuple(torch.nonzero(values[:KEEP] > 0).view(-1).tolist())
    assert 0 < len(kept) < KEEP
    expected = dense_mean(matrix, vectors[list(kept)], grads_RD)
    assert found.mean(values[:KEEP], kept) == pytest.approx(expected, rel=1e-10)
    dropped = spectrum(
        values[:KEEP], 50.0, dim=DIM, policy="drop", complement="gradients", seen=found
    )
    assert dropped.kept == kept
    assert expected < 0  # so that it counts as 0
    assert dropped.report.complement == pytest.approx(expected, rel=1e-10)
    assert dropped.complement == 0.0


def test_rows_within_the_pairs_zero_or_not_finite_count_for_nothing(case):
    matrix, values, vectors, grads_RD = case
    odd_RD = torch.stack([torch.zeros(DIM), torch.full((DIM,), float("nan"))]).double()
    mixed = seen_complement(matrix.mv, vectors[:KEEP], torch.cat([odd_RD, grads_RD]))
    expected = dense_mean(matrix, vectors[:KEEP], grads_RD)
    assert mixed.mean(values[:KEEP]) == pytest.approx(expected, rel=1e-10)
    assert len(mixed.quotients_R) == ROWS
    inside = seen_complement(matrix.float().mv, vectors[:KEEP].float(), vectors[:3].float())
    assert inside.mean(values[:KEEP]) == 0.0
    assert not len(inside.quotients_R)


def test_the_size_of_a_gradient_changes_nothing_but_its_weight(case):
    matrix, values, vectors, grads_RD = case
    plain, tiny = (
        seen_complement(matrix.float().mv, vectors[:KEEP].float(), grads_RD * scale)
        for scale in (1.0, 1e-30)
    )
    torch.testing.assert_close(tiny.quotients_R, plain.quotients_R)
    assert tiny.mean(values[:KEEP]) == pytest.approx(plain.mean(values[:KEEP]), rel=1e-5)


def test_the_library_takes_it_where_gradients_were_given(case):
    matrix, _, _, grads_RD = case
    query = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positive = matrix @ matrix
    options = {"steps": DIM, "keep": KEEP, "dtype": "float64", "probes": ROWS}
    pairs = arnoldi(positive.mv, DIM, gradients=grads_RD, **options)
    basis = pairs.vectors
    mean = dense_mean(positive, basis, grads_RD)
    outside = torch.eye(DIM).double() - basis.T @ basis
    inverse = (basis.T / (pairs.values + 0.1)) @ basis + outside / (mean + 0.1)
    found = distinf.influence(grads_RD, query, "arnoldi", curvature=pairs, damping=0.1)
    torch.testing.assert_close(found, query @ inverse @ grads_RD.T)
    plain = arnoldi(positive.mv, DIM, **options)
    by_trace = ArnoldiScoreSettings(damping=0.1, complement="mean")
    expected = distinf.influence(grads_RD, query, by_trace, curvature=pairs)
    torch.testing.assert_close(
        distinf.influence(grads_RD, query, "arnoldi", curvature=plain, damping=0.1), expected
    )
    asked = ArnoldiScoreSettings(damping=0.1, complement="gradients")
    with pytest.raises(InputError, match=r"needs what training gradients see .*gradients=\.\.\."):
        distinf.influence(grads_RD, query, asked, curvature=plain)


def test_as_many_gradients_as_probes_are_drawn_by_the_seed():
    matrix, products = torch.diag(torch.arange(1.0, 11.0)).double(), []

    def matvec(vector):
        products.append(vector)
        return matrix.double() @ vector.double()

    grads_ND = torch.eye(10).double() + 0.1
    seen = [
        arnoldi(matvec, 10, steps=4, keep=2, probes=5, seed=seed, gradients=grads_ND).seen
        for seed in (0, 0, 1)
    ]
    assert len(products) == 3 * (4 + 5 + 5)
    assert torch.equal(seen[0].products_R, seen[1].products_R)
    assert not torch.equal(seen[0].products_R, seen[2].products_R)
    with pytest.raises(ValueError, match=r"gradients \(3, 9\) must be \[N, 10\]"):
        arnoldi(matvec, 10, steps=4, keep=2, gradients=torch.ones(3, 9))


def test_a_negative_one_is_refused_or_made_absolute_and_said(case):
    _, values, _, _ = case
    row, none = torch.ones(1).double(), torch.zeros(1, KEEP).double()
    positive = values[:KEEP].abs()

    def found(mean, damping, policy="refuse"):
        seen = SeenComplement(mean * row, row, none)
        return spectrum(
            positive, damping, dim=DIM, policy=policy, complement="gradients", seen=seen
        )

    assert found(-0.05, 0.1).rest == pytest.approx(0.05)
    with pytest.raises(InputError, match=r"mean eigenvalue of -0.4, .*set damping to 0.5 or"):
        found(-0.4, 0.1)
    assert found(-0.4, 0.5).rest == pytest.approx(0.1)
    zero = found(-0.4, 0.1, "drop")
    assert (zero.complement, zero.report.complement) == (0.0, -0.4)
    turned = found(-0.4, 0.1, "absolute")
    assert (turned.complement, turned.report.complement) == (0.4, -0.4)
    assert found(0.4, 0.1, "absolute").report.complement is None
    assert found(-0.4, 0.1, "keep").rest == pytest.approx(-0.3)
    with pytest.raises(InputError, match="zero denominator"):
        found(0.0, 0.0)


def test_the_error_is_that_of_a_ratio():
    generator = torch.Generator().manual_seed(0)
    sqnorms = torch.rand(4000, generator=generator).double() + 0.5
    noise = torch.randn(4000, generator=generator).double()
    every = SeenComplement(sqnorms * (2 + noise), sqnorms, torch.zeros(4000, 1).double())
    halves = [
        replace(every, products_R=every.products_R[k::40], sqnorms_R=sqnorms[k::40])
        for k in range(40)
    ]
    means = torch.tensor([float(h.products_R.sum() / h.sqnorms_R.sum()) for h in halves])
    errors = torch.tensor([h.error for h in halves])
    assert float(errors.mean()) == pytest.approx(float(means.std()), rel=0.25)


def test_the_pairs_own_default_is_what_they_know(case):
    matrix, _, _, grads_RD = case
    pairs = arnoldi(
        (matrix @ matrix).mv, DIM, steps=20, keep=4, dtype="float64", gradients=grads_RD
    )
    settings = ArnoldiScoreSettings()
    assert spectrum_of(pairs, settings).complement == pairs.seen.mean(pairs.values)
    assert spectrum_of(replace(pairs, seen=None), settings).complement == pairs.complement
