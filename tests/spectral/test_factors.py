"""EK-FAC's scores in a spectral run: the library's, and what is refused."""

import numpy as np
import pytest
import torch

import distinf
from distinf.engine.run import open_session
from distinf.errors import InputError
from distinf.numerics.ekfac import sampled_labels
from distinf.numerics.variants import VARIANTS
from distinf.spectral import evaluate, scores
from distinf.spectral.mean_product import drawn_rows
from distinf.spectral.train import trained_model
from tests.support.blobs_task import Points, loss, task
from tests.support.partial import points_config, run_until
from tests.support.runs import all_scores, merged

NAME = "tests.spectral.test_factors:telling"
ON = {"task": NAME, "scores": {"ekfac": True}, "curvature": {"samples": 200}}


def telling(settings: Points, seed: int):
    """The points task, of which the model tells the two classes' probabilities."""
    made = task(settings, seed)
    made._classes = ("left", "right")
    made._probabilities = lambda model, batch: model(batch["x"]).softmax(1)
    return made


def poisoned(settings: Points, seed: int):
    """The same with one training row whose gradient is not finite."""
    made = telling(settings, seed)
    made._data["train"]["x"][7] = float("inf")
    return made


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("telling", {}),
        ("poisoned", {"train": {"steps": 0}, "curvature": {"samples": 240}}),
    ],
)
def test_scores_are_the_librarys_over_the_rows_of_the_curvature(tmp_path, name, changes):
    """Which test_ekfac.py compares with dense algebra."""
    changes = merged(merged(ON, changes), {"task": f"tests.spectral.test_factors:{name}"})
    session = run_until("scores", points_config(tmp_path / "run", **changes))
    rows = drawn_rows(session)
    assert len(rows) == changes["curvature"]["samples"]
    if name == "poisoned":
        rows = rows[rows != 7]
    model = trained_model(session).double()

    def wide(split, ids):
        batch = session.batch(split, ids)
        return {**batch, "x": batch["x"].double()}

    def sampled(model, batch):
        logits = model(batch["x"])
        labels = sampled_labels(logits, torch.from_numpy(rows), session.seed)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    factors = distinf.ekfac(model, sampled, [wide("train", rows)])
    every = np.delete(np.arange(240), [7] if name == "poisoned" else [])
    train, query = (
        distinf.per_sample_gradients(model, loss, batch, check=False)
        for batch in (
            wide("train", every),
            wide("evaluation", evaluate.chosen_targets(session).ids),
        )
    )
    wanted = sum(distinf.influence(train, query, "ekfac", curvature=factors).values()).numpy()
    found = scores.stored_scores(session, "", "ekfac")
    np.testing.assert_allclose(found[:, every], wanted, rtol=1e-4, atol=1e-5 * abs(wanted).max())
    if name == "poisoned":
        assert np.isnan(found[:, 7]).all()
    assert set(all_scores(session)) == {
        f"cross-entropy.{variant}" for variant in (*VARIANTS, "ekfac")
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "tests.support.blobs_task:task"}, "scores.ekfac: .*does not tell its classes"),
        ({"gradients": {"method": "loop"}}, "scores.ekfac: needs gradients.method: hooks"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_runs(tmp_path, changes, said):
    config = points_config(tmp_path / "run", **merged(ON, changes))
    with pytest.raises(InputError, match=said):
        open_session(config)


def test_rows_are_not_chosen_by_scores_that_there_are_not(tmp_path):
    config = points_config(tmp_path / "run", actions={"variant": "ekfac"})
    with pytest.raises(InputError, match=r"actions\.variant: ekfac needs scores\.ekfac"):
        open_session(config)
