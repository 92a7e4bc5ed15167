from dataclasses import replace
from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import InputError
from distinf.numerics.krylov import arnoldi
from distinf.numerics.metrics import spearman
from distinf.numerics.variants import (
    Coordinates,
    damped_dots,
    damped_inverse,
    scores,
    spectrum,
    split_dots,
    unrolled,
)
from tests.numerics.cases import symmetric

DIM, SAMPLES, QUERIES = 30, 25, 4
DAMPING = 0.7


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(5)
    train = torch.randn(SAMPLES, DIM, generator=generator, dtype=torch.float64)
    train *= torch.linspace(0.05, 1.0, SAMPLES).double()[:, None]  # self-influence around 1
    query = torch.randn(QUERIES, DIM, generator=generator, dtype=torch.float64)
    matrix = symmetric(DIM)
    return train, query, matrix @ matrix


def placed(case, keep, complement_from_trace=True):
    """Coordinates, spectrum, and the dense damped inverse that they stand for."""
    train, query, matrix = case
    values, vectors = torch.linalg.eigh(matrix)
    top = values.argsort(descending=True)[:keep]
    values, basis = values[top], vectors[:, top].T
    trace = float(matrix.trace()) if complement_from_trace else nan
    damped = spectrum(values, DAMPING, dim=DIM, trace=trace)
    outside = torch.eye(DIM).double() - basis.T @ basis
    inverse = (basis.T / (values + DAMPING)) @ basis + outside / (damped.complement + DAMPING)
    return Coordinates.of(train, query, basis), damped, inverse


def dense_variants(train, query, inverse):
    """Every variant's scores under a dense inverse, for 1,000 training samples."""
    classic = query @ inverse @ train.T
    self_influence = (train @ inverse * train).sum(1)
    return {
        "classic": classic,
        "theta-relative": classic / (train @ inverse).norm(dim=1),
        "ell-relative": classic / self_influence.sqrt(),
        "newfluence": classic / (1 - self_influence / 1000),
    }


@pytest.mark.parametrize("keep", [0, 5, DIM])
def test_every_variant_matches_dense_algebra(case, keep):
    train, query, matrix = case
    coordinates, damped, inverse = placed(case, keep)
    if keep == DIM:
        exact = torch.linalg.inv(matrix + DAMPING * torch.eye(DIM).double())
        torch.testing.assert_close(inverse, exact)
    else:
        assert damped.complement > 0
    expected = dense_variants(train, query, inverse)
    for variant, dense in expected.items():
        found = scores(coordinates, damped, variant, count=1000)
        torch.testing.assert_close(found.scores_QN, dense)
        assert found.nonpositive == 0
    torch.testing.assert_close(
        scores(coordinates, damped, "newfluence", scaling="paper").scores_QN,
        expected["classic"] / (1 - (train @ inverse * train).sum(1)),
    )


def test_the_complement_is_damping_alone_without_a_trace(case):
    coordinates, damped, inverse = placed(case, 5, complement_from_trace=False)
    assert damped.complement == 0.0
    torch.testing.assert_close(damped_dots(coordinates, damped), case[1] @ inverse @ case[0].T)


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_without_a_complement_the_inverse_is_truncated_in_every_variant(case, damping):
    """Eq. 7 of Tuononen, Penttinen and Hautamäki."""
    train, query, matrix = case
    values, vectors = torch.linalg.eigh(matrix)
    values, basis = values[-5:], vectors[:, -5:].T
    coordinates = Coordinates.of(train, query, basis)
    truncated = spectrum(values, damping, dim=DIM, trace=float(matrix.trace()), complement="none")
    inverse = (basis.T / (values + damping)) @ basis
    for variant, dense in dense_variants(train, query, inverse).items():
        found = scores(coordinates, truncated, variant, count=1000).scores_QN
        torch.testing.assert_close(found, dense)
    inside, outside = split_dots(coordinates, truncated)
    torch.testing.assert_close(inside, query @ inverse @ train.T)
    assert not outside.any()
    torch.testing.assert_close(damped_inverse(train[0], basis, truncated), inverse @ train[0])


def test_damping_alone_stands_outside_the_pairs_whatever_the_trace(case):
    train, query, matrix = case
    coordinates, by_trace, _ = placed(case, 5)
    _, alone, inverse = placed(case, 5, complement_from_trace=False)
    found = spectrum(
        by_trace.values_K, DAMPING, dim=DIM, trace=float(matrix.trace()), complement="damping"
    )
    assert found.complement == alone.complement == 0.0
    inside, outside = split_dots(coordinates, found)
    torch.testing.assert_close(inside + outside, query @ inverse @ train.T)
    with pytest.raises(InputError, match="complement 'all' is unknown; use one of none, damping"):
        spectrum(by_trace.values_K, DAMPING, dim=DIM, complement="all")


