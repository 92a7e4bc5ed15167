"""Theorem 5.1's counts against loops over pairs and queries in float64, by its own definitions."""

import math

import pytest
import torch

from distinf.numerics.separation import LEVELS, GroupProducts, pair_cancellation, separations

NOISY, CLEAN, QUERIES = 5, 6, 7


def gradients(seed: int, width: int, opposing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, P] and [Q, P], float64: clean samples are nearly the noisy ones' negatives."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(NOISY + CLEAN, width, generator=draw, dtype=torch.float64)
    rows[NOISY:] = opposing * rows[NOISY:] - rows[:1]
    rows[:NOISY] = opposing * rows[:NOISY] + rows[:1]
    return rows, torch.randn(QUERIES, width, generator=draw, dtype=torch.float64)


def products(rows: torch.Tensor, queries: torch.Tensor) -> GroupProducts:
    return GroupProducts(rows @ rows.T, queries @ rows.T)


def counted(theta, w, noisy, level):
    """(premises, claimed, triples, aligned, more), one pair and one query after another."""

    def c(g1, g2):
        below = float((g1 + g2).norm())
        return math.inf if below == 0 else float(g1.norm() + g2.norm()) / below

    found = [0, 0, 0, 0, 0]
    for one in noisy.nonzero().flatten().tolist():
        for two in (~noisy).nonzero().flatten().tolist():
            (a1, a2), (b1, b2) = (g[0][[one, two]] for g in (theta, w))
            holds = c(b1, b2) >= level and c(a1, a2) < c(b1, b2) and float(a1 @ a2) < 0
            if level > 1 and not holds:
                continue
            claimed = False
            for a3, b3 in zip(theta[1], w[1], strict=True):
                alone = float(a1 @ a3) - float(a2 @ a3)
                beside = float(b1 @ b3) - float(b2 @ b3)
                more = abs(alone + beside) > abs(alone)
                found[2:] = [found[2] + 1, found[3] + (alone * beside > 0), found[4] + more]
                claimed |= more
            found[0], found[1] = found[0] + 1, found[1] + claimed
    return tuple(found)


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_loops(seed):
    theta, w = gradients(seed, 4, 1.6), gradients(seed + 50, 6, 0.6)
    noisy = torch.zeros(NOISY + CLEAN, dtype=torch.bool)
    noisy[:NOISY] = True
    mixed = torch.randperm(len(noisy), generator=torch.Generator().manual_seed(seed))
    noisy, theta, w = noisy[mixed], (theta[0][mixed], theta[1]), (w[0][mixed], w[1])
    found = separations(products(*theta), products(*w), noisy)
    assert [f.level for f in found] == list(LEVELS)
    for f in found:
        mine = (f.premises, f.claimed, f.triples, f.aligned, f.more)
        assert mine == counted(theta, w, noisy, f.level)
        assert f.pairs == NOISY * CLEAN
    assert found[0].premises == NOISY * CLEAN  # the first has no premise
    assert 0 < found[1].premises < NOISY * CLEAN


def test_cancellation_of_a_pair_is_infinite_where_it_is_complete():
    rows = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [6.0, 8.0], [4.0, -3.0]], dtype=torch.float64)
    c = pair_cancellation(rows @ rows.T)
    assert c[0, 1] == math.inf
    assert c[0, 2] == pytest.approx(1.0)  # of one direction
    assert c[1, 2] == pytest.approx(3.0)  # (5 + 10) / 5
    assert c[0, 3] == pytest.approx(math.sqrt(2.0))  # at right angles: below 2, above is opposed


def test_a_pair_that_cancels_wholly_holds_at_every_level():
    rows = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    theta = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    query = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    noisy = torch.tensor([True, False])
    for f in separations(products(theta, query), products(rows, query), noisy)[1:]:
        assert (f.premises, f.claimed, f.triples, f.aligned, f.more) == (1, 1, 2, 2, 2)
    for f in separations(products(rows, query), products(theta, query), noisy)[1:]:
        assert f.premises == 0  # C(theta) is infinite, and C(w) is 3
