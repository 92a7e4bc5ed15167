"""CONTRIBUTING's way to add an estimator, followed; what the register says of those there are."""

from dataclasses import dataclass

import pytest
import torch

import distinf
from distinf.errors import InputError
from distinf.numerics.estimators import ESTIMATORS
from distinf.numerics.estimators.register import Estimator


@dataclass(frozen=True)
class RidgeSettings:
    """damping: lambda, > 0."""

    damping: float = 1.0

    def __post_init__(self):
        if not self.damping > 0:
            raise ValueError(f"damping={self.damping} must be > 0")


def ridge(found, settings):
    """[Q, N]: K_qt (K + lambda)^-1."""
    gram = found.gram()
    eye = torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + settings.damping * eye, found.cross_QN.T).T


ESTIMATOR = Estimator("ridge", RidgeSettings, ridge, needs="gram", linear=False)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "ridge", ESTIMATOR)


def test_an_added_estimator_is_one_of_them(added):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    query = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    expected = query @ torch.linalg.inv(train.T @ train + 0.3 * torch.eye(5).double()) @ train.T
    found = distinf.influence(train, query, "ridge", damping=0.3)
    torch.testing.assert_close(found, expected)
    of_blocks = distinf.influence({"a": train}, {"a": query}, RidgeSettings(0.3))
    torch.testing.assert_close(of_blocks["a"], expected)
    own = distinf.influence(train, train, "ridge")
    assert (own.diagonal() > 0).all()  # training on a row helps the row
    with pytest.raises(InputError, match=r"use one of tracin, .*, ridge, or"):
        distinf.influence(train, query, "rigde")


def test_one_that_takes_the_rows_themselves_is_the_librarys_alone(monkeypatch):
    def signs(train, query, settings, curvature):
        return {name: query[name].sign() @ train[name].sign().T for name in train}

    monkeypatch.setitem(ESTIMATORS, "signs", Estimator("signs", RidgeSettings, signs, "rows"))
    train, query = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[2.0, 1.0]])
    assert distinf.influence(train, query, "signs").tolist() == [[0.0, 2.0]]
    with pytest.raises(InputError, match="not finite"):
        distinf.influence(train / 0, query, "signs")


def test_without_it_it_is_not():
    with pytest.raises(InputError, match="'ridge' is unknown"):
        distinf.influence(torch.ones(1, 2), torch.ones(1, 2), "ridge")
    with pytest.raises(InputError, match="must be one of"):
        distinf.influence(torch.ones(1, 2), torch.ones(1, 2), RidgeSettings())


def test_what_the_register_says_of_those_there_are():
    for name, estimator in ESTIMATORS.items():
        assert estimator.name == name
        assert estimator.settings()  # all have defaults
    assert [n for n, e in ESTIMATORS.items() if not e.linear] == ["fisher"]
    assert {n: e.needs for n, e in ESTIMATORS.items() if e.needs != "products"} == {
        "fisher": "gram", "arnoldi": "pairs", "ekfac": "factors", "exact": "operator"
    }  # fmt: skip