def test_solved_dots_replace_the_numerator_only(case):
    coordinates, damped, inverse = placed(case, 5)
    train, query, matrix = case
    solved = query @ torch.linalg.inv(matrix + DAMPING * torch.eye(DIM).double()) @ train.T
    found = scores(coordinates, damped, "ell-relative", solved_dots_QN=solved)
    own = (train @ inverse * train).sum(1).sqrt()
    torch.testing.assert_close(found.scores_QN, solved / own)


def test_paper_scaling_flips_signs_where_self_influence_exceeds_one(case):
    coordinates, damped, inverse = placed(case, DIM)
    self_influence = (case[0] @ inverse * case[0]).sum(1)
    above = self_influence > 1
    assert 0 < int(above.sum()) < SAMPLES
    classic = scores(coordinates, damped).scores_QN
    paper = scores(coordinates, damped, "newfluence", scaling="paper")
    assert paper.nonpositive == int(above.sum())
    assert torch.equal(paper.scores_QN.sign()[:, above], -classic.sign()[:, above])
    assert torch.equal(paper.scores_QN.sign()[:, ~above], classic.sign()[:, ~above])
    mean = scores(coordinates, damped, "newfluence", count=1000)
    assert torch.equal(mean.scores_QN.sign(), classic.sign())


def test_denominators_that_are_not_positive_give_nan_and_are_counted(case):
    coordinates, damped, inverse = placed(case, DIM)
    self_influence = (case[0] @ inverse * case[0]).sum(1)
    found = scores(coordinates, damped, "newfluence", count=1)
    assert torch.equal(found.scores_QN.isnan().any(0), self_influence >= 1)
    assert found.nonpositive == int((self_influence >= 1).sum())
    indefinite = spectrum(torch.full((DIM,), -1.0), 0.5, dim=DIM, policy="keep")
    lost = scores(coordinates, indefinite, "ell-relative")
    assert lost.nonpositive == SAMPLES
    assert lost.scores_QN.isnan().all()
    zero = Coordinates.of(torch.zeros(2, DIM), case[1].float(), torch.eye(DIM))
    still = scores(zero, damped, "theta-relative")
    assert still.nonpositive == 2
    assert still.scores_QN.isnan().all()


def test_policies_for_negative_and_tiny_values():
    values = torch.tensor([4.0, -3.0, 1.0, -0.05, 1e-12])
    with pytest.raises(InputError, match=r"1 of 5 .*smallest -3\).*set damping to 3.8.*policy"):
        spectrum(values, 0.1, dim=9)
    assert len(spectrum(values, 3.8, dim=9).values_K) == 5
    kept = spectrum(values, 0.1, dim=9, policy="keep")
    assert torch.equal(kept.values_K, values.double())
    assert (kept.report.changed, kept.report.dropped) == (0, 0)
    absolute = spectrum(values, 0.1, dim=9, policy="absolute", trace=2.0)
    assert torch.equal(absolute.values_K, values.double().abs())
    assert (absolute.report.changed, absolute.report.dropped) == (2, 0)
    assert absolute.complement == pytest.approx((2.0 - 1.95) / 4)
    dropped = spectrum(values, 0.1, dim=9, policy="drop", trace=11.0)
    assert dropped.kept == (0, 2, 4)
    assert torch.equal(dropped.values_K, values.double()[[0, 2, 4]])
    assert (dropped.report.dropped, dropped.report.changed) == (2, 0)
    assert dropped.complement == pytest.approx((11.0 - 5.0) / 6)
    assert spectrum(values, 0.1, dim=9, policy="drop", trace=1.0).complement == 0.0


def test_zero_damping_is_refused_where_it_would_divide_by_nothing():
    with pytest.raises(InputError, match="set a damping > 0"):
        spectrum(torch.tensor([2.0]), 0.0, dim=3)
    with pytest.raises(InputError, match="too small"):
        spectrum(torch.tensor([2.0, 1e-12]), 0.0, dim=2, policy="absolute")
    assert spectrum(torch.tensor([2.0, 1.0]), 0.0, dim=2).rest == 0.0
    with pytest.raises(InputError, match="damping -1"):
        spectrum(torch.tensor([2.0]), -1, dim=3)
    with pytest.raises(InputError, match="policy 'clip'"):
        spectrum(torch.tensor([2.0]), 1.0, dim=3, policy="clip")


def test_dropped_pairs_join_the_complement(case):
    train, query, _ = case
    values, vectors = torch.linalg.eigh(symmetric(DIM))
    order = values.abs().argsort(descending=True)[:8]
    values, basis = values[order], vectors[:, order].T
    dropped = spectrum(values, DAMPING, dim=DIM, policy="drop", trace=float(values.sum()))
    positive = values > 0
    assert 0 < int(positive.sum()) < 8
    alone = spectrum(values[positive], DAMPING, dim=DIM, trace=float(values.sum()))
    found = scores(Coordinates.of(train, query, basis), dropped, "ell-relative")
    expected = scores(Coordinates.of(train, query, basis[positive]), alone, "ell-relative")
    torch.testing.assert_close(found.scores_QN, expected.scores_QN)


