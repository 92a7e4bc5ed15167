import pytest
import torch

import distinf
from distinf.errors import InputError
from distinf.numerics.estimators import arnoldi, cosine, datainf, fisher, tracin
from distinf.numerics.krylov import arnoldi as decompose
from distinf.numerics.variants import Coordinates
from tests.numerics.cases import symmetric

N, Q, P = 14, 3, 9


@pytest.fixture(scope="module")
def gradients():
    generator = torch.Generator().manual_seed(2)
    train = torch.randn(N, P, generator=generator, dtype=torch.float64)
    return train, torch.randn(Q, P, generator=generator, dtype=torch.float64)


def test_tracin_and_cosine_match_their_definitions(gradients):
    train, query = gradients
    cross = query @ train.T
    assert torch.equal(tracin.scores(cross), cross)
    torch.testing.assert_close(
        tracin.scores(cross, tracin.TracInSettings(learning_rate=0.1)), 0.1 * cross
    )
    expected = torch.nn.functional.cosine_similarity(query[:, None], train[None], dim=2)
    found = cosine.scores(cross, query.square().sum(1), train.square().sum(1))
    torch.testing.assert_close(found, expected)
    padded = torch.cat([train, torch.zeros(1, P).double()])
    with_zero = distinf.influence(padded, query, "cosine")
    assert torch.equal(with_zero[:, -1], torch.zeros(Q).double())


@pytest.mark.parametrize("damping", [None, 0.3])
def test_datainf_is_the_mean_of_per_sample_inverses(gradients, damping):
    train, query = gradients
    used = damping or float(train.square().sum()) / (10 * N * P)
    inverses = [torch.linalg.inv(torch.outer(g, g) + used * torch.eye(P).double()) for g in train]
    expected = query @ (sum(inverses) / N) @ train.T
    found = distinf.influence(train, query, "datainf", damping=damping)
    torch.testing.assert_close(found, expected)


def test_datainf_in_two_passes_over_shards_and_under_a_projection(gradients):
    train, query = gradients
    entries = 1000
    sqnorm = train.square().sum(1)
    damping = datainf.default_damping(float(sqnorm.sum()), N, entries)
    assert damping == pytest.approx(float(sqnorm.sum()) / (10 * N * 1000))
    summed = torch.zeros(Q, P).double()
    for rows in (slice(0, 5), slice(5, N)):
        summed += datainf.weights(query @ train[rows].T, sqnorm[rows], damping) @ train[rows]
    parts = [
        datainf.scores(query @ train[rows].T, summed @ train[rows].T, damping, N)
        for rows in (slice(0, 5), slice(5, N))
    ]
    whole = distinf.influence(train, query, "datainf", damping=damping)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_fisher_matches_the_dense_damped_inverse_in_every_variant(gradients):
    train, query = gradients
    damping = 0.2
    inverse = torch.linalg.inv(train.T @ train / N + damping * torch.eye(P).double())
    factor = fisher.factorise(train @ train.T)
    classic = query @ inverse @ train.T
    own = (train @ inverse * train).sum(1)
    expected = {
        "classic": classic,
        "ell-relative": classic / own.sqrt(),
        "theta-relative": classic / (train @ inverse).norm(dim=1),
        "newfluence": classic / (1 - own / N),
    }
    for variant, dense in expected.items():
        settings = fisher.FisherSettings(damping, variant)
        found = fisher.scores(factor, query @ train.T, settings)
        torch.testing.assert_close(found.scores_QN, dense)
    default = fisher.scores(factor, query @ train.T).scores_QN
    used = float(train.square().sum()) / (10 * N)
    dense = query @ torch.linalg.inv(train.T @ train / N + used * torch.eye(P).double()) @ train.T
    torch.testing.assert_close(default, dense)


def test_large_damping_makes_fisher_and_datainf_proportional_to_tracin(gradients):
    train, query = gradients
    for estimator in ("fisher", "datainf"):
        found = distinf.influence(train, query, estimator, damping=1e8) * 1e8
        torch.testing.assert_close(found, query @ train.T, rtol=1e-5, atol=1e-5)


