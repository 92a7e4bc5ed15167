"""Which evaluation rows become targets: criteria, named rows, and what is refused."""

import numpy as np
import pytest
import torch

from distinf.errors import InputError
from distinf.spectral import actions, evaluate
from distinf.spectral.evaluate import choose_targets, eligible_rows, gap
from distinf.spectral.session import Session
from distinf.spectral.settings import TargetSettings
from distinf.studies.receiver import ReceiverSettings, task
from tests.support.partial import points_config, run_until

RECEIVER = task(ReceiverSettings(), 0)
COLUMNS = {
    "ber": np.array([0.02, 0.30, 0.010, 0.45, np.nan, 0.0005, 0.10]),
    "genie_ber": np.array([0.001, 0.20, 0.005, 0.40, 0.10, 0.0001, 0.20]),
}


def chosen(**settings):
    return choose_targets(COLUMNS, RECEIVER, TargetSettings(**settings))


def test_each_criterion_ranks_by_its_own_gap():
    assert chosen(count=9).ids.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(chosen(count=9).gaps, [19.0, 1.0, 0.5, 0.125])
    assert chosen(count=9, criterion="absolute").ids.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(
        chosen(count=9, criterion="absolute").gaps, [0.1, 0.05, 0.019, 0.005]
    )

    def h2(p):
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    expected = {row: h2(COLUMNS["ber"][row]) - h2(COLUMNS["genie_ber"][row]) for row in range(4)}
    found = chosen(count=9, criterion="capacity")
    assert found.ids.tolist() == sorted(expected, key=lambda row: -expected[row]) == [1, 0, 2, 3]
    np.testing.assert_allclose(found.gaps, [expected[row] for row in found.ids], rtol=1e-12)


@pytest.mark.parametrize("criterion", ["relative", "absolute", "capacity"])
def test_the_least_reference_holds_under_every_criterion(criterion):
    settings = {"criterion": criterion, "min_reference": 0.3}
    assert chosen(**settings).ids.tolist() == [3]
    eligible = eligible_rows(COLUMNS, RECEIVER, TargetSettings(**settings))
    assert np.flatnonzero(eligible).tolist() == [3]


def test_a_task_may_have_a_criterion_of_its_own():
    made = task(ReceiverSettings(), 0)
    made.criteria = {"ratio": lambda columns: columns["ber"] / columns["genie_ber"]}
    settings = TargetSettings(count=9, criterion="ratio")
    assert choose_targets(COLUMNS, made, settings).ids.tolist() == [0, 2, 1, 3, 6]
    made.criteria = {"ratio": lambda columns: columns["ber"].mean()}
    with pytest.raises(InputError, match=r"criterion 'ratio' gives \(\), not one gap a row"):
        choose_targets(COLUMNS, made, settings)
    made.criteria = ["ratio"]
    with pytest.raises(InputError, match="criteria is no mapping of names to functions"):
        choose_targets(COLUMNS, made, settings)


def test_without_a_reference_the_metric_is_the_gap(tmp_path):
    made = task(ReceiverSettings(), 0)
    made.reference = None
    for criterion in ("relative", "absolute"):
        np.testing.assert_array_equal(gap(COLUMNS, made, criterion), COLUMNS["ber"])


def test_of_rows_under_the_same_conditions_one_is_taken():
    frames = {"snr_db": [5.0, 5.0, 5.0, 9.0, 9.0, 1.0, 1.0]}
    rest = {name: np.ones(7) for name in ("delay_spread_ns", "doppler_hz", "model")}
    columns = COLUMNS | {name: np.array(values) for name, values in frames.items()} | rest

    def found(**settings):
        return choose_targets(columns, RECEIVER, TargetSettings(count=9, **settings))

    assert found().ids.tolist() == [0, 3]  # 2 and 1 are of the frame of 0
    assert found(per_condition=2).ids.tolist() == [0, 2, 3]
    assert found(per_condition=0).ids.tolist() == [0, 2, 1, 3]
    together = found(ids=(1, 3, 0))
    assert together.ids.tolist() == [1, 3, 0]  # named ones are taken as they are named
    assert together.conditions[0] == together.conditions[2] != together.conditions[1]
    alone = chosen(count=9)  # nothing says what they share
    assert len(set(alone.conditions.tolist())) == len(alone.ids)


def test_named_rows_are_taken_in_their_order():
    found = chosen(ids=(3, 0, 2), count=1)
    assert found.ids.tolist() == [3, 0, 2]
    np.testing.assert_allclose(found.gaps, [0.125, 19.0, 1.0])
    assert TargetSettings(ids=(3, 0, 2)).count == 3


def test_named_rows_without_a_usable_gap_are_refused():
    message = r"targets.ids: rows 4, 5, 6 are without a usable gap \(genie_ber >= 0.001 and a ber"
    with pytest.raises(InputError, match=message):
        chosen(ids=(0, 4, 5, 6))
    with pytest.raises(InputError, match=r"row 6 is without .* lower targets.min_reference$"):
        chosen(ids=(6,))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 64, 9, -1], r"rows 64, -1 are not among the evaluation rows, which are 0 to 63"),
        ([99], r"row 99 is not among"),
        ([3, 5, 3], r"row 3 is named more than once"),
    ],
)
def test_rows_that_are_not_there_are_refused_before_any_work(ids, message, tmp_path):
    config = points_config(tmp_path / "run", targets={"ids": ids})
    session = Session(config.context(str(config.out)), torch.device("cpu"))
    with pytest.raises(InputError, match=message):
        evaluate.check(session)
    assert not (tmp_path / "run").exists()


def test_a_run_on_named_rows_acts_on_those(tmp_path):
    config = points_config(tmp_path / "run", targets={"ids": [40, 7, 22]})
    session = run_until("evaluate", config)
    assert evaluate.chosen_targets(session).ids.tolist() == [40, 7, 22]
    evaluate.check(session)
    assert {unit.job["target"] for unit, _ in actions.units(session.outline)} == {0, 1, 2}
