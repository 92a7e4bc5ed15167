"""Elements' shares of influence: exact against autograd, complete, and about the right rows."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.capture import flat_gradients
from distinf.numerics.elements import element_shares
from distinf.numerics.parameters import Layout
from distinf.runtime import RuntimeSettings, open_runtime
from distinf.spectral import attribution, evaluate, queries, scores, solves, spectra, train
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.session import Session
from distinf.studies.receiver import ReceiverSettings, losses, task
from distinf.studies.receiver.deeprx import DeepRxConfig
from distinf.studies.receiver.scenario import ScenarioConfig
from distinf.tasks.tensor_task import TensorTask
from tests.support.partial import points_config, run_until

SMALL = {
    "task": "tests.spectral.test_attribution:grids",
    "train": {"steps": 6, "batch_size": 12, "lr": 0.02, "checkpoint_every": 6},
    "curvature": {"steps": 6, "keep": 4, "samples": 24, "probes": 1, "shards": 2, "refine": 1},
    "gradients": {"chunk": 2, "method": "vmap"},
    "scores": {"damping": 0.5, "negative": "keep"},
    "actions": {"loss": "worst", "pool": 12},
    "attribution": {"rows": 3, "targets": 9},
}


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 3, 4, generator=generator)
    noise = 0.3 * torch.randn(count, 3, 4, generator=generator)
    mask = torch.rand(count, 3, 4, generator=generator) < 0.75
    return {"x": x, "y": x[:, 0] * x[:, 1] + noise, "mask": mask}


def parts(model, batch):
    """Each element's part of the mean squared error over the elements that the mask keeps."""
    errors = (model(batch["x"])[:, 0] - batch["y"]).square() / batch["mask"].sum((1, 2), True)
    return torch.where(batch["mask"], errors, torch.nan)


def error(model, batch):
    return parts(model, batch).nansum((1, 2))


def worst(model, batch):
    """A query loss that has no parts: attribution needs those of the training loss only."""
    return parts(model, batch).nan_to_num(0).amax((1, 2))


def grids(settings: dict, seed: int):
    made = TensorTask(
        model=lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 1, 1)
        ),
        data={"train": split(48, seed + 1), "evaluation": split(24, seed + 2)},
        losses={"error": error, "worst": worst},
        seed=seed,
    )
    made.parts = parts
    return made


def whole(settings: dict, seed: int):
    """A task that does not say what its loss is a sum of."""
    made = grids(settings, seed)
    del made.parts
    return made


def halved(settings: dict, seed: int):
    """A task whose parts are not its training loss."""
    made = grids(settings, seed)
    made.parts = lambda model, batch: parts(model, batch) / 2
    return made


