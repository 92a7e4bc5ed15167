"""Spearman correlation of influence scores with the exact damped solve, by treatment.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_mlp_spearman
"""

from math import nan

import torch
from torch import Tensor

from distinf.numerics.krylov import arnoldi
from distinf.numerics.metrics import spearman
from distinf.numerics.solve import USABLE, Directions, RefineSettings, refine
from distinf.numerics.variants import damped_dots, spectrum
from tests.benchmarks.mlp_problem import DAMPING, Problem, coordinates, problem


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


def main() -> None:
    """Print one row per treatment."""
    torch.set_num_threads(1)
    case = problem()
    negative = int((torch.linalg.eigvalsh(case.hessian_PP) < 0).sum())
    print(f"P = {case.layout.size}, {negative} negative eigenvalues, damping {DAMPING}")
    for name, value in treatments(case).items():
        print(f"{name:<24} {value:.4f}")


if __name__ == "__main__":
    main()
