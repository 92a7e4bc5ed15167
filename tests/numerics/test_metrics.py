"""Noise curves, detection rates and cancellation against brute force and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distinf.errors import InputError
from distinf.numerics import metrics
from distinf.numerics.cancellation import cancellation, norm_cancellation

ROWS, FLIPPED = 1000, 200


def marked(ranks) -> torch.Tensor:
    """bool [1000]: flipped exactly at these ranks of scores 0, 1, …"""
    flipped = torch.zeros(ROWS, dtype=torch.bool)
    flipped[torch.as_tensor(list(ranks))] = True
    return flipped


scored = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-4, 4), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
    )
)


@given(scored, st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.5, 1.0]))
@settings(max_examples=150, deadline=None)
def test_curve_rate_area_and_histogram_equal_a_filter_done_by_hand(case, share):
    scores, flipped = case
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    total = sum(flipped)
    found = [sum(flipped[i] for i in order[:k]) for k in range(len(scores) + 1)]
    tensors = torch.tensor(scores, dtype=torch.float64), torch.tensor(flipped)
    assert metrics.noise_curve(*tensors).tolist() == found
    cut = math.floor(round(share * len(scores), 9))
    assert metrics.removed(len(scores), share) == cut
    assert metrics.ndr(*tensors, share) == found[cut] / total
    area = np.trapezoid(np.array(found) / total) / (total / 2 + len(scores) - total)
    assert metrics.ndr_auc(*tensors) == pytest.approx(area, rel=1e-12)
    bins = min(10, len(scores))
    parts = metrics.noise_histogram(*tensors, bins)
    edges = [len(scores) * k // bins for k in range(bins + 1)]
    by_hand = [sum(flipped[i] for i in order[a:b]) / total for a, b in pairwise(edges)]
    assert parts.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert float(parts.sum()) == pytest.approx(1)
    shares = metrics.noise_shares(*tensors, 11)
    assert shares[[0, -1]].tolist() == [0, 1]
    assert float(shares[3]) == metrics.ndr(*tensors, 0.3)


def test_area_is_one_for_a_perfect_ranking_and_a_ninth_for_the_worst():
    scores = torch.arange(ROWS, dtype=torch.float64)
    perfect, worst = marked(range(FLIPPED)), marked(range(ROWS - FLIPPED, ROWS))
    assert metrics.ndr_auc(scores, perfect) == pytest.approx(1, abs=1e-12)
    assert metrics.ndr_auc(scores, worst) == pytest.approx(1 / 9, abs=1e-12)
    even = metrics.ndr_auc(scores, marked(range(2, ROWS, 5)))  # every fifth, centred in its fifth
    assert even == pytest.approx(5 / 9, abs=1e-12)
    drawn = [
        metrics.ndr_auc(scores, marked(np.random.default_rng(k).permutation(ROWS)[:FLIPPED]))
        for k in range(60)
    ]
    assert np.mean(drawn) == pytest.approx(0.556, abs=0.01)
    assert metrics.ndr(scores, perfect, 0.3) == 1
    assert metrics.ndr(scores, perfect, 0.1) == 0.5
    assert metrics.ndr(scores, worst, 0.3) == 0
    assert metrics.noise_histogram(scores, perfect).tolist() == [0.5, 0.5] + [0] * 8


def test_the_area_differs_from_the_sum_of_the_papers_code_by_half_a_step():
    rng = np.random.default_rng(3)
    scores, flipped = torch.from_numpy(rng.standard_normal(ROWS)), marked(range(FLIPPED))
    summed = float((metrics.noise_curve(scores, flipped)[1:].double() / FLIPPED).sum())
    normal = FLIPPED / 2 + ROWS - FLIPPED
    assert summed / normal - metrics.ndr_auc(scores, flipped) == pytest.approx(0.5 / normal)


def test_ties_fall_in_row_order():
    flipped = torch.tensor([True, False, True, False])
    assert metrics.noise_curve(torch.zeros(4), flipped).tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("scores", "flipped", "words"),
    [
        (torch.tensor([1.0, math.nan]), torch.tensor([True, False]), "1 scores are not finite"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bool), "at least one of the 3"),
        (torch.zeros(3), torch.ones(2, dtype=torch.bool), "has shape"),
        (torch.zeros(3, 2), torch.ones(3, dtype=torch.bool), "one vector"),
        (torch.zeros(0), torch.zeros(0, dtype=torch.bool), "one vector"),
    ],
)
def test_unusable_scores_are_refused(scores, flipped, words):
    with pytest.raises(InputError, match=words):
        metrics.ndr(scores, flipped)


def test_unusable_settings_are_refused():
    with pytest.raises(InputError, match="share=30"):
        metrics.ndr(torch.zeros(9), torch.ones(9, dtype=torch.bool), 30)
    with pytest.raises(InputError, match="bins=10"):
        metrics.noise_histogram(torch.zeros(9), torch.ones(9, dtype=torch.bool))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
@settings(max_examples=60, deadline=None)
def test_spearman_is_scipys(pairs):
    first, second = (np.array(side, dtype=float) for side in zip(*pairs))
    if np.ptp(first) and np.ptp(second):
        ours = metrics.spearman(torch.from_numpy(first), torch.from_numpy(second))
        assert ours == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


@given(st.integers(1, 6), st.integers(2, 20), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_matrix_of_spearmans_is_every_pairs(rows, entries, seed):
    values = np.random.default_rng(seed).integers(-2, 3, (rows, entries)).astype(float)
    found = metrics.spearman_matrix(torch.from_numpy(values).T.contiguous().T)
    for i, first in enumerate(values):
        for j, second in enumerate(values):
            if np.ptp(first) and np.ptp(second):
                pair = stats.spearmanr(first, second).statistic
                assert found[i, j].item() == pytest.approx(pair, abs=1e-12)
            else:
                assert math.isnan(found[i, j])
    with pytest.raises(InputError, match=r"rows of length >= 2 .* not \(3,\)"):
        metrics.spearman_matrix(torch.ones(3))


# -- cancellation --------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_cancellation_equals_loops_over_samples_and_parameters(samples, entries, seed):
    grads_NP = np.random.default_rng(seed).integers(-2, 3, (samples, entries)).astype(float)
    each = []
    for p in range(entries):
        above = sum(abs(grads_NP[i, p]) for i in range(samples))
        below = abs(sum(grads_NP[i, p] for i in range(samples)))
        if above:
            each.append(above / below if below else math.inf)
    sums = torch.from_numpy(np.abs(grads_NP).sum(0)), torch.from_numpy(grads_NP.sum(0))
    found = cancellation(*sums)
    if not each:
        assert math.isnan(found.l1)
        return
    assert (found.least, found.most) == (min(each), max(each))
    assert found.median == np.median(each)
    below = sum(abs(grads_NP[:, p].sum()) for p in range(entries))
    whole = np.abs(grads_NP).sum() / below if below else math.inf
    assert found.l1 == pytest.approx(whole)
    norms_N = torch.from_numpy(np.linalg.norm(grads_NP, axis=1))
    total = np.linalg.norm(grads_NP.sum(0))
    form = float(norms_N.sum()) / total if total else math.inf
    assert norm_cancellation(norms_N, sums[1]) == pytest.approx(form)


def test_codirectional_gradients_do_not_cancel():
    grads_NP = torch.outer(torch.arange(1.0, 5), torch.tensor([1.0, -2.0, 0.0]))
    found = cancellation(grads_NP.abs().sum(0), grads_NP.sum(0))
    assert (found.l1, found.least, found.median, found.most) == (1, 1, 1, 1)
    assert norm_cancellation(grads_NP.norm(dim=1), grads_NP.sum(0)) == pytest.approx(1)


def test_cancellation_refuses_sums_that_do_not_match_or_are_not_finite():
    with pytest.raises(InputError, match="do not match"):
        cancellation(torch.ones(2), torch.ones(3))
    with pytest.raises(InputError, match="not finite"):
        cancellation(torch.tensor([math.inf]), torch.ones(1))


def test_what_the_given_label_alone_finds_is_the_mean_over_random_orders():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, generator=generator) < 0.25).long()
    wrong_share = torch.where(labels == 1, 0.6, 0.05)
    flipped = torch.rand(200, generator=generator) < wrong_share
    share, found = 0.3, []
    for _ in range(2_000):  # rows of label 1 first, at random among themselves
        scores = torch.rand(200, generator=generator) - labels.float()
        found.append(metrics.ndr(scores, flipped, share))
    expected = np.mean(found)
    assert metrics.ndr_of_labels(labels, flipped, share) == pytest.approx(expected, abs=0.01)
    assert expected > 2 * share
    equal = torch.arange(200) % 2
    assert metrics.ndr_of_labels(equal, torch.arange(200) % 10 < 2, share) == pytest.approx(share)


def test_what_the_labels_of_a_ranking_find_is_the_mean_over_flips_within_them():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (150,), generator=generator) * 4
    flipped = torch.rand(150, generator=generator) < 0.1 + 0.05 * labels
    scores = torch.randn(150, generator=generator) - 0.2 * labels
    found = []
    for _ in range(2_000):
        moved = flipped.clone()
        for label in (0, 4, 8):
            rows = torch.nonzero(labels == label).flatten()
            moved[rows] = flipped[rows[torch.randperm(len(rows), generator=generator)]]
        found.append(metrics.ndr(scores, moved, 0.3))
    within = metrics.ndr_within_labels(scores, labels, flipped, 0.3)
    assert within == pytest.approx(np.mean(found), abs=0.01)
    with pytest.raises(InputError, match="at least one"):
        metrics.ndr_within_labels(scores, labels, torch.zeros(150, dtype=torch.bool), 0.3)


def test_how_much_of_a_ranking_is_its_classes_is_kruskal_and_wallis_over_its_most():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, 200)
    scores = rng.normal(size=200) + 0.4 * labels

    def statistic(values):
        return stats.kruskal(*(values[labels == k] for k in range(4))).statistic

    found = metrics.sorted_by_class(torch.from_numpy(scores), torch.from_numpy(labels))
    order = np.argsort([scores[labels == k].mean() for k in range(4)]).argsort()
    apart = order[labels] + 1e-3 * scores
    assert found == pytest.approx(statistic(scores) / statistic(apart), rel=1e-9)
    assert 0.05 < found < 0.5
    assert metrics.sorted_by_class(
        torch.from_numpy(apart), torch.from_numpy(labels)
    ) == pytest.approx(1)


def test_the_spread_within_labels_is_that_of_flips_moved_within_them():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    flipped = np.zeros(100, dtype=bool)
    flipped[[*range(20), *range(50, 53), 80]] = True
    scores = torch.from_numpy(rng.normal(size=100) - labels)
    rates = []
    for _ in range(4_000):
        moved = flipped.copy()
        for label in range(3):
            of = np.flatnonzero(labels == label)
            moved[of] = moved[rng.permutation(of)]
        rates.append(metrics.ndr(scores, torch.from_numpy(moved), 0.4))
    of = scores, torch.from_numpy(labels), torch.from_numpy(flipped), 0.4
    assert metrics.ndr_within_labels(*of) == pytest.approx(np.mean(rates), abs=0.005)
    assert metrics.ndr_within_labels_sd(*of) == pytest.approx(np.std(rates), rel=0.05)