def planned(tmp_path, **changes):
    """A session that nothing was computed for."""
    config = points_config(tmp_path / "run", **{**SMALL, **changes})
    return Session(config.context(str(config.out)), torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run up to the scores, and this stage; its first target's solve is refined."""
    out = tmp_path_factory.mktemp("runs") / "grids"
    session = run_until("scores", points_config(out, **SMALL))
    attribution.check(session)
    assert not attribution.is_done(session)
    runtime = open_runtime(RuntimeSettings(kind="local"))
    try:
        attribution.run(session, runtime)
    finally:
        runtime.close()
    assert attribution.is_done(session)
    return session


def directions(session):
    """fp64 [T, P]: the refined solve for the first target, the Ritz pairs' inverse for the rest."""
    pairs, spectrum = stored_pairs(session), spectra.damped_spectrum(session)
    vectors_KP = pairs.vectors.double()
    dim = vectors_KP.shape[1]
    project_PP = vectors_KP.T @ vectors_KP
    inverse_PP = vectors_KP.T @ torch.diag(1 / (pairs.values + 0.5)) @ vectors_KP
    inverse_PP += (torch.eye(dim) - project_PP) / (spectrum.complement + 0.5)
    found_TP = queries.query_gradients(session)["worst"].double() @ inverse_PP
    solved = solves.converged_solutions(session)[(0, "worst")]
    found_TP[0] = torch.from_numpy(solved).double()
    return found_TP


def test_each_part_is_the_elements_own_gradient_along_the_direction(finished):
    model = train.trained_model(finished).double()
    layout = Layout.of(model)
    names = dict(model.named_parameters())
    targets = evaluate.chosen_targets(finished).ids.tolist()
    directions_TP = directions(finished)
    found = attribution.attributions(finished)
    assert {a.target for a in found} == set(targets)
    for one in found:
        batch = finished.batch("train", np.array([one.id]))
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        values = parts(model, batch)[0]
        expected = np.full((3, 4), np.nan)
        for s, f in torch.nonzero(batch["mask"][0]).tolist():
            grads = torch.autograd.grad(
                values[s, f], [names[n] for n in layout.names], retain_graph=True
            )
            grad_P = torch.cat([g.reshape(-1) for g in grads])
            expected[s, f] = grad_P @ directions_TP[targets.index(one.target)]
        np.testing.assert_allclose(one.parts_SF, expected, atol=1e-4 * np.nanmax(np.abs(expected)))


def test_parts_sum_to_the_classic_score_of_the_row(finished):
    classic_TN = scores.stored_scores(finished, "worst", "classic")
    targets = evaluate.chosen_targets(finished).ids.tolist()
    for one in attribution.attributions(finished):
        assert one.score == classic_TN[targets.index(one.target), one.id]
        scale = np.nansum(np.abs(one.parts_SF))
        assert abs(np.nansum(one.parts_SF) - one.score) < 1e-5 * scale


def test_rows_are_those_that_the_headline_ranks_first_and_last(finished):
    headline_TN = scores.stored_scores(finished, "worst", "ell-relative")
    for rank, target in enumerate(evaluate.chosen_targets(finished).ids.tolist()):
        found = [a for a in attribution.attributions(finished) if a.target == target]
        order = np.argsort(-headline_TN[rank], kind="stable")
        assert [a.rank for a in found] == [1, 2, 3, -1, -2, -3]
        assert [a.id for a in found] == [*order[:3], *order[::-1][:3]]


def test_the_shares_ask_for_a_refined_solve_where_there_is_one(finished):
    assert list(solves.converged_solutions(finished)) == [(0, "error"), (0, "worst")]
    plain = stored_pairs(finished).vectors.shape[0]
    assert plain == 4  # of 85: the pairs alone are another direction
    ritz = attribution.damped_inverse(
        queries.query_gradients(finished)["worst"][0],
        stored_pairs(finished).vectors,
        spectra.damped_spectrum(finished),
    )
    used = attribution._direction(finished, 0)
    assert float((used - ritz).norm() / ritz.norm()) > 1e-3


def test_more_targets_keep_the_units_that_are_done(finished, tmp_path):
    one = planned(tmp_path, attribution={"rows": 3, "targets": 1})
    assert len(attribution.units(one.outline)) == 1
    first = attribution.units(one.outline)[0][0].id
    assert first in {unit.id for unit, _ in attribution.units(finished.outline)}
    other = planned(tmp_path, attribution={"rows": 2, "targets": 1})
    assert attribution.units(other.outline)[0][0].id != first


def test_nothing_is_asked_of_a_task_without_parts_unless_rows_are(tmp_path):
    session = planned(tmp_path, task="tests.spectral.test_attribution:whole", attribution={})
    attribution.check(session)
    assert attribution.units(session.outline) == []
    assert attribution.is_done(session)
    assert attribution.attributions(session) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "tests.spectral.test_attribution:whole"}, r"has no parts\(model, batch\)"),
        (
            {"task": "tests.spectral.test_attribution:halved"},
            r"row 0 sum to .* its loss 'error' is",
        ),
        ({"attribution": {"rows": 25}}, r"more than the 48 rows that are scored"),
    ],
)
def test_what_cannot_be_attributed_is_refused_before_any_work(changes, message, tmp_path):
    session = planned(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        attribution.check(session)
    assert not (tmp_path / "run").exists()


# -- the receiver's resource elements ------------------------------------------------------


def receiver(**settings):
    """A small receiver task, its network, and slots made up here (no Sionna)."""
    scenario = ScenarioConfig(prbs=2, train_slots=96, evaluation_slots=72, frames_per_unit=2)
    made = task(ReceiverSettings(scenario, DeepRxConfig(widths=(4, 6, 4)), **settings), 0)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "inputs": torch.randn(3, 10, 14, 24, generator=generator),
        "bits": torch.randint(0, 2, (3, 4, 14, 24), generator=generator),
        "mask": torch.ones(3, 14, 24, dtype=torch.bool),
        "snr_db": torch.tensor([-3.0, 5.0, 20.0]),
    }
    batch["mask"][:, 2] = False
    batch["mask"][1, 11] = False
    model = made.model()
    model(batch["inputs"])
    return made, model.eval(), batch


@pytest.mark.parametrize("weight", ["log2snr", "none"])
@pytest.mark.parametrize("units", ["nats", "bits"])
def test_a_slots_parts_sum_to_its_loss_and_pilots_have_none(weight, units):
    made, model, batch = receiver(loss_weight=weight, loss_units=units)
    found = made.parts(model, batch)
    assert torch.equal(torch.isnan(found), ~batch["mask"])
    loss = made.losses["bce"](model, batch)
    torch.testing.assert_close(found.nansum((1, 2)), loss, rtol=1e-5, atol=0)
    assert isinstance(made.losses["bce"], losses.CapacityBce)


def test_a_slots_shares_sum_to_its_gradient_along_the_direction():
    made, model, batch = receiver()
    model = copy.deepcopy(model).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    layout = Layout.of(model)
    direction_P = torch.randn(layout.size, dtype=torch.float64)
    shares = element_shares(model, made.parts, batch, layout, direction_P)
    grads_NP = flat_gradients(model, made.losses["bce"], batch, layout)
    torch.testing.assert_close(shares.nansum((1, 2)), grads_NP @ direction_P)
