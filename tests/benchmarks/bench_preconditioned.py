"""What scores by the filter of Adam's and LAMB's training are worth, beside those of H.

    python -m tests.benchmarks.bench_preconditioned [--seeds 3]

A net of 58 parameters on 240 points (two classes, 24 wrong labels), trained by AdamW or LAMB; dense
float64 algebra; the linear datamodeling score of 200 halves and of 200 times 2 % left out of the
same order, over 30 queries.
"""

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from distinf.numerics.counterfactual import datamodeling
from distinf.numerics.updates import adam
from tests.support import blobs_task

SHAPES = ((8, 4), (8,), (2, 8), (2,))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
ROWS, BATCH, DECAY = 240, 24, 0.01
LEFT_OUT = {"half": 0.5, "2 %": 0.02}


def losses(w_P: Tensor, x: Tensor, label: Tensor) -> Tensor:
    first, bias, last, out = (p.view(s) for p, s in zip(w_P.split(SIZES), SHAPES, strict=True))
    outputs = torch.tanh(x @ first.T + bias) @ last.T + out
    return -torch.log_softmax(outputs, -1).gather(-1, label[..., None])[..., 0]


def trained(weight_N: Tensor, start_P: Tensor, data, order, rate: float, lamb: bool):
    """The weights by rows' weights, and P and the decay of the last step."""
    w_P, state = start_P, (torch.zeros_like(start_P), torch.zeros_like(start_P))
    how = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decoupled": True}
    for number, ids in enumerate(order):

        def mean(w, ids=ids):
            return (weight_N[ids] * losses(w, data[0][ids], data[1][ids])).sum() / BATCH

        stepped_P, state = adam(w_P, grad(mean)(w_P), state, 1.0, number, **how)
        update_P = w_P - stepped_P + DECAY * w_P
        ratio_P = torch.ones_like(w_P)
        if lamb:
            parts = zip(w_P.split(SIZES), update_P.split(SIZES), SHAPES, strict=True)
            ratio_P = torch.cat([
                (a.norm() / b.norm()).expand(len(a)) if len(shape) > 1 else torch.ones_like(a)
                for a, b, shape in parts
            ])  # fmt: skip
        w_P = w_P - rate * ratio_P * update_P
    root_P = (state[1] / (1 - 0.999 ** len(order))).sqrt() + 1e-8
    return w_P, ratio_P / root_P, DECAY * ratio_P


def measured(
    seed: int, steps: int, rate: float, lamb: bool, subsets: int = 200
) -> dict[tuple[str, str], float]:
    """LDS by (scores, what is left out)."""
    made = blobs_task.points(ROWS, seed + 1), blobs_task.points(64, seed + 2)
    made[0]["label"][:24] = 1 - made[0]["label"][:24]
    data, queries = ((m["x"].double(), m["label"]) for m in made)
    queries = [values[:30] for values in queries]
    generator = torch.Generator().manual_seed(seed)
    start_P = torch.cat([
        (torch.rand(s, generator=generator) * 2 - 1).flatten() / SHAPES[i // 2 * 2][1] ** 0.5
        for i, s in enumerate(SHAPES)
    ])  # fmt: skip
    epochs = -(-steps * BATCH // ROWS)
    order = torch.cat([torch.randperm(ROWS, generator=generator) for _ in range(epochs)])
    order = order[: steps * BATCH].view(steps, BATCH)
    w_P, scale_P, decay_P = trained(torch.ones(ROWS), start_P, data, order, rate, lamb)
    mean_PP = hessian(lambda w: losses(w, *data).mean())(w_P)
    of_rows = vmap(grad(losses), (None, 0, 0))
    train_NP, query_QP = of_rows(w_P, *data), of_rows(w_P, *queries)
    root_P, one_P, length = scale_P.sqrt(), torch.ones_like(w_P), steps * rate
    least = 0.01 * torch.linalg.eigvalsh(mean_PP).abs().max()

    def scores(operator_PP, root_P, of):
        values_P, vectors_PP = torch.linalg.eigh(operator_PP)
        inverse_PP = vectors_PP * of(values_P.abs()) @ vectors_PP.T
        return (query_QP * root_P) @ inverse_PP @ (train_NP * root_P).T

    def filtered(theta):
        return -torch.expm1(-length * theta) / theta

    of_steps = root_P[:, None] * mean_PP * root_P + torch.diag(decay_P)
    found = {
        "filter of P^1/2 H P^1/2": scores(of_steps, root_P, filtered),
        "filter of H, the same T": scores(mean_PP + DECAY * torch.diag(one_P), one_P, filtered),
        "1 / (H + 1 % of its largest)": scores(mean_PP, one_P, lambda t: 1 / (t + least)),
        "g' P g": scores(torch.diag(one_P), root_P, torch.ones_like),
        "g' g": scores(torch.diag(one_P), one_P, torch.ones_like),
    }
    worth = {}
    for what, share in LEFT_OUT.items():
        kept_MN = torch.ones(subsets, ROWS)
        for row in kept_MN:
            row[torch.randperm(ROWS, generator=generator)[: int(share * ROWS)]] = 0
        ends_MP = vmap(lambda k: trained(k, start_P, data, order, rate, lamb)[0])(kept_MN)
        losses_MQ = vmap(lambda w: losses(w, *queries))(ends_MP).numpy()
        for name, scores_QN in found.items():
            lds = datamodeling(scores_QN.numpy(), kept_MN.bool().numpy(), losses_MQ)
            worth[name, what] = lds.value
    return worth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    count = parser.parse_args().seeds
    torch.set_default_dtype(torch.float64)
    for lamb in (False, True):
        for steps, rate in ((100, 0.005), (100, 0.02), (400, 0.005), (400, 0.02)):
            every = [measured(seed, steps, rate, lamb) for seed in range(count)]
            print(f"{'LAMB' if lamb else 'AdamW'}, {steps} steps of {rate}", flush=True)
            for key in every[0]:
                print(f"  {', '.join(key)}: {' '.join(f'{one[key]:.3f}' for one in every)}")


if __name__ == "__main__":
    main()
