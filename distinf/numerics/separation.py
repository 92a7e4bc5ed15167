"""Theorem 5.1 of Vitel and Chhabra, counted: do parameters whose gradients cancel tell a noisy from
a clean sample better?

For a noisy sample x1, a clean one x2 and two groups of parameters theta and w, with gradients a1,
a2 for theta and b1, b2 for w (vectors; the proof has one parameter each):

premises    C(w) > C(theta) of the two samples, C = (|g1| + |g2|) / |g1 + g2|, and C(w) large (the
            theorem's limit is infinity; from 2 on it implies the proof's b1 b2 < 0), and a1 a2 < 0
claim       some query x3 has |I(x1) - I(x2)| larger by TracIn on theta and w than on theta alone

The proof's case is a3 (a1 - a2) and b3 (b1 - b2) of one sign, here "aligned"; the claim asks for
one such query, and `more` says of how many it is true.

Shape legend: S training samples, I noisy and J clean ones among them, Q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = (1.0, 2.0, 10.0, 100.0)  # least C(w); 1: every pair, without any premise


@dataclass(frozen=True)
class Separations:
    """Counts of pairs (x1, x2) and of triples with a query, for one theta, w and least C(w)."""

    level: float
    pairs: int
    premises: int  # pairs for which they hold
    claimed: int  # of those, with a query that separates more
    triples: int  # those pairs times the queries
    aligned: int
    more: int  # triples whose query separates more


@dataclass(frozen=True)
class GroupProducts:
    """fp64 dot products of one group's gradients: [S, S], and of queries [Q, S]."""

    self_SS: Tensor
    cross_QS: Tensor


def pair_cancellation(self_SS: Tensor) -> Tensor:
    """[S, S]: C of every two samples; infinite where they cancel, NaN where both are zero."""
    square_S = self_SS.diagonal()
    sum_SS = (square_S[:, None] + square_S + 2.0 * self_SS).clamp_min(0.0).sqrt()
    return (square_S.sqrt()[:, None] + square_S.sqrt()) / sum_SS


def separations(theta: GroupProducts, w: GroupProducts, noisy_S: Tensor) -> list[Separations]:
    """One for each of LEVELS."""
    noisy, clean = torch.where(noisy_S)[0], torch.where(~noisy_S)[0]
    c_theta, c_w = (pair_cancellation(group.self_SS)[noisy[:, None], clean] for group in (theta, w))
    opposed_IJ = theta.self_SS[noisy[:, None], clean] < 0
    apart_theta, apart_w = (
        group.cross_QS[:, noisy, None] - group.cross_QS[:, None, clean] for group in (theta, w)
    )
    more_QIJ = (apart_theta + apart_w).abs() > apart_theta.abs()
    aligned_QIJ = apart_theta * apart_w > 0
    found = []
    for level in LEVELS:
        holds_IJ = opposed_IJ & (c_w >= level) & (c_theta < c_w)
        if level == LEVELS[0]:
            holds_IJ = torch.ones_like(opposed_IJ)
        premises = int(holds_IJ.sum())
        found.append(
            Separations(
                level=level,
                pairs=holds_IJ.numel(),
                premises=premises,
                claimed=int((more_QIJ.any(0) & holds_IJ).sum()),
                triples=premises * len(more_QIJ),
                aligned=int((aligned_QIJ & holds_IJ).sum()),
                more=int((more_QIJ & holds_IJ).sum()),
            )
        )
    return found
