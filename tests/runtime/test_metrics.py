"""What Prometheus reads of a run, and what the dashboard draws of it."""

import json
import re
import time
import urllib.request

import pytest

from distinf.runtime import Ledger, RuntimeSettings, Unit, open_runtime
from distinf.runtime.ray import metrics
from distinf.store import open_root
from tests.support.bodies import work
from tests.support.runs import ROOT

PATIENCE_S = 300
DASHBOARD = ROOT / "cluster" / "grafana" / "distinf.json"
EXPORTED = {
    *(f"ray_{name}_total" for name in (metrics.DONE, metrics.FAILED, metrics.RETRIED)),
    *(f"ray_{metrics.SECONDS}_{part}" for part in ("sum", "count", "bucket")),
}


def test_the_dashboard_draws_all_that_is_told_and_nothing_else():
    drawn: set[str] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            drawn |= {*re.findall(r"\bray_\w+", target["expr"])}
    assert drawn == EXPORTED


def read_metrics() -> dict[str, float]:
    """By name and stage, summed over processes, of this machine's node as Prometheus reads it."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=60) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(ray_distinf_\w+)\{(.*)\} (\S+)$", text, re.M):
        stage = re.search(r'stage="(\w*)"', labels)
        key = f"{name} {stage[1] if stage else ''}"
        found[key] = found.get(key, 0.0) + float(value)
    return found


@pytest.mark.ray
@pytest.mark.slow  # Ray tells its metrics every ten seconds
@pytest.mark.timeout(2 * PATIENCE_S)
def test_a_nodes_metrics_port_tells_of_units_done_failed_and_retried(tmp_path):
    units = [Unit("square", "key", i, i + 1) for i in range(7)]
    ledger = Ledger(open_root(str(tmp_path)), "square")
    runtime = open_runtime(RuntimeSettings(workers=1, dashboard=False))
    expected = {
        f"ray_{metrics.DONE}_total square": 7.0,
        f"ray_{metrics.FAILED}_total square": 1.0,
        f"ray_{metrics.RETRIED}_total square": 1.0,
        f"ray_{metrics.SECONDS}_count square": 7.0,
    }
    try:
        scripted = work(str(tmp_path), "square", **{"1": {"before1": "memory"}})
        runtime.pool(scripted, units, ledger)
        until = time.monotonic() + PATIENCE_S
        while True:
            found = read_metrics()
            if expected.items() <= found.items() or time.monotonic() > until:
                break
            time.sleep(1)
    finally:
        runtime.close()
    assert expected.items() <= found.items(), found
    assert {key.split()[0] for key in found} >= EXPORTED
