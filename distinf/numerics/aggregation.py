"""One score per training sample from scores per query and block.

Shape legend: Q queries, N training samples.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.metrics import removed

TINY = torch.finfo(torch.float32).tiny
QUERIES_AT_ONCE = 64  # a few million entries are sorted at once

How = Literal["mean", "rank", "vote"]


def aggregate(
    scores: Tensor | Mapping[str, Tensor], how: How = "mean", top: float | int = 0.3
) -> Tensor:
    """fp64 [N] from [Q, N] or {block: [Q, N]}; low means detrimental, as in the scores themselves.

    mean: over queries and blocks. rank: sum over queries and blocks of the number of samples scored
    strictly lower (Vitel and Chhabra, Eq. 9). vote: minus the votes; each query and block gives k
    votes to its lowest sample, k - 1 to the next, and so on (Eq. 10), with k = `top` samples, or
    that fraction of them if `top` < 1; both take scores rounded to 16 bits (`alike`). They
    leave out queries that the model gets wrong: select rows first. Raises InputError for scores
    that are not finite, or no such tensors.
    """
    blocks = dict(scores) if isinstance(scores, Mapping) else {"scores": scores}
    for name, block in blocks.items():
        if not isinstance(block, Tensor) or block.dim() != 2 or not block.shape[1]:
            shown = tuple(block.shape) if isinstance(block, Tensor) else type(block).__name__
            raise InputError(f"{name}: scores must be tensors [Q, N] with N >= 1, not {shown}")
    if not blocks or len({block.shape[1] for block in blocks.values()}) > 1:
        raise InputError("aggregate needs at least one block, all over the same training samples")
    for name, block_QN in blocks.items():
        bad = int((~torch.isfinite(block_QN).all(0)).sum())
        if bad or not len(block_QN):
            raise InputError(
                f"{name}: {bad} training samples have scores that are not finite, from "
                f"{len(block_QN)} queries; select finite columns, and at least one query"
            )
    if how == "mean":
        return torch.cat([block_QN.double() for block_QN in blocks.values()]).mean(0)
    if how not in ("rank", "vote"):
        raise InputError(f"how={how!r} is unknown; use 'mean', 'rank' or 'vote'")
    samples = next(iter(blocks.values())).shape[1]
    votes = votes_of(top, samples)
    total_N = torch.zeros(samples, dtype=torch.float64)
    for block_QN in blocks.values():
        ranks_N, cast_N = _ranks_and_votes(alike(block_QN), votes)
        total_N += ranks_N if how == "rank" else cast_N
    return total_N


def tallies(scores_QN: Tensor, right_Q: Tensor, top: float | int = 0.3) -> dict[str, Tensor]:
    """{"mean", "rank", "vote"}: fp64 [N] each, as `aggregate` gives them, for one block.

    The mean is over all queries; rank and vote are over those of `right_Q` (bool [Q]), as in
    Vitel and Chhabra. Sums over blocks of ranks and votes, and means of means, are those of all
    blocks together.
    """
    votes = votes_of(top, scores_QN.shape[1])
    ranks_N, cast_N = _ranks_and_votes(alike(scores_QN[right_Q]), votes)
    return {"mean": scores_QN.double().mean(0), "rank": ranks_N, "vote": cast_N}


def alike(scores: Tensor) -> Tensor:
    """Rounded to 16 significant bits: scores that differ by rounding alone become ties.

    Where all gradients of a block lie on one line (a bias of two classes), cosines are 1 or -1, and
    without this their ranks would be the order of the last bits. float32, which sorts in half the
    time; float64 where float32 has no room for a score.
    """
    found = scores.float()
    outside = torch.isinf(found) | ((found.abs() < TINY) & (scores != 0))
    if scores.dtype == torch.float64 and bool(outside.any()):
        bits = scores.contiguous().view(torch.int64)
        return ((bits + (1 << 36)) & ~((1 << 37) - 1)).view(torch.float64)
    bits = found.contiguous().view(torch.int32)
    return ((bits + 0x80) & ~0xFF).view(torch.float32)


def _ranks_and_votes(scores_QN: Tensor, votes: int) -> tuple[Tensor, Tensor]:
    """fp64 [N] each: Eq. 9, and Eq. 10 without its sign turned, summed over queries."""
    ranks_N = torch.zeros(scores_QN.shape[1], dtype=torch.float64)
    cast_N = torch.zeros_like(ranks_N)
    for part_QN in scores_QN.split(QUERIES_AT_ONCE):
        lower_QN = count_lower(part_QN)
        ranks_N += lower_QN.sum(0)
        cast_N -= (votes - lower_QN).clamp_(min=0).sum(0)
    return ranks_N, cast_N


def count_lower(scores: Tensor) -> Tensor:
    """int64 [..., N]: how many entries of its row are strictly lower than each; ties share."""
    ordered, places = scores.contiguous().sort(dim=-1)
    first = torch.zeros_like(places)
    steps = torch.arange(1, scores.shape[-1], device=scores.device)
    first[..., 1:] = torch.where(ordered[..., 1:] > ordered[..., :-1], steps, 0)
    return torch.empty_like(places).scatter_(-1, places, first.cummax(dim=-1).values)


def votes_of(top: float | int, samples: int) -> int:
    """k of Eq. 10: `top` samples, or as many as a filter of that share removes if `top` < 1."""
    if isinstance(top, float) and 0.0 < top < 1.0:
        return max(1, removed(samples, top))
    if top >= 1 and top == int(top):
        return min(int(top), samples)
    raise InputError(f"top={top} must be a fraction in (0, 1) or a whole number of samples >= 1")
