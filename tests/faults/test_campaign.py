"""The campaign in short, in process; -m slow has each kind once, and the long form is a command."""

import pytest

from distinf.errors import CorruptionError
from tests.faults import kinds
from tests.faults.campaign import damaged, row, undisturbed
from tests.faults.kinds import DAMAGES, FAULTS
from tests.faults.trials import results, trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
SHORT = (
    "driver: SIGKILL in a stage",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "driver: SIGKILL three times",
            "driver: SIGTERM",
            "folder moved away",
            "clock set back by an hour",
        )
    ),
)
COMMON = {kinds.bit_of_an_array, kinds.record_deleted, kinds.table_altered}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed("in process", tmp_path_factory.mktemp("faults") / "whole")


@pytest.mark.parametrize("name", SHORT)
def test_a_disturbed_run_ends_in_the_same_bits(name, whole, tmp_path):
    _, fault = FAULTS[name]
    found = trial(fault, "in process", 7, tmp_path / "trial", results(whole.out))
    assert found.same, found
    assert name in row(name, "in process", [found])


@pytest.mark.parametrize(
    "damage",
    [pytest.param(d, marks=[pytest.mark.slow] if d not in COMMON else []) for d in DAMAGES],
)
def test_damage_is_found_and_made_again(damage, whole, tmp_path):
    found = damaged(damage, whole, 7, tmp_path / "damaged", results(whole.out))
    assert found.same, found
    assert found.codes == (CorruptionError.exit_code, 0)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_outlives_its_workers(whole, tmp_path):
    _, fault = FAULTS["all workers: SIGKILL"]
    assert trial(fault, "Ray", 7, tmp_path / "trial", results(whole.out)).same
