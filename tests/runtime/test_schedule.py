"""How busy a run's scheduling code keeps 64 workers: the code itself, its workers simulated."""

import pytest

from distinf.runtime import Unit
from distinf.runtime.units import ending_together

simulation = pytest.importorskip("tests.benchmarks.bench_schedule")


@pytest.mark.parametrize("durations", [simulation.recorded(6_000), [0.2] * 20_000], ids=len)
def test_64_workers_are_busy_and_the_driver_is_no_ceiling(durations):
    share, _, took = simulation.simulated(durations, 64)
    assert 0.95 <= share <= 1.0
    assert took / len(durations) < 1e-3


def test_the_last_units_are_the_longest_first_and_the_others_in_order():
    units = [Unit("s", "key", k) for k in range(8)]
    assert ending_together(units, lambda unit: unit.start) == [*units[:6], units[7], units[6]]
    assert ending_together(units[:3], lambda unit: unit.start) == units[:3]
