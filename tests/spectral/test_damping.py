"""The damping of a run that sets none: from its training's steps, or said to be something else."""

import json
from functools import partial

import pytest
import torch

from distinf.report.spectral.terminal import summary
from distinf.spectral import curvature
from distinf.spectral.damping import damping_of
from distinf.spectral.solves import damped_spectrum
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


def test_the_terminal_and_the_page_name_it(tmp_path):
    session = run_points(tmp_path / "adam", scores={"damping": None})
    value = damped_spectrum(session).damping
    source = "1 % of the largest Ritz value's size: the steps of AdamW give no rule"
    assert f"damping {value:.3g}: {source}" in summary(session)
    told = json.loads(session.blobs.get("report/findings.json"))["deviations"]
    assert any(f"raised by {value:.3g} ({source})" in line for line in told)
    given = run_points(tmp_path / "given")
    assert not any(str(line).startswith("damping") for line in summary(given))
