"""How well scores find samples that are known to be wrong, and how ranks agree.

Samples are taken lowest score first, equal scores in row order, as a filter removes them.
Shape legend: N samples, R places on the curve, D bins.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distinf.errors import InputError

SLACK = 1e-9  # 0.29 · 100 is 28.999…96 in floating point: 29 samples are meant
NORMAL_95 = 1.96  # standard deviations on either side hold 95 % of a normal distribution


def removed(samples: int, share: float) -> int:
    """How many of `samples` a filter of that share removes: whole samples, rounded down."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share={share} must be between 0 and 1, as 0.3 for 30 %")
    return min(samples, int(share * samples + SLACK))


def lowest_first(scores_N: Tensor) -> Tensor:
    """int64 [N]: rows by ascending score, equal scores in row order."""
    if scores_N.ndim != 1 or not len(scores_N):
        raise InputError(f"scores must be one vector of samples, not {tuple(scores_N.shape)}")
    bad = int((~torch.isfinite(scores_N)).sum())
    if bad:
        raise InputError(f"{bad} scores are not finite; drop the samples without a score first")
    return torch.sort(scores_N.detach().cpu(), stable=True).indices


def noise_curve(scores_N: Tensor, flipped_N: Tensor) -> Tensor:
    """int64 [N + 1]: flipped samples among the lowest 0, 1, …, N scores (Vitel and Chhabra, 5.4).

    flipped_N: bool; at least one must be true.
    """
    order_N = lowest_first(scores_N)
    flipped_N = flipped_N.detach().cpu().bool()
    if flipped_N.shape != scores_N.shape or not bool(flipped_N.any()):
        raise InputError(
            f"flipped must mark at least one of the {len(scores_N)} scored samples; it has shape "
            f"{tuple(flipped_N.shape)} and marks {int(flipped_N.sum())}"
        )
    return torch.cat([torch.zeros(1, dtype=torch.int64), flipped_N[order_N].long().cumsum(0)])


def noise_shares(scores_N: Tensor, flipped_N: Tensor, places: int = 101) -> Tensor:
    """fp64 [R]: share of all flipped samples found at evenly spaced shares removed, from 0 to 1."""
    curve = noise_curve(scores_N, flipped_N)
    cuts = [removed(len(curve) - 1, k / (places - 1)) for k in range(places)]
    return curve[cuts].double() / curve[-1]


def ndr(scores_N: Tensor, flipped_N: Tensor, share: float = 0.3) -> float:
    """Noise detection rate: the share of all flipped samples among the lowest `share` of scores.

    Exactly the samples that a filter of that share removes; Vitel and Chhabra's code counts one
    more.
    """
    curve = noise_curve(scores_N, flipped_N)
    return float(curve[removed(len(scores_N), share)]) / float(curve[-1])


def ndr_of_labels(labels_N: Tensor, flipped_N: Tensor, share: float = 0.3) -> float:
    """`ndr` expected of removing rows by their given label alone, the one most often wrong first.

    labels_N: int64 classes. Rows of one label go at random. Where classes are unequal it is far
    above `share`, which is what rows at random have.
    """
    totals, wrong = _by_label(labels_N, flipped_N)
    left, found = removed(len(labels_N), share), 0.0
    for place in (wrong / totals).argsort(descending=True, stable=True).tolist():
        taken = min(left, int(totals[place]))
        found += taken * float(wrong[place] / totals[place])
        left -= taken
    return found / float(wrong.sum())


def ndr_within_labels(
    scores_N: Tensor, labels_N: Tensor, flipped_N: Tensor, share: float = 0.3
) -> float:
    """`ndr` expected of these scores if the wrong labels lay at random within each given label."""
    totals, wrong = _by_label(labels_N, flipped_N)
    lowest = lowest_first(scores_N)[: removed(len(scores_N), share)]
    taken = torch.bincount(_places(labels_N)[lowest], minlength=len(totals))
    return float((taken * wrong / totals).sum() / wrong.sum())


def sorted_by_class(scores_N: Tensor, labels_N: Tensor) -> float:
    """How much of a ranking is its classes: the share of the ranks' variance between classes
    (Kruskal and Wallis' H / (N - 1)) over that if each class were one stretch of the ranking.

    1: it sorts by class alone, in the order of the classes' mean ranks; of a random ranking it is
    about (C - 1) / (N - 1); nan with one class, or of equal scores.
    """
    ranks_N, places_N = _mean_ranks(scores_N), _places(labels_N)
    counts_C = torch.bincount(places_N).double()
    means_C = torch.bincount(places_N, ranks_N) / counts_C
    order_C = means_C.argsort()
    ends_C = counts_C[order_C].cumsum(0)
    sorted_C = ends_C - counts_C[order_C] / 2  # mean ranks from 0, as those of _mean_ranks

    def between(of_C: Tensor, weights_C: Tensor) -> Tensor:
        return (weights_C * (of_C - len(ranks_N) / 2).square()).sum()

    variance = (ranks_N - ranks_N.mean()).square().sum()
    most = between(sorted_C, counts_C[order_C])
    spread = (len(ranks_N) ** 3 - len(ranks_N)) / 12  # of ranks without ties
    return float(between(means_C, counts_C) / variance / most * spread)


def ndr_within_labels_sd(
    scores_N: Tensor, labels_N: Tensor, flipped_N: Tensor, share: float = 0.3
) -> float:
    """Standard deviation of the `ndr` whose expectation `ndr_within_labels` is: of every label the
    wrong rows among those removed are hypergeometric."""
    totals, wrong = _by_label(labels_N, flipped_N)
    lowest = lowest_first(scores_N)[: removed(len(scores_N), share)]
    taken = torch.bincount(_places(labels_N)[lowest], minlength=len(totals)).double()
    rates, left = wrong / totals, (totals - taken) / (totals - 1).clamp(min=1.0)
    return float((taken * rates * (1 - rates) * left).sum().sqrt() / wrong.sum())


