"""The damping of a run that sets none: from its training's steps, or said to be something else."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from distinf.engine.run import open_session
from distinf.errors import InputError
from distinf.numerics.variants import spectrum
from distinf.report.spectral.terminal import summary
from distinf.spectral import curvature, gradients, solves
from distinf.spectral.damping import damping_of
from distinf.spectral.queries import query_gradients
from distinf.spectral.scores import stored_scores
from distinf.spectral.sensitivity import damping_sensitivity
from distinf.spectral.spectra import damped_spectrum
from distinf.tasks.tensor_task import TensorTask
from tests.support import blobs_task
from tests.support.partial import points_config, run_until
from tests.support.runs import run_points

RATE = {"lr": 0.25, "warmup": 0.0, "constant": 1.0}


def sgd(settings: dict, seed: int) -> TensorTask:
    made = blobs_task.task(blobs_task.Points(), seed)
    made._optimizer = partial(torch.optim.SGD, momentum=settings.get("momentum", 0.0))
    return made


def grouped(settings: dict, seed: int) -> TensorTask:
    """Decay for the first parameter only."""
    made = blobs_task.task(blobs_task.Points(), seed)

    def optimizer(parameters, lr, weight_decay):
        first, *others = parameters
        groups = [{"params": [first], "weight_decay": 0.1}, {"params": others}]
        return torch.optim.SGD(groups, lr=lr, weight_decay=0.0)

    made._optimizer = optimizer
    return made


def until_curvature(out, task="sgd", settings=None, **train):
    changes = {"task": f"tests.spectral.test_damping:{task}", "settings": settings or {}}
    config = points_config(out, **changes, train={**RATE, **train}, scores={"damping": None})
    return run_until("curvature", config)


@pytest.mark.parametrize(
    ("momentum", "decay", "expected"),
    [(0.0, 0.0, 1 / 3), (0.9, 0.0, 0.1 / 3), (0.0, 0.5, 1 / 3 + 0.5)],
)
def test_sgd_gives_one_over_the_sum_of_its_rates_and_the_decay(tmp_path, momentum, decay, expected):
    session = until_curvature(tmp_path / "run", settings={"momentum": momentum}, weight_decay=decay)
    found = damping_of(session, curvature.stored_pairs(session).values)
    assert found.value == pytest.approx(expected)
    assert "of 12 steps of SGD" in found.source
    assert ("momentum 0.9" in found.source, "decay 0.5" in found.source) == (
        momentum > 0, decay > 0,
    )  # fmt: skip
    assert damped_spectrum(session).damping == found.value


def test_a_changing_rate_is_summed_as_it_was_taken(tmp_path):
    session = until_curvature(tmp_path / "run", warmup=0.25, constant=0.5, weight_decay=0.0)
    rates = [0.25 * share for share in (1 / 3, 2 / 3, 1, 1, 1, 1)]
    rates += [0.25 * (1 - step / 12) / 0.5 for step in range(6, 12)]
    found = damping_of(session, curvature.stored_pairs(session).values)
    assert found.value == pytest.approx(1 / sum(rates))


@pytest.mark.parametrize(
    ("task", "train", "why"),
    [
        ("grouped", {}, "SGD has other momentum or weight decay for some of the parameters"),
        ("sgd", {"steps": 0}, "no step was trained here"),
    ],
)
def test_where_there_is_no_rule_the_default_that_was_taken_is_named(tmp_path, task, train, why):
    session = until_curvature(tmp_path / "run", task, **train)
    values = curvature.stored_pairs(session).values
    found = damping_of(session, values)
    assert found.value == pytest.approx(0.01 * float(values.abs().max()))
    assert found.source == f"1 % of the largest Ritz value's size: {why}"


@pytest.mark.slow
def test_the_terminal_and_the_page_name_it(tmp_path):
    session = run_points(tmp_path / "adam", scores={"damping": None})
    value = damped_spectrum(session).damping
    source = "1 % of the largest Ritz value's size: the steps of AdamW give no rule"
    assert f"damping {value:.3g}: {source}" in summary(session)
    told = json.loads(session.blobs.get("report/findings.json"))["deviations"]
    assert any(f"raised by {value:.3g} ({source})" in line for line in told)
    given = run_points(tmp_path / "given")
    assert not any(str(line).startswith("damping") for line in summary(given))


NONE_SET = {"damping": None, "negative": None}
UNSAFE = {"steps": 30, "keep": 30}


@pytest.mark.slow
def test_a_derived_damping_never_fails_after_the_curvature_and_says_what_it_did(tmp_path):
    session = run_points(tmp_path / "run", curvature=UNSAFE, scores=NONE_SET)
    values = curvature.stored_pairs(session).values
    found = damped_spectrum(session)
    assert float(values.min()) < -found.damping  # where the damping is set this is refused
    assert found.report.policy == "absolute"
    torch.testing.assert_close(found.values_K, values.abs())
    told = json.loads(session.blobs.get("report/findings.json"))["deviations"]
    said = f"{int((values < 0).sum())} were negative and count by their size"
    assert any(said in line and "absolute, since no scores.damping is set" in line for line in told)


@pytest.mark.parametrize(
    "scores", [{"damping": 1e-4, "negative": None}, {"damping": None, "negative": "refuse"}]
)
def test_what_is_refused_is_refused_before_the_probes(tmp_path, scores):
    config = points_config(tmp_path / "run", curvature=UNSAFE, scores=scores)
    with pytest.raises(InputError, match=r"Ritz values are too negative.*--accept scores.damping"):
        run_until("curvature", config)
    session = open_session(config)
    done = session.ledger("curvature").committed_ids()
    assert curvature.pairs_unit(session.outline).id in done
    assert not {unit.id for unit in curvature.seen_units(session.outline)} & done


def test_a_rule_below_what_float32_can_tell_is_raised(tmp_path):
    session = until_curvature(tmp_path / "run")
    large = torch.tensor([2e6, 1.0], dtype=torch.float64)
    found = damping_of(session, large)
    assert found.value == pytest.approx(2e-6 * 2e6)
    assert "raised to what float32 can tell from 0" in found.source
    spectrum(torch.tensor([2e6, 0.0]), found.value, dim=2, policy="absolute")  # is not refused


def test_the_ranking_at_a_tenth_and_ten_times_the_damping_is_held_against_its_own(tmp_path):
    """By scores in float64 from every row's stored coordinates, written out."""
    changes = {"curvature": {"refine": 2}, "scores": {"damping": 1.0, "complement": "mean"}}
    session = run_points(tmp_path / "run", **changes)
    pairs = curvature.stored_pairs(session)
    columns = gradients.projected(session, 0, session.outline.training_rows)
    train_NK, square_N = columns["ritz"].astype(float), columns["sqnorm"].astype(float)
    first_P = query_gradients(session)["cross-entropy"][0].double()
    query_K = (pairs.vectors.double() @ first_P).numpy()
    mean = damped_spectrum(session).complement

    def ranking(damping):
        inverse_K, outside = 1 / (abs(pairs.values.numpy()) + damping), 1 / (mean + damping)
        rest_N = columns["query.cross-entropy"][:, 0] - train_NK @ query_K
        own_N = train_NK**2 @ inverse_K + (square_N - (train_NK**2).sum(1)) * outside
        return (train_NK @ (inverse_K * query_K) + rest_N * outside) / np.sqrt(own_N)

    found = json.loads(session.blobs.get("report/sensitivity.json"))
    assert [row["factor"] for row in found] == ["λ / 10", "10 λ"]
    for row, damping in zip(found, (0.1, 10.0), strict=True):
        assert row["damping"] == pytest.approx(damping)
        told = spearmanr(ranking(damping), ranking(1.0)).statistic
        of_two = row["least"], 2 * row["spearman"] - row["least"]  # of two targets, either one
        assert min(abs(told - one) for one in of_two) < 1e-6
        assert row["least"] < 1


