"""How fast are slots generated? Two processes of one torch thread, full width, TDL and CDL mixed.

    python -m tests.benchmarks.bench_generation [--seconds 10] [--split train]
    pytest -m bench -s tests/benchmarks/bench_generation.py

The target is 1,200 slots a second with the genie-aided error rates.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from distinf.studies.receiver import link
from distinf.studies.receiver.scenario import ScenarioConfig

PROCESSES = 2
TARGET_SLOTS_PER_S = 1_200
SLOTS_PER_CALL = 240


def _generate_for(worker: int, split: str, seconds: float, begin: float) -> float:
    """Slots a second of one process, after a first call, in a window shared by all of them."""
    scenario = ScenarioConfig()
    link.generate(scenario, worker, split, 0, scenario.frame_slots)
    time.sleep(max(0.0, begin - time.time()))
    start, slots = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        link.generate(scenario, worker, split, slots, slots + SLOTS_PER_CALL)
        slots += SLOTS_PER_CALL
    return slots / (time.perf_counter() - start)


def measure(seconds: float = 10.0, split: str = "train") -> float:
    """Slots a second of all processes together."""
    begin = time.time() + 12  # importing the simulator takes seconds
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_generate_for, worker, split, seconds, begin) for worker in range(PROCESSES)
        ]
        return sum(job.result() for job in jobs)


@pytest.mark.bench
def test_generation_meets_its_target():
    pytest.importorskip("sionna.phy", reason="needs distinf[wireless]")
    rate = measure()
    print(f"\n{rate:,.0f} slots/s (target {TARGET_SLOTS_PER_S:,})")
    assert rate >= TARGET_SLOTS_PER_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--split", choices=link.SPLITS, default="train")
    chosen = parser.parse_args()
    rate = measure(chosen.seconds, chosen.split)
    print(f"{chosen.split}: {rate:,.0f} slots/s from {PROCESSES} processes")


if __name__ == "__main__":
    main()
