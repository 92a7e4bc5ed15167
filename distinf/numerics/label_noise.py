"""What a model's own predictions say of the labels it was given.

Shape legend: N samples, C classes.
"""

import math

import torch
from torch import Tensor

from distinf.errors import InputError

SLACK = 1e-2  # of a sum of probabilities, for half precision


def check_probabilities(probabilities_NC: Tensor, labels_N: Tensor) -> None:
    """InputError for what are no probabilities of classes, or labels that are none of them."""
    if probabilities_NC.ndim != 2 or len(probabilities_NC) != len(labels_N):
        raise InputError(
            f"probabilities must be [{len(labels_N)}, classes], not {tuple(probabilities_NC.shape)}"
        )
    sums_N = probabilities_NC.sum(1)
    off_N = (probabilities_NC < 0).any(1) | ((sums_N - 1).abs() > SLACK)
    if bool(off_N.any()):
        row = int(off_N.nonzero()[0])
        raise InputError(
            f"probabilities of row {row} sum to {float(sums_N[row]):.3g} or are negative; give the "
            "softmax of the logits"
        )
    classes = probabilities_NC.shape[1]
    if len(labels_N) and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < classes:
        raise InputError(
            f"labels reach from {int(labels_N.min())} to {int(labels_N.max())}, where there are "
            f"probabilities of {classes} classes; number the classes from 0"
        )


def likeliest_other(probabilities_NC: Tensor, labels_N: Tensor) -> Tensor:
    """int64 [N]: the most probable class but the given one, what the label is if it is wrong.

    A model that was trained on the row leans to its given label, so that is left out.
    """
    others_NC = probabilities_NC.clone()
    others_NC[torch.arange(len(labels_N)), labels_N] = -1.0
    return others_NC.argmax(1)


def wrong_labels(probabilities_NC: Tensor, labels_N: Tensor) -> float:
    """About how many of the given labels are wrong, by confident learning.

    A sample speaks for the class of which it is most sure among those whose probability is at
    least the mean over the samples labelled so; the shares of those that speak for another class
    than their label's are carried over to all samples of the label (Northcutt et al., Confident
    Learning, JAIR 2021, Eq. 1 to 3). NaN probabilities are left out.
    """
    known_N = torch.isfinite(probabilities_NC).all(1)
    probabilities_NC, labels_N = probabilities_NC[known_N].double(), labels_N[known_N]
    classes = probabilities_NC.shape[1]
    given_NC = torch.nn.functional.one_hot(labels_N, classes).double()
    counts_C = given_NC.sum(0)
    means_C = (probabilities_NC * given_NC).sum(0) / counts_C  # NaN where no label is of the class
    sure_NC = torch.where(probabilities_NC >= means_C, probabilities_NC, -1.0)
    best_N, speaks_N = sure_NC.max(1)
    joint_CC = torch.zeros(classes, classes, dtype=torch.float64)
    said_N = best_N >= 0
    joint_CC.index_put_(
        (labels_N[said_N], speaks_N[said_N]), torch.ones_like(best_N[said_N]), accumulate=True
    )
    totals_C = joint_CC.sum(1)
    agreeing_C = joint_CC.diagonal() / totals_C.clamp(min=1)
    return float((counts_C * torch.where(totals_C > 0, 1 - agreeing_C, 0.0)).sum())


def log_odds_gain(right: int, by_one_class: int, count: int) -> float:
    """How far the log odds of a classifier's accuracy on `count` rows lie above those of always
    saying the most frequent class; 0 where they do not. The weight of a vote among independent
    ones (Nitzan and Paroush, *Optimal Decision Rules in Uncertain Dichotomous Choice Situations*),
    with half a row added on either side."""
    odds = [math.log((k + 0.5) / (count - k + 0.5)) for k in (right, by_one_class)]
    return max(0.0, odds[0] - odds[1])


def normal_scores(values_N: Tensor) -> Tensor:
    """fp64 [N]: the quantiles of a normal distribution at (rank - 1/2) / N, equal values at their
    mean rank; rankings of any scale can then be added."""
    ordered_N = values_N.double().sort().values
    values_N = values_N.double().contiguous()
    below_N = torch.searchsorted(ordered_N, values_N)
    through_N = torch.searchsorted(ordered_N, values_N, right=True)
    shares_N = (below_N + through_N).double() / 2 / len(values_N)
    return torch.special.ndtri(shares_N)  # type: ignore[no-any-return]
