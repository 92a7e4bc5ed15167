"""Eight times more training slots: what do generation and scoring cost, and how much memory?

    python -m tests.benchmarks.bench_scale [--slots 1200] [--times 8] [--repeats 3]
    pytest -m bench -s tests/benchmarks/bench_scale.py

Each stage runs in a fresh process that is driver and worker at once, one torch thread; the split is
too large for its cache, as at full size. The target is 8.3 times the time, at flat peak memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

TARGET_RATIO = 8.3
FLAT = 1.05  # of a peak: what the same process differs by from run to run is about 2 %
STAGES = {"generation": ("data",), "scoring": ("gradients", "scores")}
ORDER = ("data", "train", "evaluate", "curvature", "queries", "gradients", "scores")
ROOT = Path(__file__).parents[2]

RUN: dict[str, Any] = {
    "task": "receiver",
    "runtime": {"kind": "local"},
    "settings": {
        "scenario": {
            "prbs": 4,
            "snr_db": [0, 20],
            "train_models": ["TDL-B", "TDL-C", "TDL-D"],
            "evaluation_models": ["TDL-A", "TDL-E"],
            "dmrs_types": [1],
            "evaluation_slots": 96,
            "frames_per_unit": 10,
        },
        "model": {"widths": [16, 32, 32, 16]},
    },
    "data": {"cache_mb": 0},
    "train": {"steps": 0},
    "targets": {"count": 3, "min_reference": 1e-3},
    "curvature": {"steps": 10, "keep": 10, "samples": 48, "probes": 2},
    "gradients": {"rows_per_unit": 240, "chunk": 16},
    "scores": {"damping": 1.0, "negative": "drop"},
}


def stage_alone(config_file: str, stage: str) -> dict[str, float]:
    """Carry one stage out in this process -> wall and CPU seconds, and peak resident MiB."""
    import torch

    from distinf.config import load
    from distinf.engine.run import open_session
    from distinf.runtime import open_runtime

    torch.set_num_threads(1)
    config = load(config_file)
    session = open_session(config)
    runtime = open_runtime(config.runtime)
    (found_stage,) = (each for each in session.recipe.working if stage == each.name)
    wall, cpu = time.perf_counter(), time.process_time()
    found_stage.run(session, runtime)
    found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kb = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return {**found, "peak_mib": int(peak_kb) / 1024}


def measure(slots: int, folder: Path) -> dict[str, dict[str, float]]:
    """Stage -> what it took, each in a process of its own."""
    scenario = {**RUN["settings"]["scenario"], "train_slots": slots}
    settings = {**RUN["settings"], "scenario": scenario}
    config = folder / f"{slots}.yaml"
    config.write_text(yaml.safe_dump({**RUN, "settings": settings, "out": str(folder / "run")}))
    found = {}
    for stage in ORDER:
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.bench_scale"]
        done = subprocess.run(
            [*command, "--config", str(config), "--stage", stage],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{stage}: {done.stderr[-2000:]}")
        found[stage] = json.loads(done.stdout.splitlines()[-1])
    return found


def totals(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What was asked about: seconds added up over its stages, the largest peak."""
    return {
        name: {
            "wall_s": sum(found[stage]["wall_s"] for stage in stages),
            "cpu_s": sum(found[stage]["cpu_s"] for stage in stages),
            "peak_mib": max(found[stage]["peak_mib"] for stage in stages),
        }
        for name, stages in STAGES.items()
    }


def compare(slots: int, times: int, repeats: int) -> dict[str, dict[str, float]]:
    """The fastest of `repeats`, taken in turn, of `times` as many slots over that of `slots`."""
    runs: dict[int, list[dict[str, dict[str, float]]]] = {slots: [], slots * times: []}
    for _ in range(repeats):
        for count, found in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(totals(measure(count, Path(folder))))
    ratios: dict[str, dict[str, float]] = {}
    for name in STAGES:
        ratios[name] = {}
        for key in ("wall_s", "cpu_s", "peak_mib"):
            few, many = (min(run[name][key] for run in runs[count]) for count in runs)
            ratios[name][key] = many / few
            print(f"{name:10} {key:8} {few:8.2f} {many:8.2f}  ratio {many / few:.3f}", flush=True)
    return ratios


@pytest.mark.bench
@pytest.mark.timeout(1_800)
def test_eight_times_more_slots_cost_eight_times_the_time_and_no_more_memory():
    pytest.importorskip("sionna.phy", reason="needs distinf[wireless]")
    for found in compare(1_200, 8, 2).values():
        assert found["wall_s"] <= TARGET_RATIO
        assert found["peak_mib"] <= FLAT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=1_200)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", help="with --stage: one stage of this run, as JSON")
    parser.add_argument("--stage", choices=ORDER)
    chosen = parser.parse_args()
    if chosen.config:
        print(json.dumps(stage_alone(chosen.config, chosen.stage)))
    else:
        compare(chosen.slots, chosen.times, chosen.repeats)


if __name__ == "__main__":
    main()
