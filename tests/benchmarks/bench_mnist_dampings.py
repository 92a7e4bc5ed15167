"""Fisher, DataInf, EK-FAC and the filter of training on multinomial regression, by damping.

    python -m tests.benchmarks.bench_mnist_dampings RUN

RUN as for bench_mnist. Each at its default, at the recipe's 1 / sum of the learning rates, and over
a sweep; and what keeps each from being exact, by itself: the empirical Fisher with labels that the
model draws, and EK-FAC with the expectation over these in closed form.
"""

import sys
from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from distinf.engine.recipe import Foretold
from distinf.engine.run import reopen
from distinf.numerics.counterfactual import datamodeling
from distinf.numerics.estimators import datainf, fisher
from distinf.numerics.variants import Coordinates, damped_dots, unrolled
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.spectra import unfiltered_spectrum
from distinf.spectral.train import trained_model
from tests.benchmarks.bench_mnist import agreement, closed_form, trained

SWEEP = (1e-4, 3.2e-4, 1e-3, 3.2e-3, 0.01, 0.032, 0.1, 0.32)


def filtered(session, train_NP: Tensor, query_QP: Tensor) -> Iterator[tuple[str, Tensor]]:
    """200 pairs, by either filter."""
    placed = Coordinates.of(train_NP, query_QP, stored_pairs(session).vectors)
    damped = unfiltered_spectrum(session)
    yield "200 pairs, damped", damped_dots(placed, damped)
    yield "200 pairs, unrolled", damped_dots(placed, unrolled(damped))


def by_gram(train_NP: Tensor, query_QP: Tensor, rule: float) -> Iterator[tuple[str, Tensor]]:
    gram_NN, cross_QN, count = train_NP @ train_NP.T, query_QP @ train_NP.T, len(train_NP)
    factor, square_N = fisher.factorise(gram_NN), gram_NN.diagonal()
    for value in (fisher.default_damping(factor), rule, *SWEEP):
        yield f"Fisher {value:.3g}", fisher.classic(factor, cross_QN, value)
    default = datainf.default_damping(float(square_N.sum()), count, train_NP.shape[1])
    for value in (default, rule, *SWEEP, 1.0, 10.0, 100.0):
        correction_QN = datainf.weights(cross_QN, square_N, value) @ gram_NN
        yield f"DataInf {value:.3g}", datainf.scores(cross_QN, correction_QN, value, count)


