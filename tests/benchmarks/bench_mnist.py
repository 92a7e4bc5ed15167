"""What scores are worth on multinomial regression, beside the exact solve of the mean Hessian.

    distinf run configs/benchmarks/mnist_lr.yaml --out RUN
    distinf evaluate RUN --subsets 100 --repeats 2 --independent --shares 100 --unrolled
    python -m tests.benchmarks.bench_mnist RUN

The exact solve is written out here in closed form, in float64 and apart from the package: a row's
gradient is (p - y) x', the Hessian a sum of (diag(p) - p p') ⊗ x x'.
"""

import sys

import numpy as np
import torch
from scipy.stats import spearmanr

from distinf.engine.evaluating import with_unrolled
from distinf.engine.run import reopen
from distinf.engine.trainings import Design, every_unit, kept_rows
from distinf.numerics.counterfactual import ceiling, datamodeling
from distinf.spectral import retraining
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.spectra import damped_spectrum
from distinf.spectral.train import trained_model

PUBLISHED = {  # dattri's benchmark, LDS ± .01, read off its figure
    "explicit": 0.80, "CG": 0.80, "LiSSA": 0.79, "Arnoldi": 0.31, "TracIn": 0.33, "Grad-Dot": 0.33,
    "Grad-Cos": 0.19, "TRAK-1": 0.415, "TRAK-10": 0.645, "TRAK-50": 0.685,
}  # fmt: skip
DAMPINGS = (1e-3, 3.2e-3, 0.01, 0.032, 0.1, 0.32)


def exact(session, damping: float) -> np.ndarray:
    """fp64 [Q, N]: g_q' (H + damping)^-1 g_n."""
    hessian, train_NP, query_QP = closed_form(session)
    hessian.diagonal().add_(damping)
    factor = torch.linalg.cholesky(hessian)
    return (torch.cholesky_solve(query_QP.T, factor).T @ train_NP.T).numpy()


def closed_form(session) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean Hessian [P, P], and the gradients of training rows and of targets."""
    weights = trained_model(session).weight.detach().double()
    task, ids = session.task, chosen_targets(session).ids
    every = np.arange(session.outline.training_rows)
    found = []
    for split, rows in (("train", every), ("evaluation", ids)):
        batch = task.batch(split, rows)
        x_ND = batch["x"].double()
        p_NC = (x_ND @ weights.T).softmax(-1)
        residual_NC = p_NC - torch.nn.functional.one_hot(batch["label"], len(weights))
        found.append((x_ND, p_NC, (residual_NC[:, :, None] * x_ND[:, None]).flatten(1)))
    (x_ND, p_NC, train_NP), (_, _, query_QP) = found
    classes, width = weights.shape
    hessian = torch.zeros(classes, width, classes, width, dtype=torch.float64)
    for a in range(classes):
        for b in range(a + 1):
            curved_N = p_NC[:, a] * (float(a == b) - p_NC[:, b])
            block = (x_ND * curved_N[:, None]).T @ x_ND / len(x_ND)
            hessian[a, :, b], hessian[b, :, a] = block, block.T
    return hessian.reshape(classes * width, -1), train_NP, query_QP


def agreement(one_QN: np.ndarray, two_QN: np.ndarray) -> float:
    """The mean over queries of Spearman's correlation of two scores of the training rows."""
    pairs = zip(one_QN, two_QN, strict=True)
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))


def trained(session, cell, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept bool [M, N] and losses [M, Q] of all trainings of this kind."""
    design = Design(subsets=100, repeats=2, shares=100, independent=True)
    units = [unit for unit in every_unit(session, cell, design) if kind in unit.job]
    kept_MN = np.stack([kept_rows(session.seed, unit.job) for unit in units])
    return kept_MN, np.stack([session.arrays(unit)["cross-entropy"] for unit in units])


def main(folder: str) -> None:
    torch.set_num_threads(2)
    session = reopen(folder)
    (cell,) = retraining.foretold(session)
    cell = with_unrolled(session, cell)
    kept_MN, losses_MQ = trained(session, cell, "half")
    kept_MN, losses_KMQ = kept_MN[:100], losses_MQ.reshape(2, 100, -1)
    fewer_MN, fewer_MQ = trained(session, cell, "share")
    of_two = ceiling(losses_KMQ).value
    of_one = (of_two**2 / (2 - of_two**2)) ** 0.5  # Spearman and Brown, backwards
    damping = damped_spectrum(session).damping
    scores = {name.split("/")[1]: scores_QN for name, (_, scores_QN) in cell.scores.items()}
    solved = {value: exact(session, value) for value in sorted({*DAMPINGS, damping})}
    scores |= {f"exact, damping {value:.3g}": found for value, found in solved.items()}
    print(f"damping {damping:.4g}; ceiling {of_one:.3f} of one model, {of_two:.3f} of two")
    names = ("LDS, one model", "LDS, mean of two", "LDS, 1 % left out")
    print(f"{'ranking':24}", *(f"{name:24}" for name in names), "Spearman with the exact")
    for name, scores_QN in scores.items():
        lines = [
            datamodeling(scores_QN, kept_MN, each) for each in (losses_KMQ[0], losses_KMQ.mean(0))
        ]
        lines.append(datamodeling(scores_QN, fewer_MN, fewer_MQ))
        told = [f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})" for m in lines]
        rank = agreement(np.nan_to_num(scores_QN), solved[damping])
        print(f"{name:24}", *(f"{each:24}" for each in told), f"{rank:.3f}")
    print("published, one model:", ", ".join(f"{k} {v}" for k, v in PUBLISHED.items()))


if __name__ == "__main__":
    main(sys.argv[1])
