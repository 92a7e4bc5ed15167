"""Refined solves of (H + damping) x = g for the targets' gradients g: a part of stage queries.

Each is committed with its outcome and with the directions that it found, from which the next one
starts; one that failed is never used for a score.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import done_for_all, draw
from distinf.numerics.krylov import Matvec
from distinf.numerics.losses import sum_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.solve import USABLE, Directions, RefineSettings, Sampled, Solution, refine
from distinf.numerics.variants import Spectrum, safe_floor
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.curvature import left_out_rows, probe_units, seen_units, stored_pairs
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.mean_product import drawn_rows, mean_product, product_bytes, summed_bytes
from distinf.spectral.session import Outline, Session
from distinf.spectral.settings import StageSettings
from distinf.spectral.spectra import damped_spectrum
from distinf.spectral.train import trained_layers

STAGE = "queries"  # whose units these are
SHARE = 0.25  # of the curvature's products, for all solves where curvature.refine is null
SAMPLED = 64  # training gradients whose ranking tells whether a solve may end


def is_asked(wanted: int | None, complement: str, filtered: str) -> bool:
    """Whether any target may be refined, by curvature.refine, scores.complement and .filter."""
    damped = complement != "none" and filtered == "damped"
    return damped if wanted is None else wanted > 0


def _is_asked(settings: StageSettings) -> bool:
    scores = settings.scores
    return is_asked(settings.curvature.refine, scores.complement, scores.filter)


def curvature_products(outline: Outline) -> int:
    """Of the stage curvature: Krylov steps, the pairs' residuals, and probes."""
    settings = outline.settings.curvature
    measured = settings.keep if settings.residuals == "products" else 0
    return settings.steps + measured + len(probe_units(outline)) + len(seen_units(outline))


def most_products(outline: Outline) -> int:
    """Of all solves together."""
    settings = outline.settings
    if not _is_asked(settings):
        return 0
    wanted = settings.curvature.refine
    if wanted is None:
        return int(SHARE * curvature_products(outline))
    solves = min(wanted, settings.targets.count) * len(outline.losses)
    return solves * settings.curvature.refine_steps


def solve_units(outline: Outline) -> list[Unit]:
    """One per loss and refined target (by rank), in the order in which they are solved."""
    settings = outline.settings
    wanted, most = settings.curvature.refine, most_products(outline)
    targets = settings.targets.count if wanted is None else min(wanted, settings.targets.count)
    units = [
        Unit(STAGE, outline.keys[STAGE], job={"solve": rank, "loss": loss})
        for loss in outline.losses
        for rank in range(targets)
    ]
    return units[:most]


def costed_units(outline: Outline) -> list[tuple[Unit, Cost]]:
    """The solves, each with its share of the most that they take together."""
    units, settings = solve_units(outline), outline.settings.curvature
    samples = min(settings.samples, outline.training_rows)
    vector, shapes = outline.vector, outline.shapes
    flops = shapes.forwards["product"] * shapes.flops_per_sample
    products = most_products(outline) / max(1, len(units))
    passed, lever = product_bytes(outline)
    kept = 2 * vector * _capacity(outline)
    cost = Cost(
        flops=flops * samples * products,
        bytes=vector * (1 + 2 * products),
        memory={"results": vector * (1 + 2 * products)},
        device={
            "weights": shapes.model_bytes,
            "activations": passed,
            "directions": kept + vector * (settings.keep + SAMPLED),
        },
        staged=vector * settings.keep + shapes.model_bytes,
        levers=(lever, Lever("curvature.refine_steps", settings.refine_steps, kept)),
        work={"product": samples * products},
        loaded={**outline.loaded, "directions": vector * settings.keep},
        summed=summed_bytes(outline) * products,
    )
    first = replace(cost, work={**cost.work, "gradient": SAMPLED})
    return [(unit, cost if place else first) for place, unit in enumerate(units)]


def _capacity(outline: Outline) -> int:
    """Directions that are kept: as curvature.memory_mb allows, at least those of one solve."""
    settings, most = outline.settings.curvature, most_products(outline)
    fits = int(settings.memory_mb * 2**20 / (2 * outline.vector))
    one = min(settings.refine_steps, most)
    return max(one, min(most, fits, outline.entries + one))