def only_by_label(
    ndrs: Sequence[float],
    within: Sequence[tuple[float, float]],
    counts: Sequence[tuple[int, int]],
    share: float,
) -> bool:
    """Whether a ranking finds what its given labels alone find, and nothing more.

    Of each data: its `ndr`; mean and deviation within labels; (samples, flipped). True where the
    labels of what it removes find more than rows at random do (95 %), and the ranking itself no
    more than rows of those labels at random.
    """
    mean = sum(expected for expected, _ in within) / len(within)
    half = NORMAL_95 * math.sqrt(sum(sd**2 for _, sd in within)) / len(within)
    by_labels = mean > ndr_by_chance(counts, share)[1]
    return by_labels and sum(ndrs) / len(ndrs) <= mean + half


def _by_label(labels_N: Tensor, flipped_N: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 [C] each: rows and wrong rows of every label that occurs."""
    places_N, flipped_N = _places(labels_N), flipped_N.detach().cpu().bool()
    if flipped_N.shape != labels_N.shape or not bool(flipped_N.any()):
        raise InputError("flipped must mark at least one of the samples that have a label")
    return torch.bincount(places_N).double(), torch.bincount(places_N, flipped_N.double())


def _places(labels_N: Tensor) -> Tensor:
    return labels_N.detach().cpu().unique(return_inverse=True)[1]  # type: ignore[no-any-return]


def ndr_auc(scores_N: Tensor, flipped_N: Tensor) -> float:
    """Area under the noise curve over that of a perfect ranking, by the trapezoid rule.

    Perfect is 1; with 20 % flipped a random ranking gives 0.556 and the worst 0.111. Vitel
    and Chhabra's code sums the curve instead, which adds 0.5 / (flipped / 2 + clean): 0.0001 at
    4,500 samples.
    """
    curve = noise_curve(scores_N, flipped_N).double()
    flipped = float(curve[-1])
    area = float((curve[1:].sum() + curve[:-1].sum()) / 2 / flipped)
    return area / (flipped / 2 + len(scores_N) - flipped)


def ndr_by_chance(counts: Sequence[tuple[int, int]], share: float) -> tuple[float, float]:
    """Where 95 % of random rankings put the mean `ndr` over data of these (samples, flipped).

    The flipped samples among those removed are hypergeometric; here by its normal approximation.
    Of data whose samples are all flipped, as a single one is, every ranking removes as many.
    """
    if not counts or not all(0 < flipped <= samples for samples, flipped in counts):
        raise InputError("ndr_by_chance needs data with at least one flipped sample each")
    spread = sum(
        share * (1 - share) * (1 - flipped / samples) * samples / (samples - 1) / flipped
        for samples, flipped in counts
        if flipped < samples
    )
    half = NORMAL_95 * math.sqrt(spread) / len(counts)
    return max(0.0, share - half), min(1.0, share + half)


def auc_by_chance(samples: int, flipped: int) -> float:
    """`ndr_auc` of a random ranking."""
    return 0.5 / (1 - flipped / samples / 2)


def noise_histogram(scores_N: Tensor, flipped_N: Tensor, bins: int = 10) -> Tensor:
    """fp64 [D]: share of all flipped samples per equal part of the ranking, lowest scores first."""
    curve = noise_curve(scores_N, flipped_N)
    if not 1 <= bins <= len(scores_N):
        raise InputError(f"bins={bins} must be between 1 and the {len(scores_N)} samples")
    edges = [len(scores_N) * k // bins for k in range(bins + 1)]
    return curve[edges].double().diff() / curve[-1]


def spearman(first_N: Tensor, second_N: Tensor) -> float:
    """Spearman's rank correlation, ties at their mean rank; nan if either side is constant."""
    if first_N.shape != second_N.shape or first_N.ndim != 1 or len(first_N) < 2:
        raise InputError(
            f"spearman compares two vectors of the same length >= 2, not {tuple(first_N.shape)} "
            f"and {tuple(second_N.shape)}"
        )
    first, second = _mean_ranks(first_N), _mean_ranks(second_N)
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / (first.norm() * second.norm()))


def spearman_matrix(values_MN: Tensor) -> Tensor:
    """fp64 [M, M]: `spearman` of every pair of rows; nan where a row is constant."""
    if values_MN.ndim != 2 or values_MN.shape[1] < 2:
        raise InputError(
            "spearman_matrix compares rows of length >= 2 in an [M, N] matrix, not "
            f"{tuple(values_MN.shape)}"
        )
    ranks_MN = torch.stack([_mean_ranks(row_N) for row_N in values_MN])
    ranks_MN = ranks_MN - ranks_MN.mean(1, keepdim=True)
    norms_M = ranks_MN.norm(dim=1)
    return ranks_MN @ ranks_MN.T / torch.outer(norms_M, norms_M)


def _mean_ranks(values_N: Tensor) -> Tensor:
    values_N = values_N.detach().to("cpu", torch.float64).contiguous()
    if not bool(torch.isfinite(values_N).all()):
        raise InputError("spearman needs finite values; drop the samples without a score first")
    ordered_N, _ = values_N.sort()
    below = torch.searchsorted(ordered_N, values_N, right=False)
    through = torch.searchsorted(ordered_N, values_N, right=True)
    return (below + through).double() / 2
