"""Spearman correlation of influence scores with the exact damped solve, by treatment.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_mlp_spearman
"""

from math import nan

import torch
from torch import Tensor

from distinf.numerics.damping import sgd_damping
from distinf.numerics.estimators.arnoldi import default_damping
from distinf.numerics.krylov import arnoldi
from distinf.numerics.metrics import spearman
from distinf.numerics.solve import USABLE, Directions, RefineSettings, refine
from distinf.numerics.variants import damped_dots, spectrum, split_dots
from tests.benchmarks.mlp_problem import (
    DAMPING,
    EPOCHS,
    RATE,
    Problem,
    coordinates,
    left_out,
    problem,
)


def mean_spearman(scores_QN: Tensor, exact_QN: Tensor) -> float:
    """Mean over queries of the rank correlation over training samples."""
    found = [spearman(a, b) for a, b in zip(scores_QN, exact_QN, strict=True)]
    return sum(found) / len(found)


def treatments(case: Problem, keep: int = 50, steps: int = 100) -> dict[str, float]:
    """Mean Spearman of each treatment of what lies outside the kept pairs."""
    exact_QN = case.exact_scores()
    dim = case.layout.size
    full = arnoldi(case.matvec, dim, steps=dim, keep=dim, probes=0, dtype="float64")
    train_NP = case.train_NP
    pairs = arnoldi(case.matvec, dim, steps=steps, keep=keep, probes=30, gradients=train_NP)
    found = {}
    everything = spectrum(full.values, DAMPING, dim=dim, policy="keep")
    found["full basis"] = mean_spearman(
        damped_dots(coordinates(case, full.vectors), everything), exact_QN
    )
    placed = coordinates(case, pairs.vectors)
    inverse_K = 1.0 / (pairs.values + DAMPING)
    inside_QN = (placed.query_QK * inverse_K) @ placed.train_NK.T
    found["no complement"] = mean_spearman(inside_QN, exact_QN)
    plain = spectrum(pairs.values, DAMPING, dim=dim, trace=nan, policy="keep")
    found["damping alone"] = mean_spearman(damped_dots(placed, plain), exact_QN)
    traced = spectrum(pairs.values, DAMPING, dim=dim, trace=pairs.trace, policy="keep")
    found["mean eigenvalue"] = mean_spearman(damped_dots(placed, traced), exact_QN)
    seen = spectrum(
        pairs.values, DAMPING, dim=dim, policy="keep", complement="gradients", seen=pairs.seen
    )
    found["as gradients see it"] = mean_spearman(damped_dots(placed, seen), exact_QN)
    settings = RefineSettings(tolerance=1e-3, agreement=0.99)  # as curvature.refine_* have it
    directions, sampled = Directions(dim, dim), case.train_NP[:64].mv
    solutions = [
        refine(case.matvec, g_P, pairs.vectors, seen, settings, directions, sampled)
        for g_P in case.query_QP
    ]
    assert all(solution.status in USABLE for solution in solutions)
    solved_QN = torch.stack([solution.x for solution in solutions]).double() @ case.train_NP.T
    found["refined"] = mean_spearman(solved_QN, exact_QN)
    found["refined: worst residual"] = max(solution.residual for solution in solutions)
    found["refined: mean steps"] = sum(s.steps for s in solutions) / len(solutions)
    return found


def by_damping(case: Problem) -> list[tuple[str, float, float, float, float]]:
    """At the default dampings and the bench's own, all else as by default: 50 pairs unrefined and
    refined, beside how far from singular the exact operator is there."""
    dim, train_NP = case.layout.size, case.train_NP
    pairs = arnoldi(case.matvec, dim, steps=200, keep=50, probes=30, gradients=train_NP)
    lowest = float(torch.linalg.eigvalsh(case.hessian_PP).min())
    chosen = {
        "1 / sum of rates (a run's)": sgd_damping([RATE] * EPOCHS),
        "1 % of the largest value (the library's)": default_damping(pairs.values),
        "set": DAMPING,
    }
    placed, settings, found = coordinates(case, pairs.vectors), RefineSettings(agreement=0.99), []
    for name, damping in chosen.items():
        exact_QN = case.exact_scores(damping)
        made = spectrum(
            pairs.values, damping, dim=dim, policy="absolute", complement="gradients",
            seen=pairs.seen,
        )  # fmt: skip
        directions, sampled = Directions(dim, dim), train_NP[:64].mv
        solutions = [
            refine(case.matvec, g_P, pairs.vectors, made, settings, directions, sampled)
            for g_P in case.query_QP
        ]
        assert all(solution.status in USABLE for solution in solutions)
        solved_QN = torch.stack([s.x for s in solutions]).double() @ train_NP.T
        told = mean_spearman(damped_dots(placed, made), exact_QN)
        found.append((name, damping, lowest + damping, told, mean_spearman(solved_QN, exact_QN)))
    return found


def by_size(case: Problem) -> list[tuple[float, ...]]:
    """By damping, negative values by their size on both sides: Spearman of 50 pairs with the exact
    |H| + damping; the most that any constant outside the pairs reaches; and with the losses of
    training again without a row: the exact H + damping, the exact |H| + damping, 50 pairs."""
    dim, found = case.layout.size, []
    pairs = arnoldi(case.matvec, dim, steps=100, keep=50, probes=30, gradients=case.train_NP)
    placed = coordinates(case, pairs.vectors)
    for damping in (sgd_damping([RATE] * EPOCHS), default_damping(pairs.values), DAMPING):
        made = spectrum(
            pairs.values, damping, dim=dim, policy="absolute", complement="gradients",
            seen=pairs.seen,
        )  # fmt: skip
        exact_QN = case.exact_scores(damping, by_size=True)
        inside_QN, outside_QN = split_dots(placed, made)
        constants = [0.05 * k for k in range(1, 41)]  # times what is outside now
        most = max(mean_spearman(inside_QN + c * outside_QN, exact_QN) for c in constants)
        scores = (case.exact_scores(damping), exact_QN, inside_QN + outside_QN)
        truths = (mean_spearman(each, left_out()) for each in scores)
        found.append((damping, mean_spearman(scores[-1], exact_QN), most, *truths))
    return found


def main() -> None:
    """Print one row per treatment."""
    torch.set_num_threads(1)
    case = problem()
    negative = int((torch.linalg.eigvalsh(case.hessian_PP) < 0).sum())
    print(f"P = {case.layout.size}, {negative} negative eigenvalues, damping {DAMPING}")
    for name, value in treatments(case).items():
        print(f"{name:<24} {value:.4f}")
    print("by damping: lambda, lowest eigenvalue + lambda, 50 pairs, refined")
    for name, *values in by_damping(case):
        print(f"{name:<42}", *(f"{value:.4g}" for value in values))
    print("by size: lambda, 50 pairs, most of any constant; rows left out: H, |H|, 50 pairs")
    for line in by_size(case):
        print(*(f"{value:.4g}" for value in line))


if __name__ == "__main__":
    main()
