"""Stage gradients: one pass over the training rows, projecting each per-sample gradient.

Stored per row: its coordinates in the kept Ritz vectors, its squared norm, and its dot products
with every query gradient, those that EK-FAC solved for, and refined solves. With these every
variant is a matrix product away. Its loss is stored with them: what it costs nothing to rank by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage, pooled
from distinf.microbatch import each_part
from distinf.numerics.batches import copied
from distinf.numerics.capture import Method, Methods, finite_rows, flat_gradients
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.losses import evaluating, noting
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision
from distinf.numerics.products import scaled, scales, sqnorms
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.spectral import preconditioning
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.factors import EKFAC, solved_queries
from distinf.spectral.preconditioning import rooted
from distinf.spectral.queries import query_gradients
from distinf.spectral.session import Outline, Session
from distinf.spectral.solves import converged_solutions
from distinf.spectral.train import trained_layers
from distinf.tasks.methods import Pass, agree, in_a_run, rehearsed_method
from distinf.tasks.task import Batch, PerSampleLoss

NAME = "gradients"


def scored_rows(outline: Outline) -> int:
    """How many training rows, from the first on, are scored."""
    settings = outline.settings.gradients
    most = outline.rows["train"] if settings.candidates == "all" else outline.training_rows
    return min(settings.rows or most, most)


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of the training split."""
    settings, shapes = outline.settings, outline.shapes
    queries = settings.targets.count * len(outline.losses)
    width = settings.curvature.keep + (1 + settings.scores.ekfac) * queries + 4
    per_row = outline.vector
    copies = 1 if settings.gradients.method == "hooks" else 3  # of activations: .7, 1.7 measured
    chunk, keep = settings.gradients.chunk, settings.curvature.keep
    kept = chunk * copies * shapes.activation_bytes_per_sample
    passed = chunk * per_row + kept
    flops = shapes.forwards["gradient"] * shapes.flops_per_sample + 2.0 * outline.entries * width
    asked = {"queries": per_row * (width - keep - 4)}
    return [
        (
            Unit(NAME, outline.keys[NAME], a, b),
            Cost(
                flops=flops * (b - a),
                bytes=4.0 * width * (b - a),
                memory={"directions": per_row * width},
                device={
                    "weights": shapes.model_bytes,
                    "activations": kept,
                    "gradients": chunk * per_row,
                    "directions": per_row * width,
                },
                staged=shapes.model_bytes,
                levers=(
                    Lever("gradients.chunk", chunk, passed),
                    Lever("curvature.keep", keep, per_row * keep),
                ),
                work={"gradient": b - a},
                loaded={**outline.loaded, "directions": per_row * keep, **asked},
            ),
        )
        for a, b in row_ranges(scored_rows(outline), settings.gradients.rows_per_unit)
    ]


def rehearsed(session: Session, model: nn.Module, methods: Methods) -> Method:
    """The first of `methods` that agrees with one row at a time under every loss."""
    settings, task = session.settings.gradients, session.task
    first = next(iter(task.losses))
    passes = [Pass(first, "train", settings.chunk)]
    passes += [Pass(name, "evaluation", 1) for name in task.losses]  # targets go one by one
    layout = Layout.of(model, session.settings.curvature.blocks)
    return rehearsed_method(task, model, layout, settings, passes, methods)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    settings = session.settings.gradients
    by_layer = settings.method == "hooks" and not preconditioning.is_asked(session)
    project = _project_by_layer if by_layer else _project_whole

    def projections(ids: np.ndarray) -> dict[str, np.ndarray]:
        batch = session.batch("train", ids)
        session.cached("agreed", partial(_agree, session, batch))
        return project(session, batch)

    with in_a_run():
        ids = np.arange(unit.start, unit.stop)
        made = each_part(ids, projections, "gradients.chunk", settings.chunk)
        parts = [found for _, found in made]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    quarantined = (unit.start + np.flatnonzero(~arrays["finite"])).tolist()
    summary = {"quarantined": quarantined}
    return session.commit(unit, attempt, arrays, summary=summary, may_hold_nan=["loss"])


def _agree(session: Session, batch: Batch) -> Method:
    settings = session.settings.gradients
    model, layout, loss = _differentiated(session)
    return agree(model, loss, batch, layout, settings, (settings.chosen,), rows=settings.chunk)


def _directions(session: Session) -> dict[str, Tensor]:
    """What gradients are projected on: ritz [K, P], each loss's queries [T, P] and those solved for
    by EK-FAC, refined solves [R, P]."""
    solved = converged_solutions(session)
    stacked = np.stack([solved[key] for key in sorted(solved)]) if solved else None
    directions = {"ritz": rooted(session, stored_pairs(session).vectors)}
    queries = query_gradients(session).items()
    directions |= {f"query.{n}": rooted(session, rooted(session, grads)) for n, grads in queries}
    directions |= {f"{EKFAC}.{name}": rows for name, rows in solved_queries(session).items()}
    if stacked is not None:
        directions["solved"] = torch.from_numpy(stacked)
    return {name: values.to(session.device) for name, values in directions.items()}