def unrefined(session: Session) -> str:
    """Why no target is refined, in words; "" where some are.

    A solve is of H + damping as it is. Where that is not safely positive on the Ritz pairs and
    outside, it is not what the other targets are scored by, and is solved only if both is asked
    for: a number of targets, and scores.negative: keep.
    """
    settings = session.settings
    if not _is_asked(settings):
        if settings.curvature.refine == 0:
            return "curvature.refine is 0"
        if settings.scores.filter != "damped":
            return f"scores.filter is {settings.scores.filter}"
        return "the inverse is truncated to the Ritz pairs"
    if settings.curvature.refine and settings.scores.negative == "keep":
        return ""
    return session.cached("not positive", lambda: _not_positive(session))


def _not_positive(session: Session) -> str:
    found, values_K = damped_spectrum(session), stored_pairs(session).values
    floor = safe_floor(values_K, found.damping)
    unsafe_K = values_K + found.damping <= floor
    if bool(unsafe_K.any()):
        return (
            f"{int(unsafe_K.sum())} of {len(values_K)} Ritz values (smallest "
            f"{float(values_K.min()):.2g}) are not safely positive with the damping "
            f"{found.damping:.2g}"
        )
    outside = found.complement if found.report.complement is None else found.report.complement
    if outside is not None and outside < 0 and outside + found.damping <= floor:
        return f"outside the Ritz pairs training gradients see a mean eigenvalue of {outside:.2g}"
    return ""


def _existing(session: Session) -> list[Unit]:
    """Solves of targets that exist: there may be fewer than were asked for."""
    if not _is_asked(session.settings) or unrefined(session):
        return []
    count = len(chosen_targets(session).ids)
    return [unit for unit in solve_units(session.outline) if unit.job["solve"] < count]


def are_done(session: Session) -> bool:
    """Nothing is left to solve, or no products are."""
    every = _existing(session)
    done, most = session.done(every), most_products(session.outline)
    for unit in every:
        if most <= 0:
            break
        if unit.id not in done:
            return False
        most = _left(session, most, done[unit.id]["summary"])
    return True


def _left(session: Session, most: int, summary: Mapping[str, Any]) -> int:
    """Products for the solves after this one: by default none where it failed."""
    over = session.settings.curvature.refine is None and summary["status"] not in USABLE
    return 0 if over else most - int(summary["steps"])


def solve_all(
    session: Session, collective: Collective, attempt: str, gradients: Mapping[str, np.ndarray]
) -> None:
    """One solve after the other, until the products are spent; `gradients` [T, P] by loss."""
    every = _existing(session)
    done = done_for_all(session, collective, every)
    if all(done):
        return
    solver = _solver(session, collective)
    left = most_products(session.outline)
    for unit, is_done in zip(every, done, strict=True):
        if left <= 0:
            break
        steps = min(session.settings.curvature.refine_steps, left)
        if is_done:
            solver.recall(session, unit, steps)
            left = _left(session, left, session.record(unit)["summary"])
            continue
        rhs_P = torch.from_numpy(gradients[unit.job["loss"]][unit.job["solve"]])
        solution, arrays = solver.solve(rhs_P.to(session.device), steps)
        left = _left(session, left, asdict(solution))
        if collective.rank == 0:
            _commit(session, unit, attempt, solution, arrays)
    collective.barrier()


@dataclass(frozen=True)
class _Solver:
    """What the solves share."""

    matvec: Matvec
    vectors_KP: Tensor
    spectrum: Spectrum
    limits: RefineSettings
    directions: Directions
    sampled: Sampled

    def solve(self, rhs_P: Tensor, steps: int) -> tuple[Solution, dict[str, np.ndarray]]:
        """In at most so many steps -> the solution, and the directions that are new by it."""
        self.directions.make_room(steps)
        before = self.directions.vectors.count
        solution = refine(
            self.matvec, rhs_P, self.vectors_KP, self.spectrum, replace(self.limits, steps=steps),
            self.directions, self.sampled,
        )  # fmt: skip
        new = zip(("vectors", "products", "signs"), self.directions.after(before), strict=True)
        return solution, {name: values.cpu().numpy() for name, values in new}

    def recall(self, session: Session, unit: Unit, steps: int) -> None:
        """Take the directions of a solve that is done."""
        self.directions.make_room(steps)
        stored = session.arrays(unit, ("vectors", "products", "signs"))
        for vector_P, product_P, sign in zip(*stored.values(), strict=True):
            self.directions.append(
                torch.from_numpy(vector_P).to(session.device),
                torch.from_numpy(product_P).to(session.device),
                float(sign),
            )


