"""From coordinates in a Ritz basis to influence scores: classic, relative and leave-one-out forms.

Sign: score > 0 means that training on the sample helps the query (lowers its loss).
Shape legend: Q queries, N training samples, K Ritz pairs.
"""

from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Literal, get_args

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.complement import SeenComplement, complement_mean

Policy = Literal["refuse", "keep", "absolute", "drop"]
Complement = Literal["none", "damping", "mean", "gradients"]
Filter = Literal["damped", "unrolled"]
SAFE_FRACTION = 0.1  # of the damping: a smaller divisor amplifies a pair beyond its accuracy
RITZ_PRECISION = 1e-7  # of Ritz values, relative to the largest, when products are float32


@dataclass(frozen=True)
class PolicyReport:
    """What the policy did. changed: values replaced by their magnitude; dropped: left to the
    complement; complement: what that was, where its magnitude is taken instead, or 0."""

    policy: Policy = "keep"
    changed: int = 0
    dropped: int = 0
    complement: float | None = None


@dataclass(frozen=True)
class Spectrum:
    """The damped operator that scores use: pairs, damping, and what takes the place of the rest.

    values_K: fp64 Ritz values after the policy; complement: the eigenvalue outside the pairs (None:
    the inverse is truncated to the pairs, as in Eq. 7 of Tuononen, Penttinen and Hautamäki); kept:
    the values' positions among the original pairs (None: all, in order).
    """

    values_K: Tensor
    damping: float
    complement: float | None = 0.0
    kept: tuple[int, ...] | None = None
    report: PolicyReport = field(default_factory=PolicyReport)

    @property
    def rest(self) -> float:
        """Denominator outside the pairs, complement + damping; infinite where truncated."""
        return inf if self.complement is None else self.complement + self.damping

    @property
    def outside(self) -> float:
        """The inverse's eigenvalue outside the pairs; 0 where truncated, or nothing is outside."""
        return 1.0 / self.rest if self.rest else 0.0

    def select(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """The kept pairs' entries of a tensor that has all original pairs along `dim`."""
        if self.kept is None:
            return tensor
        kept = torch.tensor(self.kept, dtype=torch.int64, device=tensor.device)
        return tensor.index_select(dim, kept)


def spectrum(
    values_K: Tensor,
    damping: float,
    *,
    dim: int,
    trace: float = nan,
    policy: Policy = "refuse",
    complement: Complement = "mean",
    seen: SeenComplement | None = None,
) -> Spectrum:
    """Apply the policy for negative and tiny Ritz values of an operator in `dim` dimensions.

    complement: what the operator is outside the pairs. none: nothing, the inverse is truncated (a
    damping of 0 is then legal); damping: the damping alone; mean: the mean eigenvalue there by
    `trace`, at least 0 and 0 without a trace, and the damping; gradients: the mean that training
    gradients see there, which may be negative (`seen`), and the damping.

    policy: refuse: InputError if any value + damping is not safely positive. keep: all as they are.
    absolute: negative values become their magnitude. drop: negative or unsafe pairs join the
    complement. A complement that gradients see is held to the same; drop takes it as 0 if negative.
    """
    _check(policy, complement, damping, seen)
    if complement == "damping":
        trace = nan
    values_K = values_K.detach().to("cpu", torch.float64)

    def outside(kept: tuple[int, ...]) -> float | None:
        if complement == "none":
            return None
        if complement == "gradients" and seen is not None and dim > len(kept):
            return seen.mean(values_K, kept)
        # The trace is the operator's own, so the complement's share is what its own values leave.
        return complement_mean(trace, values_K[list(kept)], dim)

    if not len(values_K):
        return _with_complement(Spectrum(values_K, damping), outside(()), dim, 0.0, policy)
    floor = safe_floor(values_K, damping)
    negative_K = values_K < 0
    changed_K = values_K.abs() if policy == "absolute" else values_K
    unsafe_K = changed_K + damping <= floor
    if bool(unsafe_K.any()) and policy in ("refuse", "absolute"):
        raise _unsafe(values_K, changed_K, int(unsafe_K.sum()), damping, policy)
    dropped_K = (unsafe_K | negative_K) & (policy == "drop")
    kept = tuple(torch.nonzero(~dropped_K).view(-1).tolist())
    if not kept and complement == "none":
        raise _none_kept(values_K)
    report = PolicyReport(policy, int((changed_K != values_K).sum()), int(dropped_K.sum()))
    made = Spectrum(changed_K[list(kept)], damping, 0.0, kept, report)
    return _with_complement(made, outside(kept), dim, floor, policy)


def _none_kept(values_K: Tensor) -> InputError:
    return InputError(
        f"policy 'drop' drops all {len(values_K)} Ritz values (largest "
        f"{float(values_K.max()):.3g}), and complement 'none' leaves no operator; set policy to "
        "'absolute', or complement to 'mean' or 'damping'"
    )


def unrolled(damped: Spectrum, decay: float = 0.0) -> Spectrum:
    """The same pairs and complement under the filter (1 - exp(-T theta)) / theta, what gradient
    descent of that length does to a direction (SOURCE: Bae, Lin, Lorraine and Grosse 2024, Training
    Data Attribution via Approximate Unrolled Differentiation), with 1 / T = damping - decay and
    theta = value + decay.

    A theta below 0, which the policy kept, counts as 0: no direction has more than T. As values by
    which 1 / (value + damping) is the filter.
    """
    if not 0 <= decay < damped.damping:
        raise InputError(f"decay {decay} must lie in [0, damping = {damped.damping})")
    length = 1.0 / (damped.damping - decay)

    def denominators(values_K: Tensor) -> Tensor:
        theta_K = values_K + decay
        inverse_K = -torch.expm1(-length * theta_K) / theta_K
        return torch.where(theta_K > 0, 1.0 / inverse_K, 1.0 / length)

    outside = damped.complement
    if outside is not None:
        whole = denominators(torch.tensor([outside], dtype=torch.float64))
        outside = float(whole) - damped.damping
    values_K = denominators(damped.values_K) - damped.damping
    return replace(damped, values_K=values_K, complement=outside)


def _check(
    policy: Policy, complement: Complement, damping: float, seen: SeenComplement | None
) -> None:
    for name, value, kind in (("policy", policy, Policy), ("complement", complement, Complement)):
        if value not in get_args(kind):
            raise InputError(f"{name} {value!r} is unknown; use one of {', '.join(get_args(kind))}")
    if not (isfinite(damping) and damping >= 0):
        raise InputError(f"damping {damping} must be a finite number >= 0")
    if complement == "gradients" and seen is None:
        raise InputError(
            "complement 'gradients' needs what training gradients see outside the pairs: "
            "distinf.arnoldi(..., gradients=...) with probes of 1 or more"
        )


def _unsafe(
    values_K: Tensor, changed_K: Tensor, count: int, damping: float, policy: Policy
) -> InputError:
    """What damping would make the values, as the policy changed them, safely positive."""
    least, largest = float(changed_K.min()), float(values_K.abs().max())
    # A little more than `safe_floor` asks for, so that two digits of it are enough.
    needed = max(-least / (1 - 2 * SAFE_FRACTION), 1.2 * (RITZ_PRECISION * largest - least))
    return InputError(
        f"{count} of {len(values_K)} Ritz values are too negative or too small for damping "
        f"{damping:.3g} (smallest {float(values_K.min()):.3g}); set damping to {needed:.2g} or "
        "more, or policy to 'drop'" + (" or 'absolute'" if policy == "refuse" else "")
    )


def safe_floor(values_K: Tensor, damping: float) -> float:
    """What a denominator value + damping must be above to be safely positive."""
    return max(SAFE_FRACTION * damping, RITZ_PRECISION * float(values_K.abs().max()))


def _with_complement(
    made: Spectrum, mean: float | None, dim: int, floor: float, policy: Policy
) -> Spectrum:
    """With the mean eigenvalue outside the pairs; InputError where that divides by nothing."""
    left = dim - len(made.values_K)
    if mean is None or left <= 0:
        return replace(made, complement=mean)
    if mean < 0 and policy in ("absolute", "drop"):
        made = replace(made, report=replace(made.report, complement=mean))
        mean = -mean if policy == "absolute" else 0.0
    if mean + made.damping == 0:
        raise InputError(
            f"damping 0 leaves {left} directions outside the Ritz pairs with a zero "
            "denominator; set a damping > 0, or complement to 'none'"
        )
    if mean < 0 and mean + made.damping <= floor and policy != "keep":
        raise InputError(
            f"outside the Ritz pairs training gradients see a mean eigenvalue of {mean:.3g}, which "
            f"is too negative for damping {made.damping:.3g}; set damping to "
            f"{-mean / (1 - 2 * SAFE_FRACTION):.2g} or more, policy to 'absolute' or 'drop', "
            "or complement to 'mean'"
        )
    return replace(made, complement=mean)


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
