"""Influence by unrolling a training exactly: the derivative of a query's loss, after the last step,
by the weight that each training row had in every batch that it was in.

Ilyas and Engstrom, MAGIC: Near-Optimal Data Attribution for Deep Learning (2025). With the
parameters and the optimizer's state z, and the rows' weights w (1 each), a step is
z_t+1 = step_t(z_t, w). From the adjoint a_T = dL_q/dz_T backwards

    a_t = (d step_t / dz)' a_t+1        dL_q/dw += (d step_t / dw)' a_t+1

for all queries at once. States are kept every √T steps, and made again from there. Nothing is
approximated: up to rounding, this is what a small change of a row's weight does to the loss.

Sign of a score: minus that derivative; > 0 means that training on the row lowers the query's loss.
Shape legend: T steps, B rows of a batch, N training rows, Q queries, P parameters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from distinf.errors import InputError
from distinf.numerics.batches import Batch
from distinf.numerics.curvature import Parameters, twice_differentiable
from distinf.numerics.losses import Loss, applied, evaluating, per_sample, sample_losses
from distinf.numerics.own_parameters import graph_leaves, requiring_grad
from distinf.numerics.parameters import Layout
from distinf.numerics.undisturbed import undisturbed
from distinf.numerics.updates import State, Update, updates_of

MOST_PARAMETERS = 200_000
ENTRIES = 1 << 21  # of queries' adjoints that are pulled back at once
TOLERANCE = 1e-4  # relative: of a loss in training mode, and in evaluation mode


class Step(NamedTuple):
    """One step of training: the ids of its rows [B], and its learning rate."""

    rows: np.ndarray
    rate: float


class Point(NamedTuple):
    """Where training stands before a step: parameters, and the optimizer's state of each."""

    parameters: Parameters
    state: dict[str, State]


@dataclass(frozen=True)
class Training:
    """A training that can be done again: `steps` on the mean loss of their rows.

    model      as it starts; it is not changed. loss: (model, batch) -> [B]. batch: ids -> Batch
    optimizer  of the model's parameters, that has not stepped yet; see updates.py. As torch's, it
               leaves a parameter alone, decay and all, that a step's loss does not depend on
    """

    model: nn.Module
    loss: Loss
    batch: Callable[[np.ndarray], Batch]
    steps: Sequence[Step]
    optimizer: torch.optim.Optimizer

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.model)

    @cached_property
    def updates(self) -> dict[str, tuple[Update, int]]:
        parameters = {name: self.model.get_parameter(name) for name in self.layout.names}
        return updates_of(self.optimizer, parameters)

    def check(self) -> None:
        """InputError for a training that cannot be unrolled."""
        if self.layout.size > MOST_PARAMETERS:
            raise InputError(
                f"a model of {self.layout.size:,} parameters is too large to be unrolled; at most "
                f"{MOST_PARAMETERS:,} can be"
            )
        _ = self.updates
        if self.steps:
            refuse_random(self.model, self.loss, self.batch(self.steps[0].rows))

    def start(self) -> Point:
        parameters = {k: v.clone() for k, v in self.layout.parameters(self.model).items()}
        zeros = {k: torch.zeros_like(v) for k, v in parameters.items()}
        return Point(parameters, {k: (zeros[k],) * self.updates[k][1] for k in parameters})

    def taken(self, point: Point, number: int) -> Point:
        """After step `number`, every row's weight being 1."""
        return self.stepping(number)(point, self.ones(number))

    def stepping(self, number: int) -> Callable[[Point, Tensor], Point]:
        """Step `number`, a function of where training stands and of its rows' weights [B]."""
        (ids, rate), values = self.steps[number], applied(self.model, self.loss)
        batch, taken = self.batch(ids), self._before[number]

        def step(point: Point, weights_B: Tensor) -> Point:
            def mean(parameters: Parameters) -> Tensor:
                losses_B = per_sample(values(parameters, batch), batch)
                return (weights_B * losses_B).sum() / len(ids)

            grads = grad(mean)(point.parameters)
            found = {
                name: update(value, grads[name], point.state[name], rate, taken[name])
                if name in taken else (value, point.state[name])
                for (name, value), (update, _) in zip(
                    point.parameters.items(), self.updates.values(), strict=True
                )
            }  # fmt: skip
            return Point(
                {k: v for k, (v, _) in found.items()}, {k: s for k, (_, s) in found.items()}
            )

        return step

    @cached_property
    def _before(self) -> list[dict[str, int]]:
        """By step, of each parameter that its loss depends on how many such steps came before."""
        found, counts = [], dict.fromkeys(self.layout.names, 0)
        for rows, _ in self.steps:
            with evaluating(self.model), requiring_grad(self.model, counts) as own:
                total = sample_losses(self.model, self.loss, self.batch(rows)).sum()
                reached = set(map(id, graph_leaves(total)))
            found.append({name: counts[name] for name, p in own.items() if id(p) in reached})
            counts |= {name: count + 1 for name, count in found[-1].items()}
        return found

    def ones(self, number: int) -> Tensor:
        like = next(iter(self.layout.parameters(self.model).values()))
        return torch.ones(len(self.steps[number].rows), dtype=like.dtype, device=like.device)