def _solver(session: Session, collective: Collective) -> _Solver:
    settings = session.settings.curvature
    model, layout = trained_layers(session)
    rows = np.setdiff1d(drawn_rows(session), left_out_rows(session))
    return _Solver(
        mean_product(session, collective, model, layout, rows),
        stored_pairs(session).vectors.to(session.device),
        damped_spectrum(session),
        RefineSettings(
            settings.refine_tolerance,
            agreement=settings.refine_agreement,
            cautious=settings.refine is None,
        ),
        Directions(
            layout.size, _capacity(session.outline), collective=collective, device=session.device
        ),
        _sampled(session, collective, model, layout, rows),
    )


def _sampled(
    session: Session, collective: Collective, model: nn.Module, layout: Layout, rows: np.ndarray
) -> Sampled:
    """x -> x . g of some of the curvature's rows, whose gradients the ranks share out."""
    loss = next(iter(session.task.losses.values()))
    order = draw(session.seed, "rows that a ranking is told by", len(rows), SAMPLED)
    owned = collective.owned(len(order))
    mine = []
    for row in rows[np.sort(order)][owned.start : owned.stop]:
        with precision(session.settings.curvature.precision, session.device):
            gradient_P = sum_gradient(model, loss, session.batch("train", row[None]), layout)
        mine.append(gradient_P if torch.isfinite(gradient_P).all() else 0 * gradient_P)

    def dots(x_P: Tensor) -> Tensor:
        # Row by row: the same bits whichever rows are together.
        own_S = x_P.new_tensor([float(gradient_P.double() @ x_P) for gradient_P in mine])
        return collective.all_gather(own_S)

    return dots


def _commit(
    session: Session, unit: Unit, attempt: str, solution: Solution, arrays: dict[str, np.ndarray]
) -> Record:
    summary = {
        "status": str(solution.status),
        "steps": solution.steps,
        "residual": solution.residual,
        "agreement": solution.agreement if isfinite(solution.agreement) else None,
        "message": solution.message,
        "negative_curvature": solution.negative_curvature,
    }
    return session.commit(unit, attempt, {"x": solution.x.cpu().numpy(), **arrays}, summary=summary)


def solves(session: Session) -> dict[tuple[int, str], Record]:
    """(target's rank, loss) -> the solve's record, in the order in which they were solved."""
    every = _existing(session)
    done = session.done(every)
    return {(u.job["solve"], u.job["loss"]): done[u.id] for u in every if u.id in done}


def converged_solutions(session: Session) -> dict[tuple[int, str], np.ndarray]:
    """(target's rank, loss) -> x [P], of the solves that may be used."""
    usable = [key for key, record in solves(session).items() if is_usable(record)]
    by_key = {(unit.job["solve"], unit.job["loss"]): unit for unit in _existing(session)}
    return {key: session.arrays(by_key[key], ("x",))["x"] for key in usable}


def is_usable(record: Record) -> bool:
    """Whether a solve may be used for scores."""
    return record["summary"]["status"] in USABLE


def told(session: Session) -> str:
    """How many targets were refined and what that took, or why none was; what the others are."""
    if session.settings.scores.complement == "none":
        return ""
    whole = "(H + damping)⁻¹" if session.settings.scores.filter == "damped" else "training's steps"
    rest = f"the Ritz pairs and one constant outside them, an approximation of {whole}"
    why = unrefined(session)
    if why:
        return f"No target is refined, since {why}: all are ranked by {rest}."
    count = len(chosen_targets(session).ids) * len(session.outline.losses)
    found = [record["summary"] for record in solves(session).values()]
    done, products = sum(s["status"] in USABLE for s in found), sum(s["steps"] for s in found)
    of_curvature = curvature_products(session.outline)
    cost = f"{products:,} products, beside the curvature's {of_curvature:,}"
    failed = [s["message"] for s in found if s["status"] not in USABLE]
    others = f"; one was given up: {failed[-1]}" if failed else ""
    others += f"; the others are ranked by {rest}" if done < count else ""
    return f"{done:,} of {count:,} rankings by target and loss are refined ({cost}){others}."
