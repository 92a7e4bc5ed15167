"""One score per training sample from scores per query and block.

Shape legend: Q queries, N training samples.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from distinf.errors import InputError

How = Literal["mean", "rank", "vote"]


def aggregate(
    scores: Tensor | Mapping[str, Tensor], how: How = "mean", top: float | int = 0.3
) -> Tensor:
    """fp64 [N] from [Q, N] or {block: [Q, N]}; low means detrimental, as in the scores themselves.

    mean: over queries and blocks. rank: sum over queries and blocks of the number of samples scored
    strictly lower (paper 003, Eq. 9). vote: minus the votes; each query and block gives k votes to
    its lowest sample, k - 1 to the next, and so on (Eq. 10), with k = `top` samples, or that
    fraction of them if `top` < 1. The paper leaves out queries that the model gets wrong: select
    rows first. Raises InputError for scores that are not finite.
    """
    blocks = {"scores": scores} if isinstance(scores, Tensor) else dict(scores)
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
    votes = _votes(top, samples)
    total_N = torch.zeros(samples, dtype=torch.float64)
    for block_QN in blocks.values():
        for scores_N in block_QN:
            lower_N = count_lower(scores_N).to(total_N)
            total_N += lower_N if how == "rank" else -(votes - lower_N).clamp(min=0)
    return total_N


def count_lower(scores_N: Tensor) -> Tensor:
    """int64 [N]: how many entries are strictly lower than each; ties share their count."""
    ordered_N, _ = scores_N.contiguous().sort()
    return torch.searchsorted(ordered_N, scores_N.contiguous(), right=False)


def _votes(top: float | int, samples: int) -> int:
    if isinstance(top, float) and 0.0 < top < 1.0:
        return max(1, round(top * samples))
    if top >= 1 and top == int(top):
        return min(int(top), samples)
    raise InputError(f"top={top} must be a fraction in (0, 1) or a whole number of samples >= 1")
