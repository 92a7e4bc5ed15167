"""How close scores come to an exact damped solve, on a small MLP with negative eigenvalues."""

import pytest
import torch

from tests.benchmarks.bench_mlp_spearman import treatments
from tests.benchmarks.mlp_problem import problem


@pytest.fixture(scope="module")
def found():
    return treatments(problem())


def test_the_problem_is_indefinite_and_has_227_parameters():
    case = problem()
    values = torch.linalg.eigvalsh(case.hessian_PP)
    assert case.layout.size == 227
    assert 25 <= int((values < 0).sum()) <= 45


def test_the_full_basis_and_refined_solves_match_the_exact_scores(found):
    assert found["full basis"] >= 0.999
    assert found["refined"] >= 0.999
    assert found["refined: mean steps"] < 5  # the directions of other queries help


def test_the_complement_and_its_mean_eigenvalue_each_bring_scores_closer(found):
    assert found["no complement"] < 0.75
    assert found["damping alone"] >= 0.80
    assert found["mean eigenvalue"] >= 0.90
    assert found["mean eigenvalue"] > found["damping alone"] + 0.03
    assert found["as gradients see it"] >= 0.95
