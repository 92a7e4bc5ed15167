"""Generation cut into hundreds of units on two workers: each is committed once, and cheaply."""

import time
from pathlib import Path

import numpy as np
import pytest

from distinf.config import resolve
from distinf.engine.run import open_session
from distinf.runtime import RuntimeSettings, open_runtime
from distinf.spectral import data
from distinf.spectral.session import Session
from tests.support.runs import same_bits

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("sionna", reason="generating slots needs distinf[wireless]")

UNITS = 320
WORKERS = 2


def tiny(out: Path) -> Session:
    """A receiver run of 316 training and 4 evaluation units, one frame each."""
    scenario = {
        "prbs": 1,
        "train_models": ["TDL-B", "TDL-C"],
        "evaluation_models": ["TDL-A"],
        "train_slots": (UNITS - 4) * 24,
        "evaluation_slots": 4 * 24,
        "frames_per_unit": 1,
    }
    settings = {"scenario": scenario, "model": {"widths": [4, 4]}}
    curvature = {"steps": 4, "keep": 2}
    raw = {"task": "receiver", "settings": settings, "curvature": curvature, "out": str(out)}
    return open_session(resolve(raw))


def test_hundreds_of_units_are_committed_once_each(tmp_path):
    session = tiny(tmp_path / "run")
    runtime = open_runtime(RuntimeSettings(workers=WORKERS, dashboard=False))
    wanted = [unit for unit, _ in data.units(session.outline)]
    assert len(wanted) == UNITS
    try:
        work, ledger = session.work("distinf.spectral.data:body"), session.ledger("data")
        runtime.pool(work, wanted[: 2 * WORKERS], ledger)  # Ray started, the simulator imported
        began, busy_s = time.perf_counter(), runtime.busy_s
        data.run(session, runtime)
        seconds, busy_s = time.perf_counter() - began, runtime.busy_s - busy_s
    finally:
        runtime.close()
    count = UNITS - 2 * WORKERS
    overhead_ms = 1e3 * (WORKERS * seconds - busy_s) / count
    print(
        f"\n{count} units on {WORKERS} workers: {1e3 * seconds / count:.1f} ms a unit, of a "
        f"worker's time {1e3 * busy_s / count:.1f} ms in the body and {overhead_ms:.1f} ms outside"
    )

    fresh = tiny(tmp_path / "run")
    records = fresh.ledger("data").read()
    assert records.keys() == {unit.id for unit in wanted}
    assert {record["attempt"] for record in records.values()} == {1}
    groups = [
        sorted(p.name for p in f.iterdir()) for f in Path(tmp_path, "run/data.zarr").iterdir()
    ]
    assert len(groups) == UNITS
    assert all(len(attempts) == 1 for attempts in groups)
    for unit in wanted[:: UNITS // 5]:
        again = fresh.task.generate(unit.job["split"], unit.start, unit.stop)
        assert same_bits(fresh.arrays(unit), dict(again))
    assert np.isfinite(overhead_ms)
