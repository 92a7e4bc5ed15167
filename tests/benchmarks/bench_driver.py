"""What handing out units costs their driver: processor time of its process, and of the ledger.

python -m tests.benchmarks.bench_driver [--units 20000] [--workers 2] [--committed 200000]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch

from distinf.digest import sha256
from distinf.runtime import Agenda, Ledger, Part, RuntimeSettings, Unit, Work, open_runtime
from distinf.runtime.ledger import SEGMENT, SEGMENT_RECORDS
from distinf.runtime.records import seal
from distinf.store import open_root

MODULE = "tests.benchmarks.bench_driver"
FILES = ("zarr.json", "c/0")
MEASURED = """
print(found, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"""
STATUS = (
    """
import resource, sys, time
from distinf.engine.standing import status_of
from distinf.store import open_root
found = status_of(sys.argv[1], open_root(sys.argv[1])).stages[0].done"""
    + MEASURED
)
SCAN = (
    """
import resource, sys, time
from distinf.runtime import Ledger
from distinf.store import open_root
found = len(Ledger(open_root(sys.argv[1]), "bench").committed_ids())"""
    + MEASURED
)


def prepare(context: Mapping[str, Any], device: torch.device) -> Ledger:
    return Ledger(open_root(context["root"]), "bench")


def commit(ledger: Ledger, unit: Unit, attempt: str) -> dict[str, Any]:
    """A unit of nothing but its record."""
    return ledger.commit(unit, 1, {"attempt_name": attempt})


def records(units: list[Unit]) -> list[dict[str, Any]]:
    """As a stage of two arrays commits them."""
    now, found = time.time(), []
    for k, unit in enumerate(units):
        group = f"{unit.stage}.zarr/{unit.id}/1-{k:08x}"
        files = {f"{name}/{f}": sha256(f"{name}{k}".encode()) for name in "ab" for f in FILES}
        content = {"attempt": 1, "committed": now + 0.1 * k, "summary": {"rows": 10}}
        manifest = {"group": group, "files": files, "bytes": 4096}
        found.append({"unit": unit.id, **unit.as_json(), **content, "manifest": manifest})
    return found


def of_many(count: int) -> None:
    """Reads a run that has `count` committed units, as a resumed driver and as `status` do."""
    units = [Unit("bench", "b", k, k + 1, {"split": "train"}) for k in range(count)]
    with tempfile.TemporaryDirectory() as root:
        blobs = open_root(root)
        for number, at in enumerate(range(0, count, SEGMENT_RECORDS), start=1):
            mine = records(units[at : at + SEGMENT_RECORDS])
            data = seal({"stage": "bench", "number": number, "records": mine})
            blobs.put(f"ledger/bench/{SEGMENT}{sha256(data)[:20]}.json", data)
        agenda = Agenda(blobs)
        agenda.begin("task: mine:task", [Part("bench", "bench", count, "a bench")])
        agenda.know(0, {unit.id for unit in units})
        del units
        for what, code in {"status": STATUS, "resume scan": SCAN}.items():
            began = time.perf_counter()
            made = subprocess.run(
                [sys.executable, "-c", code, root], check=True, capture_output=True, text=True
            )
            seconds, found = time.perf_counter() - began, made.stdout.split()
            print(
                f"{what} of {found[0]} of {count} committed units: {float(found[1]):.2f} s of "
                f"processor, {seconds:.2f} s in all with the start of Python, {found[2]} MB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--committed", type=int, default=200_000)
    args = parser.parse_args()
    of_many(args.committed)
    if args.units:
        handed_out(args.units, args.workers)


def handed_out(count: int, workers: int) -> None:
    runtime = open_runtime(RuntimeSettings(workers=workers, dashboard=False))
    context = {"settings": {f"key{k}": k for k in range(300)}}  # as long as a run's configuration
    with tempfile.TemporaryDirectory() as root:
        work = Work(f"{MODULE}:commit", f"{MODULE}:prepare", {"root": root, **context})
        ledger = Ledger(open_root(root), "bench")
        runtime.pool(work, [Unit("bench", "warm", k) for k in range(workers)], ledger)
        units = [Unit("bench", "b", k, k + 1, {"split": "train"}) for k in range(count)]
        began, used = time.perf_counter(), time.process_time()
        runtime.pool(work, units, ledger)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        began = time.process_time()
        done = Ledger(open_root(root), "bench").read(units)
        scan = time.process_time() - began
    runtime.close()
    assert len(done) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} units on {workers} workers: {1e3 * used / count:.2f} ms of the "
        f"driver's processor and {1e3 * seconds / count:.2f} ms in all a unit; the ledger "
        f"read in {scan:.2f} s of processor; driver at most {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
