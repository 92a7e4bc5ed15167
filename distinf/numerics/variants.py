"""From coordinates in a Ritz basis to influence scores: classic, relative and leave-one-out forms.

Sign: score > 0 means that training on the sample helps the query (lowers its loss).
Shape legend: Q queries, N training samples, K Ritz pairs.
"""

from dataclasses import dataclass
from math import nan
from typing import Literal, get_args

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.spectra import Spectrum

Variant = Literal["classic", "theta-relative", "ell-relative", "newfluence"]
Scaling = Literal["mean", "paper"]
VARIANTS: tuple[str, ...] = get_args(Variant)


@dataclass(frozen=True)
class Coordinates:
    """What a pass over the samples leaves: enough for every variant and damping.

    train_NK and query_QK: U g for all original pairs; train_sqnorm_N: |g_i|^2; dots_QN: g_q . g_i.
    Training gradients are of the training loss; queries' may be of another loss (cross-loss).
    """

    train_NK: Tensor
    train_sqnorm_N: Tensor
    query_QK: Tensor
    dots_QN: Tensor

    @classmethod
    def of(cls, train_NP: Tensor, query_QP: Tensor, vectors_KP: Tensor) -> "Coordinates":
        """Coordinates of gradients in the Ritz vectors, in fp64."""
        train_NP, query_QP = train_NP.double(), query_QP.double()
        vectors_KP = vectors_KP.to(train_NP)
        sqnorm_N = train_NP.square().sum(1)
        return cls(
            train_NP @ vectors_KP.T, sqnorm_N, query_QP @ vectors_KP.T, query_QP @ train_NP.T
        )


@dataclass(frozen=True)
class VariantScores:
    """scores_QN fp64, and how many samples had a denominator <= 0.

    Such a sample's scores are nan, except under newfluence with scaling "paper", where a negative
    denominator flips their sign as that equation does.
    """

    scores_QN: Tensor
    nonpositive: int


def scores(
    coordinates: Coordinates,
    spectrum: Spectrum,
    variant: Variant = "classic",
    *,
    scaling: Scaling = "mean",
    count: int | None = None,
    solved_dots_QN: Tensor | None = None,
) -> VariantScores:
    """Influence of each training sample on each query under (H + damping)^-1.

    `count` is the number of training samples that H is the mean over (default: the rows given);
    `solved_dots_QN` = x_q . g_i from refined solves replaces the classic numerator.
    """
    classic_QN = solved_dots_QN
    if classic_QN is None:
        classic_QN = damped_dots(coordinates, spectrum)
    self_N, solved_sqnorm_N = own_parts(coordinates.train_NK, coordinates.train_sqnorm_N, spectrum)
    total = count if count is not None else len(self_N)
    return apply_variant(
        classic_QN.double(), self_N, solved_sqnorm_N, variant, scaling=scaling, count=total
    )


def own_parts(
    train_NK: Tensor, train_sqnorm_N: Tensor, spectrum: Spectrum
) -> tuple[Tensor, Tensor]:
    """fp64 [N] each: g . A g and |A g|^2 of every sample, with A = (H + damping)^-1."""
    squares_NK = spectrum.select(train_NK).double().square()
    inverse_K = (1.0 / (spectrum.values_K + spectrum.damping)).to(squares_NK.device)
    # Rounding can leave a sample inside the basis with slightly less than nothing outside.
    rest_N = (train_sqnorm_N.double() - squares_NK.sum(1)).clamp(min=0.0)
    outside = spectrum.outside
    solved_sqnorm_N = squares_NK @ inverse_K.square() + rest_N * outside**2
    return squares_NK @ inverse_K + rest_N * outside, solved_sqnorm_N


def damped_dots(coordinates: Coordinates, spectrum: Spectrum) -> Tensor:
    """fp64 [Q, N]: g_q . (H + damping)^-1 g_i, the classic score."""
    inside_QN, outside_QN = split_dots(coordinates, spectrum)
    return inside_QN + outside_QN


def split_dots(coordinates: Coordinates, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """fp64 [Q, N] each: what the pairs bring to the classic score, and what lies outside them."""
    train_NK = spectrum.select(coordinates.train_NK).double()
    query_QK = spectrum.select(coordinates.query_QK).double()
    inverse_K = (1.0 / (spectrum.values_K + spectrum.damping)).to(train_NK.device)
    rest_QN = coordinates.dots_QN.double() - query_QK @ train_NK.T
    return (query_QK * inverse_K) @ train_NK.T, rest_QN * spectrum.outside


def damped_inverse(vector_P: Tensor, vectors_KP: Tensor, spectrum: Spectrum) -> Tensor:
    """[P]: (H + damping)^-1 v, with the spectrum's pairs and its complement elsewhere.

    vectors_KP: all original pairs' vectors.
    """
    kept_KP = spectrum.select(vectors_KP, 0)
    inverse_K = (1.0 / (spectrum.values_K + spectrum.damping)).to(vector_P.device)
    outside = spectrum.outside
    weights_K = (inverse_K - outside) * (kept_KP @ vector_P.to(kept_KP)).double()
    return (kept_KP.T @ weights_K.to(kept_KP) + outside * vector_P).to(vector_P)


def apply_variant(
    classic_QN: Tensor,
    self_N: Tensor,
    solved_sqnorm_N: Tensor,
    variant: Variant,
    *,
    scaling: Scaling = "mean",
    count: int,
) -> VariantScores:
    """Divide classic scores by the variant's denominator, in our sign.

    self_N = g_i . A g_i and solved_sqnorm_N = |A g_i|^2 with A the damped inverse; both of the
    training loss. theta-relative: sqrt(solved_sqnorm_N). ell-relative: sqrt(self_N). newfluence:
    1 - self / count (leave-one-out with a mean Hessian, exact where the sample's own Hessian is
    g g^T and an overcorrection for outliers), or 1 - self under scaling "paper".
    """
    if variant == "classic":
        return VariantScores(classic_QN, 0)
    if variant == "newfluence":
        if scaling not in get_args(Scaling):
            raise InputError(f"scaling {scaling!r} is unknown; use 'mean' or 'paper'")
        denominator_N = 1.0 - self_N / (count if scaling == "mean" else 1)
    elif variant in ("theta-relative", "ell-relative"):
        denominator_N = solved_sqnorm_N if variant == "theta-relative" else self_N
    else:
        raise InputError(f"variant {variant!r} is unknown; use one of {', '.join(VARIANTS)}")
    bad_N = denominator_N <= 0
    if variant == "newfluence":
        unusable_N = bad_N if scaling == "mean" else denominator_N == 0
    else:
        unusable_N = bad_N
        denominator_N = denominator_N.clamp(min=0.0).sqrt()
    scores_QN = torch.where(unusable_N, nan, classic_QN / denominator_N)
    return VariantScores(scores_QN, int(bad_N.sum()))
