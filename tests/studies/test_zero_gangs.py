"""Gangs with DeepSpeed side by side, on a cluster of their own.

A file of its own: a process has one cluster on Ray at a time.
"""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from distinf.config import resolve
from distinf.engine.run import open_session
from distinf.gram import data, train
from distinf.runtime import open_runtime
from tests.support.noisy import tiny_model, write_classes
from tests.support.runs import ROOT

WHY = "needs distinf[deepspeed], ninja and a C++ compiler"
pytestmark = [
    pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason=WHY),
]  # fmt: skip


def test_two_gangs_side_by_side_end_in_the_bits_of_one_after_the_other(tmp_path):
    found = {}
    for workers in (2, 4):
        configuration = resolve({
            "task": "noisy_labels", "out": str(tmp_path / f"{workers}"), "seeds": 3,
            "data": {"path": write_classes(tmp_path / "rows.csv", ("good", "bad"), rows=48),
                     "train_rows": 24, "query_rows": 12, "test_rows": 12},
            "model": {"name": tiny_model(tmp_path / "model", "llama"), "max_length": 12},
            "runtime": {"kind": "ray", "workers": workers, "num_cpus": 0.5, "timeout_s": 900},
            "train": {"epochs": 2, "batch_size": 8, "devices": 2,
                      "deepspeed": str(ROOT / "configs" / "deepspeed" / "zero2.json")},
        })  # fmt: skip
        session = open_session(configuration)
        cluster = open_runtime(replace(configuration.runtime, silent_s=900))
        try:
            data.run(session, cluster)
            train.run(session, cluster)
        finally:
            cluster.close()
        wanted = [unit for unit, _ in train.units(session.outline)]
        assert len(wanted) == 3
        gangs = {session.record(unit)["name"] for unit in wanted}
        found[workers] = [session.arrays(unit) for unit in wanted], len(gangs)
    for one, other in zip(found[2][0], found[4][0], strict=True):
        assert all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)
    assert (found[2][1], found[4][1]) == (1, 2)