def with_sampled_labels(
    parts: tuple[Tensor, Tensor], train_NP: Tensor, query_QP: Tensor, rule: float
) -> Iterator[tuple[str, Tensor]]:
    """The Fisher matrix of as many gradients, of labels drawn from the model."""
    x_ND, p_NC = parts
    drawn_N = torch.multinomial(p_NC, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    residual_NC = p_NC - torch.nn.functional.one_hot(drawn_N, p_NC.shape[1])
    sampled_NP = (residual_NC[:, :, None] * x_ND[:, None]).flatten(1)
    factor = fisher.factorise(sampled_NP @ sampled_NP.T)
    inside = query_QP @ sampled_NP.T @ factor.vectors_NR, sampled_NP @ train_NP.T
    for value in (rule, 0.01, 0.1):
        inverse_R = 1 / (factor.values_R + len(x_ND) * value)
        taken_QN = (inside[0] * inverse_R) @ factor.vectors_NR.T @ inside[1]
        yield f"Fisher, drawn labels {value:.3g}", (query_QP @ train_NP.T - taken_QN) / value


def by_kronecker(
    parts: tuple[Tensor, Tensor], train_NP: Tensor, query_QP: Tensor, rule: float
) -> Iterator[tuple[str, Tensor]]:
    """EK-FAC: the diagonal in the basis of both factors."""
    x_ND, p_NC = parts
    classes, width = p_NC.shape[1], x_ND.shape[1]
    _, bases_D = torch.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    outer = (torch.diag_embed(p_NC) - p_NC[:, :, None] * p_NC[:, None]).mean(0)
    _, bases_C = torch.linalg.eigh(outer)
    squares_ND = (x_ND @ bases_D).square()
    values_CD = torch.zeros(classes, width, dtype=torch.float64)
    for label in range(classes):
        residual_NC = p_NC - torch.eye(classes)[label]
        weighted_NC = (residual_NC @ bases_C).square() * p_NC[:, label : label + 1]
        values_CD += weighted_NC.T @ squares_ND / len(x_ND)
    turned_QP, turned_NP = (
        (bases_C.T @ each.view(-1, classes, width) @ bases_D).flatten(1)
        for each in (query_QP, train_NP)
    )
    for value in (0.1 * float(values_CD.mean()), rule, *SWEEP):
        yield f"EK-FAC {value:.3g}", (turned_QP / (values_CD.flatten() + value)) @ turned_NP.T


def sensitivity(train_NP: Tensor, query_QP: Tensor, rule: float) -> None:
    """How far rankings hang on a factor of ten: the mean over queries of Spearman's correlation."""
    gram_NN, cross_QN, count = train_NP @ train_NP.T, query_QP @ train_NP.T, len(train_NP)
    factor, square_N = fisher.factorise(gram_NN), gram_NN.diagonal()

    def by_datainf(value: float) -> np.ndarray:
        correction_QN = datainf.weights(cross_QN, square_N, value) @ gram_NN
        return datainf.scores(cross_QN, correction_QN, value, count).numpy()

    def by_fisher(value: float) -> np.ndarray:
        return fisher.classic(factor, cross_QN, value).numpy()

    default = datainf.default_damping(float(square_N.sum()), count, train_NP.shape[1])
    for name, scores, value in (
        ("Fisher", by_fisher, fisher.default_damping(factor)),
        ("Fisher", by_fisher, rule),
        ("DataInf", by_datainf, default),
        ("DataInf", by_datainf, rule),
    ):
        own_QN = scores(value)
        told = [agreement(scores(by * value), own_QN) for by in (0.1, 10.0)]
        print(f"{name} {value:.3g}: {told[0]:.3f} at a tenth, {told[1]:.3f} at ten times")


def main(folder: str) -> None:
    torch.set_num_threads(2)
    session = reopen(folder)
    rows, ids = session.outline.training_rows, chosen_targets(session).ids
    none = {"none": ("cross-entropy", np.zeros((len(ids), rows)))}
    cell = Foretold("", rows, none, "none", ids)
    kept_MN, losses_MQ = trained(session, cell, "half")
    kept_MN, losses_KMQ = kept_MN[:100], losses_MQ.reshape(2, 100, -1)
    fewer_MN, fewer_MQ = trained(session, cell, "share")
    hessian, train_NP, query_QP = closed_form(session)
    rule = unfiltered_spectrum(session).damping
    hessian.diagonal().add_(rule)
    factor = torch.linalg.cholesky(hessian)
    exact_QN = (torch.cholesky_solve(query_QP.T, factor).T @ train_NP.T).numpy()
    x_ND = session.task.batch("train", np.arange(rows))["x"].double()
    weights = trained_model(session).weight.detach().double()
    given = (x_ND, (x_ND @ weights.T).softmax(-1)), train_NP, query_QP, rule
    every = chain(
        [("exact", torch.from_numpy(exact_QN))],
        filtered(session, train_NP, query_QP),
        by_kronecker(*given),
        by_gram(train_NP, query_QP, rule),
        with_sampled_labels(*given),
    )
    for name, scores_QN in every:
        found = scores_QN.numpy()
        lines = [datamodeling(found, kept_MN, each) for each in (losses_KMQ[0], losses_KMQ.mean(0))]
        lines.append(datamodeling(found, fewer_MN, fewer_MQ))
        told = [f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})" for m in lines]
        print(f"{name:26}", *told, f"{agreement(found, exact_QN):.3f}", flush=True)
    sensitivity(train_NP, query_QP, rule)


if __name__ == "__main__":
    main(sys.argv[1])
