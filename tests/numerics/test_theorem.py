"""Theorem 5.1 of Vitel and Chhabra: parameters whose gradients cancel can still tell samples apart.

theta and w are scalar parameters; a noisy sample x1 and a clean one x2 have training gradients
(a1, b1) and (a2, b2), and a validation sample x3 has (a3, b3). With TracIn, I_theta = a_i a3 and
I_theta,w = a_i a3 + b_i b3, so the distance of the two samples is |a3 (a1 - a2)| without w and
|a3 (a1 - a2) + b3 (b1 - b2)| with it. For C(w) -> infinity, b1 + b2 = epsilon -> 0.

The proof's equations, here as numbers: with w the distance is larger for every x3 whose gradients
are aligned, a3 (a1 - a2) and b3 (b1 - b2) of one sign, and for any b3 large enough; it is not
larger only where the two oppose each other and |b3 (b1 - b2)| <= 2 |a3 (a1 - a2)|. (The printed
proof needs b1 != b2 as well, which its b1 b2 < 0 provides.)
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distinf
from distinf.numerics.cancellation import cancellation

size = st.floats(0.1, 3.0)
side = st.sampled_from([-1.0, 1.0])


def separation(train_2P: torch.Tensor, query_P: torch.Tensor) -> float:
    """|I(x1, x3) - I(x2, x3)| by TracIn, through the public function."""
    scores_2 = distinf.influence(train_2P, query_P[None], "tracin")[0]
    return float((scores_2[0] - scores_2[1]).abs())


def c_of(first: float, second: float) -> float:
    grads = torch.tensor([[first], [second]], dtype=torch.float64)
    return cancellation(grads.abs().sum(0), grads.sum(0)).l1


@given(size, size, size, st.sampled_from([1e-2, 1e-5, 1e-8, 0.0]), size, side, side)
@settings(max_examples=100, deadline=None)
def test_a_weight_with_high_cancellation_separates_more_on_some_validation_sample(
    a1, a2, b1, epsilon, a3, sign, side_a
):
    a2, b2 = -0.5 * side_a * min(a1, a2), -side_a * b1 + epsilon  # both pairs of opposite signs
    a1, b1 = side_a * a1, side_a * b1
    assert a1 * a2 < 0 > b1 * b2
    assert abs(a1 + a2) > 0
    if c_of(b1, b2) <= c_of(a1, a2):
        return  # the premise C(theta) < C(w) asks for a smaller epsilon
    joint = torch.tensor([[a1, b1], [a2, b2]], dtype=torch.float64)
    aligned = math.copysign(1.0, (a1 - a2) * (b1 - b2))
    x3 = torch.tensor([sign * a3, sign * aligned * 0.7], dtype=torch.float64)
    assert separation(joint, x3) > separation(joint[:, :1], x3[:1])


def test_cancellation_of_w_grows_without_bound_and_the_gain_stays():
    gains, amounts = [], []
    for epsilon in (1e-1, 1e-3, 1e-6, 0.0):
        joint = torch.tensor([[1.0, 2.0], [-0.5, -2.0 + epsilon]], dtype=torch.float64)
        x3 = torch.tensor([1.0, 1.0], dtype=torch.float64)
        gains.append(separation(joint, x3) - separation(joint[:, :1], x3[:1]))
        amounts.append(c_of(2.0, -2.0 + epsilon))
    assert amounts == sorted(amounts)
    assert amounts[-1] == math.inf
    assert c_of(1.0, -0.5) == 3.0  # theta's, far below
    assert gains == pytest.approx([3.9, 3.999, 3.999999, 4.0])


@pytest.mark.parametrize(
    ("b3", "gains"), [(-0.1, False), (-0.7, False), (-0.76, True), (-5.0, True), (0.1, True)]
)
def test_opposing_gradients_lose_only_up_to_twice_the_distance(b3, gains):
    """The remark after the proof: there are also validation samples where w does not help."""
    joint = torch.tensor([[1.0, 2.0], [-0.5, -2.0]], dtype=torch.float64)
    x3 = torch.tensor([1.0, b3], dtype=torch.float64)  # a3 (a1 - a2) = 1.5, b3 (b1 - b2) = 4 b3
    assert (separation(joint, x3) > separation(joint[:, :1], x3[:1])) == gains


def test_the_separation_of_the_proof_in_closed_form():
    """Its influence relation: |a3 (a1 - a2)| |1 + (b1 - b2) / (a1 - a2) · b3 / a3|."""
    a1, a2, a3, b1, b2, b3 = 1.2, -0.4, 0.8, 0.9, -0.9 + 1e-9, 0.3
    joint = torch.tensor([[a1, b1], [a2, b2]], dtype=torch.float64)
    x3 = torch.tensor([a3, b3], dtype=torch.float64)
    printed = abs(a3 * (a1 - a2)) * abs(1 + (b1 - b2) / (a1 - a2) * b3 / a3)
    assert separation(joint, x3) == pytest.approx(printed, rel=1e-12)


def test_a_logistic_model_has_such_validation_samples_and_some_of_the_other_kind():
    """Two training samples whose gradients for w cancel, and 200 drawn validation samples."""
    weights = torch.tensor([0.3, 0.2], dtype=torch.float64)

    def gradient(x: torch.Tensor, label: float) -> torch.Tensor:
        return (torch.sigmoid(x @ weights) - label) * x  # of the cross-entropy loss

    noisy_x, clean_x = torch.tensor([[1.0, 1.0], [1.5, 0.0]], dtype=torch.float64)
    noisy = gradient(noisy_x, 0.0)  # its label should be 1
    for _ in range(60):  # the clean sample's second feature that cancels it
        clean_x[1] = -noisy[1] / (torch.sigmoid(clean_x @ weights) - 1.0)
    joint = torch.stack([noisy, gradient(clean_x, 1.0)])
    assert c_of(*joint[:, 1].tolist()) > 1e9 > c_of(*joint[:, 0].tolist()) > 1
    drawn = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    more = [
        separation(joint, query) > separation(joint[:, :1], query[:1])
        for query in (gradient(x, float(x.sum() > 0)) for x in drawn)
    ]
    assert 0.5 < sum(more) / len(more) < 0.95