def test_where_every_pair_is_dropped_the_complement_is_all(case):
    train, query, _ = case
    basis = torch.linalg.qr(torch.randn(DIM, 3, dtype=torch.float64))[0].T
    dropped = spectrum(torch.tensor([-3.0, -2.0, -1.0]), DAMPING, dim=DIM, policy="drop")
    found = scores(Coordinates.of(train, query, basis), dropped).scores_QN
    torch.testing.assert_close(found, query @ train.T / DAMPING)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 6), st.floats(1e-3, 10.0))
def test_variants_only_rescale_each_training_sample(seed, keep, damping):
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(7, 9, generator=generator, dtype=torch.float64)
    query = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(9, keep, generator=generator).double())[0].T
    values = torch.rand(keep, generator=generator).double() + 0.1
    damped = spectrum(values, damping, dim=9)
    coordinates = Coordinates.of(train, query, basis)
    classic = scores(coordinates, damped).scores_QN
    for variant in ("theta-relative", "ell-relative"):
        ratio = scores(coordinates, damped, variant).scores_QN / classic
        assert (ratio > 0).all()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_stored_float32_coordinates_lose_little(case):
    train, query, matrix = case
    pairs = arnoldi(matrix.mv, DIM, steps=DIM, keep=10, dtype="float64", probes=20)
    damped = spectrum(pairs.values, DAMPING, dim=DIM, trace=pairs.trace)
    exact = Coordinates.of(train, query, pairs.vectors)
    stored = Coordinates(
        exact.train_NK.float(),
        exact.train_sqnorm_N.float(),
        exact.query_QK.float(),
        exact.dots_QN.float(),
    )
    for variant in ("classic", "ell-relative", "theta-relative"):
        first, second = (scores(c, damped, variant).scores_QN[0] for c in (exact, stored))
        assert spearman(first, second) > 0.999


def test_a_truncated_inverse_without_damping_stays_in_the_span_of_the_pairs():
    torch.manual_seed(3)
    vectors_KP = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64)).Q.T
    truncated = spectrum(torch.tensor([3.0, 2.0, 1.0, 0.5]), 0.0, dim=9, complement="none")
    v_P = torch.randn(9, dtype=torch.float64)
    found = damped_inverse(v_P, vectors_KP, truncated)
    dense = vectors_KP.T @ ((vectors_KP @ v_P) / truncated.values_K)  # Eq. 7
    torch.testing.assert_close(found, dense)
    torch.testing.assert_close(vectors_KP.T @ (vectors_KP @ found), found)


def test_an_operator_of_which_nothing_is_left_is_refused():
    with pytest.raises(InputError, match=r"drops all 2 Ritz values .*leaves no operator"):
        spectrum(torch.tensor([-1.0, -2.0]), 0.0, dim=9, policy="drop", complement="none")


@pytest.mark.parametrize("keep", [0, 5, DIM])
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_filter_is_what_small_steps_of_gradient_descent_have_done(case, keep, decay):
    """Dense: (I - (I - rate (H + decay))^steps) (H + decay)^-1, as the steps sum up."""
    train, query, matrix = case
    coordinates, damped, _ = placed(case, keep)
    found = unrolled(damped, decay)
    values, vectors = torch.linalg.eigh(matrix)
    basis = vectors[:, values.argsort(descending=True)[:keep]].T
    outside = torch.eye(DIM).double() - basis.T @ basis
    operator = (basis.T * damped.values_K) @ basis + (damped.complement + decay) * outside
    operator += decay * basis.T @ basis
    steps, length = 2**22, 1 / (DAMPING - decay)
    kept = torch.linalg.matrix_power(torch.eye(DIM).double() - length / steps * operator, steps)
    inverse = torch.linalg.solve(operator, torch.eye(DIM).double() - kept)
    torch.testing.assert_close(damped_dots(coordinates, found), query @ inverse @ train.T,
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    for variant, dense in dense_variants(train, query, inverse).items():
        told = scores(coordinates, found, variant, count=1000).scores_QN
        torch.testing.assert_close(told, dense, rtol=1e-4, atol=1e-5)


def test_no_direction_has_more_of_the_filter_than_training_was_long():
    made = spectrum(torch.tensor([5.0, 0.0, -3.0]), DAMPING, dim=4, policy="keep")
    found = unrolled(replace(made, complement=-2.0))
    inverse_K = 1 / (found.values_K + found.damping)
    assert inverse_K.tolist() == pytest.approx([(1 - 2.718281828**(-5 / DAMPING)) / 5,
                                                1 / DAMPING, 1 / DAMPING])  # fmt: skip
    assert found.outside == pytest.approx(1 / DAMPING)
    assert unrolled(replace(made, complement=None)).outside == 0
    with pytest.raises(InputError, match=r"decay 0\.7 must lie in"):
        unrolled(made, DAMPING)