@dataclass(frozen=True)
class Scaled:
    """Directions [K, P] of any size, divided by scale_K: 1, but for those out of the ordinary,
    whose dot products with a gradient float32 may not hold (numerics/products.py)."""

    rows_KP: Tensor
    scale_K: Tensor

    @classmethod
    def of(cls, rows_KP: Tensor) -> "Scaled":
        scale_K = scales(sqnorms(rows_KP))
        return cls(scaled(rows_KP, scale_K), scale_K)

    def back(self, dots_NK: Tensor) -> Tensor:
        """From dot products with the rows to those with the directions; float64 where scaled."""
        ordinary = bool((self.scale_K == 1).all())
        return dots_NK if ordinary else dots_NK.double() * self.scale_K


def _stacked_directions(session: Session) -> tuple[Scaled, dict[str, int]]:
    """All directions as one matrix [K, P], and how many rows of it each kind has."""
    directions = _directions(session.asked)
    counts = {name: len(rows) for name, rows in directions.items()}
    return Scaled.of(torch.cat(list(directions.values()))), counts


def _project_by_layer(session: Session, batch: Batch) -> dict[str, np.ndarray]:
    """As _project_whole, but no per-sample gradient is ever held whole."""
    model, layout, loss = _differentiated(session)
    stacked, counts = session.cached("stacked", lambda: _stacked_directions(session))
    losses: list[Tensor] = []
    with precision(session.settings.gradients.precision, session.device):
        dots_NK, sqnorm_N = projected_gradients(
            model, noting(loss, losses), batch, layout, stacked.rows_KP
        )
    finite_N = torch.isfinite(sqnorm_N)
    safe_NK = stacked.back(torch.where(finite_N[:, None], dots_NK, 0.0))
    found = dict(zip(counts, safe_NK.split(list(counts.values()), dim=1), strict=True))
    return _arrays(found, torch.where(finite_N, sqnorm_N, 0.0), finite_N, losses)


def _project_whole(session: Session, batch: Batch) -> dict[str, np.ndarray]:
    """Projections of finite rows; the others are marked, and their numbers never used."""
    settings = session.settings.gradients
    model, layout, loss = _differentiated(session)
    directions: dict[str, Scaled] = session.cached(
        "directions",
        lambda: {n: Scaled.of(rows) for n, rows in _directions(session.asked).items()},
    )
    losses: list[Tensor] = []
    with precision(settings.precision, session.device):
        grads_NP = flat_gradients(
            model, loss, batch, layout, chunk=settings.chunk, method=settings.chosen
        )
        with evaluating(model), torch.enable_grad(), float_edges(model):
            noting(loss, losses)(model, copied(batch))
    finite_N = finite_rows(grads_NP)
    safe_NP = torch.where(finite_N[:, None], grads_NP, 0.0)
    found = {n: d.back(safe_NP @ d.rows_KP.T.to(safe_NP)) for n, d in directions.items()}
    sqnorm_N = rooted(session, safe_NP).double().square().sum(1)
    return _arrays(found, sqnorm_N, finite_N, losses)


def _differentiated(session: Session) -> tuple[nn.Module, Layout, PerSampleLoss]:
    """The trained model, its chosen parameters, and the loss it was trained on."""
    return *trained_layers(session), next(iter(session.task.losses.values()))


def _arrays(
    found: dict[str, Tensor], sqnorm_N: Tensor, finite_N: Tensor, losses: Sequence[Tensor]
) -> dict[str, np.ndarray]:
    loss_N = torch.where(finite_N, torch.cat([*losses]).double(), 0.0)
    found |= {"sqnorm": sqnorm_N, "loss": loss_N}
    arrays = {name: values.cpu().numpy() for name, values in found.items()}
    arrays["finite"] = finite_N.cpu().numpy()
    return arrays


def projected(session: Session, start: int, stop: int) -> dict[str, np.ndarray]:
    """Projections of the rows start:stop, by name; both must be ends of units."""
    wanted = [u for u, _ in units(session.outline) if start <= u.start and u.stop <= stop]
    parts = [session.arrays(unit) for unit in wanted]
    names = (name for name in parts[0] if all(name in part for part in parts))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def quarantined_rows(session: Session) -> list[int]:
    """Training rows whose gradient was not finite; they have no score."""
    wanted = [unit for unit, _ in units(session.outline)]
    return [row for record in session.records(wanted) for row in record["summary"]["quarantined"]]


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "per-sample gradients", needs=("queries", "factors"),
    reads=("gradients", "-gradients.check"), units=units, run=run,
)  # fmt: skip