def test_arnoldi_by_influence_matches_a_dense_inverse(gradients):
    train, query = gradients
    matrix = symmetric(P) @ symmetric(P)
    pairs = decompose(matrix.mv, P, steps=P, keep=P, dtype="float64", probes=0)
    inverse = torch.linalg.inv(matrix + 0.5 * torch.eye(P).double())
    classic = query @ inverse @ train.T
    found = distinf.influence(train, query, "arnoldi", curvature=pairs, damping=0.5)
    torch.testing.assert_close(found, classic)
    relative = distinf.influence(
        train, query, "arnoldi", curvature=pairs, damping=0.5, variant="ell-relative"
    )
    torch.testing.assert_close(relative, classic / (train @ inverse * train).sum(1).sqrt())
    default = distinf.influence(train, query, "arnoldi", curvature=pairs)
    used = 0.01 * float(pairs.values.abs().max())
    inverse = torch.linalg.inv(matrix + used * torch.eye(P).double())
    torch.testing.assert_close(default, query @ inverse @ train.T)
    coordinates = Coordinates.of(train, query, pairs.vectors)
    settings = arnoldi.ArnoldiScoreSettings(damping=0.5, variant="ell-relative")
    stored = arnoldi.scores(coordinates, arnoldi.spectrum_of(pairs, settings), settings)
    torch.testing.assert_close(stored.scores_QN, relative)


def test_blocks_are_scored_one_by_one_or_jointly_under_one_curvature(gradients):
    train, query = gradients
    split_train = {"a": train[:, :4], "b": train[:, 4:]}
    split_query = {"a": query[:, :4], "b": query[:, 4:]}
    found = distinf.influence(split_train, split_query, "datainf")
    assert list(found) == ["a", "b"]
    torch.testing.assert_close(found["b"], distinf.influence(train[:, 4:], query[:, 4:], "datainf"))
    matrix = symmetric(P) @ symmetric(P)
    pairs = decompose(matrix.mv, P, steps=P, keep=4, dtype="float64", probes=5)
    joint = distinf.influence(split_train, split_query, "arnoldi", curvature=pairs)
    whole = distinf.influence(train, query, "arnoldi", curvature=pairs)
    torch.testing.assert_close(joint["all"], whole)
    turned = dict(reversed(split_query.items()))
    joint = distinf.influence(split_train, turned, "arnoldi", curvature=pairs)
    torch.testing.assert_close(joint["all"], whole)


def test_zero_gradients_have_zero_scores_not_nan():
    zero, query = torch.zeros(5, 4), torch.ones(2, 4)
    for estimator in ("tracin", "cosine", "datainf", "fisher"):
        assert torch.equal(distinf.influence(zero, query, estimator), torch.zeros(2, 5).double())


def test_bad_input_says_what_to_change(gradients):
    train, query = gradients
    with pytest.raises(InputError, match="estimator 'lissa' is unknown"):
        distinf.influence(train, query, "lissa")
    with pytest.raises(InputError, match=r"must be one of tracin.*or an estimator's settings"):
        distinf.influence(train, query, arnoldi.ArnoldiScoreSettings)
    with pytest.raises(InputError, match="needs curvature"):
        distinf.influence(train, query, "arnoldi")
    with pytest.raises(InputError, match="has no damping"):
        distinf.influence(train, query, "tracin", damping=1.0)
    with pytest.raises(InputError, match="variant 'best' is unknown"):
        distinf.influence(train, query, "fisher", variant="best")
    with pytest.raises(InputError, match="must share their entries"):
        distinf.influence(train, query[:, 1:])
    with pytest.raises(InputError, match="same blocks"):
        distinf.influence({"a": train}, {"b": query})
    broken = train.clone()
    broken[6, 2] = float("nan")
    with pytest.raises(InputError, match=r"1 train gradients are not finite \(rows \[6\]\)"):
        distinf.influence(broken, query)
    with pytest.raises(ValueError, match="damping=0"):
        distinf.influence(train, query, "datainf", damping=0)
    pairs = decompose(symmetric(5).mv, 5, steps=5, keep=5, dtype="float64", probes=0)
    with pytest.raises(InputError, match="acts on 5 parameters"):
        distinf.influence(train, query, "arnoldi", curvature=pairs)
    with pytest.raises(InputError, match=r"too negative.*policy"):
        distinf.influence(train[:, :5], query[:, :5], "arnoldi", curvature=pairs, damping=0.1)
