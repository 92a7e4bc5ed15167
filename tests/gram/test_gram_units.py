"""The Gram route on losses in other units: gradients of any size give the same scores."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from distinf.errors import InputError
from distinf.gram import gradients
from distinf.gram.configurations import all_scores
from tests.gram.test_gram_route import scored, session_of
from tests.support.words_task import Cell, WordsSettings, cross_entropy

SQUARED = ("tracin", "ekfac")  # in the loss's unit squared: ekfac's factors are of probabilities
SMALL, LARGE = 2.0**-90, 2.0**66  # powers of two, so that no digit of a gradient changes


@dataclass(frozen=True)
class UnitSettings(WordsSettings):
    """units: what the losses of the rows are multiplied by, in turn."""

    units: tuple[float, ...] = (1.0,)


class Unitary(Cell):
    def __init__(self, settings: UnitSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.losses = {"cross-entropy": lambda m, b: cross_entropy(m, b) * b["unit"]}

    def batch(self, split, ids):
        units = np.asarray(self.settings.units)
        return {**super().batch(split, ids), "unit": torch.from_numpy(units[ids % len(units)])}


def task(settings: UnitSettings, seed: int) -> Unitary:
    return Unitary(settings, seed)


def session_in(folder, units):
    settings = {"double": True, "rows": 26, "queries": 6, "units": units}
    return session_of(folder, task=f"{__name__}:task", settings=settings)


def scores_in(folder, units):
    session = scored(session_in(folder, units))
    return all_scores(session, next(iter(session.outline.cells.values())))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    return scores_in(tmp_path_factory.mktemp("units") / "run", [1.0])


def agree(got, wanted, how):
    if how == "mean":  # copies of rows lie elsewhere in memory, and products round as they lie
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6 * abs(wanted).max())
    else:
        assert np.abs(got - wanted).mean() <= 0.02 * abs(wanted).mean()


@pytest.mark.parametrize("unit", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_the_unit_of_the_loss_changes_no_score_but_dot_products(ordinary, tmp_path, unit):
    found = scores_in(tmp_path / "run", [unit])
    for (estimator, group, how), wanted in ordinary.items():
        factor = unit**2 if estimator.startswith(SQUARED) and how == "mean" else 1.0
        got = found[estimator, group, how] / factor
        agree(got, wanted, how)


def test_cosines_of_small_rows_are_not_lost_beside_large_ones(ordinary, tmp_path):
    found = scores_in(tmp_path / "run", [SMALL, 1.0, LARGE])
    for (estimator, group, how), wanted in ordinary.items():
        assert np.isfinite(found[estimator, group, how]).all()
        if estimator == "cosine":
            agree(found[estimator, group, how], wanted, how)


def test_rows_without_any_gradient_are_not_ranked(tmp_path):
    with pytest.raises(InputError, match=r"every train row of cell .* is exactly zero"):
        scores_in(tmp_path / "run", [0.0])


def test_complex_gradients_are_not_stored():
    with pytest.raises(InputError, match="complex"):
        gradients.as_stored(torch.ones(2, 3, dtype=torch.complex64), "float32")