def refuse_random(model: nn.Module, loss: Loss, batch: Batch) -> None:
    """InputError for a model whose losses in training are not those of evaluation: one that draws
    at random (dropout), or mixes the rows of a batch (batch norms)."""
    with undisturbed(model), torch.no_grad():
        trained_B, evaluated_B = (
            per_sample(loss(model.train(mode), batch), batch).double() for mode in (True, False)
        )
    if not torch.allclose(trained_B, evaluated_B, rtol=TOLERANCE, atol=TOLERANCE):
        raise InputError(
            "training of this model cannot be unrolled: its losses in training are not those of "
            "evaluation (dropout, batch norms, a random loss)"
        )


@dataclass(frozen=True)
class Trace:
    """A training done again: points before every `stride`-th step, and where it ended."""

    training: Training
    stride: int
    points: Sequence[Point]
    end: Parameters


def replayed(training: Training, tell: Callable[[float], None] = lambda _: None) -> Trace:
    """The training done again, from its start; `tell` hears what share is done."""
    count = len(training.steps)
    stride, points, point = max(1, math.isqrt(count)), [], training.start()
    with twice_differentiable(training.model):
        for number in range(count):
            if number % stride == 0:
                points.append(point)
            point = training.taken(point, number)
            tell((number + 1) / count)
    return Trace(training, stride, points, point.parameters)


def unrolled(
    trace: Trace, grads_QP: Tensor, rows: int, tell: Callable[[float], None] = lambda _: None
) -> Tensor:
    """fp64 [Q, rows]: what each training row's weight did to each query's loss.

    grads_QP: the queries' gradients at the end of training, in the order of `training.layout`. A
    row in no batch has 0. Costs a training more, and for each query a Hessian product of every
    batch.
    """
    training = trace.training
    scores_QN = torch.zeros(len(grads_QP), rows, dtype=torch.float64, device=grads_QP.device)
    chunk = max(1, ENTRIES // training.layout.size)
    adjoint: Any = _last_adjoint(training, grads_QP)
    with twice_differentiable(training.model):
        for first in range((len(trace.points) - 1) * trace.stride, -1, -trace.stride):
            numbers = range(first, min(first + trace.stride, len(training.steps)))
            points = [trace.points[first // trace.stride]]
            for number in numbers[:-1]:
                points.append(training.taken(points[-1], number))
            for number in reversed(numbers):
                weights_B = training.ones(number)
                _, pull_back, *_ = vjp(training.stepping(number), points.pop(), weights_B)
                adjoint, found_QB = vmap(pull_back, chunk_size=chunk)(adjoint)
                ids = torch.from_numpy(np.asarray(training.steps[number].rows)).to(scores_QN.device)
                scores_QN.index_add_(1, ids, found_QB.double(), alpha=-1.0)
                tell(1 - number / len(training.steps))
    return scores_QN


def _last_adjoint(training: Training, grads_QP: Tensor) -> Point:
    """dL_q/dz at the end: nothing depends on the optimizer's state any more."""
    layout = training.layout
    parts = grads_QP.split(layout.lengths, dim=1)
    found = {
        name: part.reshape(len(grads_QP), *shape)
        for name, part, shape in zip(layout.names, parts, layout.shapes, strict=True)
    }
    many = {name: count for name, (_, count) in training.updates.items()}
    return Point(found, {k: (torch.zeros_like(v),) * many[k] for k, v in found.items()})