@pytest.mark.slow
def test_without_a_damping_there_is_no_ranking_at_a_tenth_of_it(tmp_path):
    none = {"damping": 0.0, "complement": "none", "negative": "absolute"}
    session = run_points(tmp_path / "run", scores=none)
    assert damping_sensitivity(session) == []


UNROLLED = {"damping": None, "negative": None, "filter": "unrolled"}
SGD = {"task": "tests.spectral.test_damping:sgd", "settings": {}}


def test_the_filter_of_training_by_sgd_is_in_every_score(tmp_path):
    """Written out in float64: 12 steps of 0.25, a decay of 0.1, mu as gradients see it."""
    train = {**RATE, "weight_decay": 0.1}
    session = run_points(tmp_path / "run", **SGD, train=train, scores=UNROLLED)
    pairs = curvature.stored_pairs(session)
    columns = gradients.projected(session, 0, session.outline.training_rows)
    train_NK, first_P = columns["ritz"].astype(float), query_gradients(session)["cross-entropy"][0]
    query_K = (pairs.vectors.double() @ first_P.double()).numpy()

    def filtered(theta):
        theta = abs(theta) + 0.1
        return (1 - np.exp(-3.0 * theta)) / theta

    rest_N = columns["query.cross-entropy"][:, 0] - train_NK @ query_K
    found_N = train_NK @ (filtered(pairs.values.numpy()) * query_K)
    found_N += rest_N * filtered(pairs.seen.mean(pairs.values))
    assert stored_scores(session, variant="classic")[0] == pytest.approx(found_N, rel=1e-5)
    assert not solves.solves(session)
    assert "since scores.filter is unrolled" in solves.told(session)
    told = json.loads(session.blobs.get("report/findings.json"))["deviations"]
    assert any("counts as (1 − exp(−T θ)) / θ" in line for line in told)
    assert not any("Every eigenvalue is raised" in line for line in told)
    assert "(1 − exp(−T θ)) / θ, with 1 / T" in session.blobs.get("report/index.html").decode()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "scores.filter: unrolled is what steps of SGD do to a direction, and the steps of "
             "AdamW give no rule; set scores.filter to damped, or to preconditioned"),
        ({**SGD, "train": {"steps": 0}}, "and no step was trained here"),
        ({**SGD, "curvature": {"refine": 1}}, "curvature.refine: a refined target is one of the"),
        ({**SGD, "scores": {"damping": 0.0}}, "scores.filter: unrolled takes 1 / scores.damping"),
    ],
)  # fmt: skip
def test_a_filter_that_training_has_not_is_refused_before_any_of_it(tmp_path, changes, why):
    changes = {**changes, "scores": {**UNROLLED, **changes.get("scores", {})}}
    with pytest.raises(InputError) as refused:
        run_points(tmp_path / "run", **changes)
    assert why in str(refused.value)
    assert not (tmp_path / "run/ledger/train").exists()
