"""What the commit protocol costs a run that collects gradients, and what its signs of life cost.

    python -m tests.benchmarks.bench_protocol [collecting] [life] [--units 8] [--seconds 40]

Collecting: units of per-sample gradients, projected on 40 vectors and whole, DeepRx at full size,
one torch thread. Each unit is captured once; its arrays are then stored by both ways in turn, so
that both have the same captures and the same bytes:

    protocol  Session.commit: finite, encoded, every object put durably and read back, the record
    floor     each array's bytes written to one file by `numpy.tofile`; no name, sum or sync

The overhead is (capture + protocol) / (capture + floor) - 1, by wall and by processor seconds.

Life: heartbeat and lease by what one of them takes; then a driver and its idle worker on Ray, with
heartbeat, lease and questions to the worker, and without. Processor seconds per second of wall.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from distinf.engine.heartbeat import BEAT_S, Beating
from distinf.engine.lease import RENEW_S, Lease, held
from distinf.numerics.capture import flat_gradients
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.parameters import Layout
from distinf.runtime import Ledger, Part, RuntimeSettings, Unit, Work, open_runtime
from distinf.runtime.ray import actors
from distinf.runtime.records import Record
from distinf.runtime.worker import keep_freed_memory
from distinf.store import open_root
from tests.benchmarks.bench_curvature import deeprx
from tests.support.runs import run_points, silent

DIRECTIONS, ROWS = 40, 4
Seconds = tuple[float, float]  # of wall, of this process


def timed(call: Callable[[], Any]) -> tuple[Seconds, Any]:
    wall, own = time.perf_counter(), time.process_time()
    value = call()
    return (time.perf_counter() - wall, time.process_time() - own), value


def plain_files(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """The same bytes without the protocol."""
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        values.tofile(folder / name)


def captures(whole: bool, passes: int) -> Callable[[], dict[str, np.ndarray]]:
    """One unit's arrays from `passes` batches of 4 rows: gradients as they are, or projected."""
    model, loss, batch = deeprx(ROWS)
    layout = Layout.of(model)
    directions_KP = torch.randn(DIRECTIONS, layout.size).div_(layout.size**0.5)

    def capture() -> dict[str, np.ndarray]:
        parts = []
        for _ in range(passes):
            if whole:
                grads_NP = flat_gradients(model, loss, batch, layout, method="hooks")
                parts.append((grads_NP, grads_NP.square().sum(1)))
            else:
                parts.append(projected_gradients(model, loss, batch, layout, directions_KP))
        rows_NK, sqnorm_N = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
        return {"rows": rows_NK, "sqnorm": sqnorm_N, "finite": np.isfinite(sqnorm_N)}

    return capture


def collecting(whole: bool, units: int, passes: int) -> None:
    capture = captures(whole, passes)
    capture()
    with tempfile.TemporaryDirectory() as name:
        session = run_points(Path(name, "run"))
        found = []
        for k in range(units):
            captured, arrays = timed(capture)
            unit = Unit("gradients", "bench", k * passes * ROWS, (k + 1) * passes * ROWS)
            ways: dict[str, Callable[[], Any]] = {
                "protocol": lambda unit=unit, arrays=arrays: session.commit(unit, "1-b", arrays),
                "floor": lambda k=k, arrays=arrays: plain_files(Path(name, f"plain-{k}"), arrays),
            }
            order = list(ways) if k % 2 else list(ways)[::-1]
            taken = {way: timed(ways[way])[0] for way in order}
            found.append((captured, taken["protocol"], taken["floor"]))
    kilobytes = sum(values.nbytes for values in arrays.values()) / 1e3
    shown = "whole" if whole else "projected"
    print(f"{passes * ROWS} rows, {shown}, {kilobytes:,.1f} kB; medians of {units} units")
    for kind, which in (("wall", 0), ("processor", 1)):
        captured_s, protocol_s, floor_s = (median(x[p][which] for x in found) for p in range(3))
        ratios = [(c[which] + p[which]) / (c[which] + f[which]) - 1 for c, p, f in found]
        print(
            f"{kind}: capture {captured_s:.3f} s, protocol {protocol_s * 1e3:.1f} ms, floor "
            f"{floor_s * 1e3:.2f} ms; overhead {median(ratios):.2%} (at most {max(ratios):.2%})"
        )


def processor_s(call: Callable[[], Any], times: int) -> float:
    """Median of the processor seconds of one call."""
    call()
    return median(timed(call)[0][1] for _ in range(times))


def life(seconds: float, pairs: int) -> None:
    """Shares of one core."""
    with tempfile.TemporaryDirectory() as name:
        blobs = open_root(name)
        ledger, units = Ledger(blobs, "gradients"), [Unit("gradients", "b", i) for i in range(999)]
        for unit in units:
            ledger.commit(unit, 1, {})
        beating, lease = Beating(blobs, ["gradients"]), Lease(blobs, 1)
        lease.claim()
        watch = beating.watching(silent)
        with watch(
            Part("gradients", "gradients", len(units)),
            units,
            lambda: len(Ledger(blobs, "gradients").committed_ids()),
        ):
            beat_s, renew_s = processor_s(beating._say, 50), processor_s(lease.renew, 50)
    print(
        f"heartbeat, 999 records: {beat_s * 1e3:.1f} ms every {BEAT_S:g} s, {beat_s / BEAT_S:.3%}"
    )
    print(f"lease: {renew_s * 1e3:.2f} ms every {RENEW_S:g} s, {renew_s / RENEW_S:.3%}")
    for _ in range(pairs):
        for living in (True, False):
            driver_s, worker_s = waiting(seconds, living)
            kind = "with" if living else "without"
            print(f"{kind} all: driver {driver_s / seconds:.3%}, worker {worker_s / seconds:.3%}")


def waiting(seconds: float, living: bool) -> Seconds:
    """Processor seconds of a driver and of its idle worker on Ray."""
    every_s = actors.PULSE_S
    runtime = open_runtime(RuntimeSettings(workers=1, dashboard=False))
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as signs:
        blobs = open_root(root)
        ledger = Ledger(blobs, "idle")
        module = "tests.benchmarks.bench_protocol"
        work = Work(f"{module}:idle", "tests.benchmarks.bench_runtime:prepare",
                    {"root": root, "seconds": seconds})  # fmt: skip
        try:
            runtime.pool(work, [Unit("idle", "warm", 0, 0)], ledger)
            if living:
                signs.enter_context(held(blobs))
                signs.enter_context(Beating(blobs, ["idle"]).beating())
            else:
                actors.PULSE_S = float("inf")
            unit = Unit("idle", "b", 0, 1)
            (_, driver_s), _ = timed(lambda: runtime.pool(work, [unit], ledger))
            record = ledger.get(unit)
            assert record is not None
            return driver_s, record["summary"]["processor_s"]
        finally:
            actors.PULSE_S = every_s
            runtime.close()


def idle(state: Mapping[str, Any], unit: Unit, attempt: str) -> Record:
    """Sleeps, and says what this process took meanwhile; of no rows, not at all."""
    (_, own_s), _ = timed(lambda: time.sleep(state["seconds"] * (unit.stop - unit.start)))
    return Ledger(state["blobs"], unit.stage).commit(unit, 1, {"summary": {"processor_s": own_s}})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["collecting", "life"])
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if "collecting" in options.what:
        collecting(False, options.units, options.passes)
        collecting(True, options.units, options.passes)
    if "life" in options.what:
        life(options.seconds, options.pairs)


if __name__ == "__main__":
    main()
