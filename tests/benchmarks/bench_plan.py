"""Does a run take what was planned? Plans a run, carries it out, and compares stage by stage.

    python -m tests.benchmarks.bench_plan [CONFIG] [--set key=value ...] --out NEW_FOLDER

Times are of the wall. Other programs on the machine slow down the measurement and the run, each
as they please: `share` is how much of a core a worker had, planned (while it was measured) and in
each stage (Linux's run-queue statistics), and the second ratio is that of the times at the same
share. Aim: within a factor 1.5. Bytes are compared, and the workers' peak memory.
"""

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distinf.config import load
from distinf.engine.run import reopen
from distinf.planning import Plan, plan
from distinf.spectral.session import Session
from tests.support.runs import ROOT, command, workers_of

POLL_S = 0.25
AIM = 1.5


@dataclass
class Watch:
    """What the workers of a run used, read while they live: (time, on a core, waiting for one)."""

    driver: int
    driver_peak: float = 0.0
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    peaks: dict[int, float] = field(default_factory=dict)
    _used: dict[str, tuple[float, float]] = field(default_factory=dict)  # by thread

    def poll(self) -> None:
        self.driver_peak = max(self.driver_peak, _peak(self.driver))
        for worker in workers_of(self.driver) or [self.driver]:
            for thread in Path(f"/proc/{worker}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):  # gone
                    on, waiting, _ = thread.read_text().split()
                    self._used[str(thread)] = (int(on) / 1e9, int(waiting) / 1e9)
            if peak := _peak(worker):
                self.peaks[worker] = peak
        if not self._used:
            return
        on, waiting = (sum(part) for part in zip(*self._used.values(), strict=True))
        self.samples.append((time.time(), on, waiting))

    def share(self, began: float, ended: float) -> float:
        """Of a core, while the workers had something to do between two moments."""
        inside = [s for s in self.samples if began <= s[0] <= ended] or self.samples[-1:]
        on, waiting = inside[-1][1] - inside[0][1], inside[-1][2] - inside[0][2]
        return on / (on + waiting) if on else float("nan")


def _peak(process: int) -> float:
    """Bytes of its memory at most; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024.0 * int(found[0].split()[1]) if found else 0.0


def carry_out(config: str, overrides: Sequence[str], out: str) -> tuple[float, Watch]:
    """`distinf run` in a process of its own -> its seconds, and what its workers used."""
    sets = [part for override in overrides for part in ("--set", override)]
    began = time.monotonic()
    process = subprocess.Popen(command("run", config, *sets, "--out", out), cwd=ROOT)
    watch = Watch(process.pid)
    stop = threading.Event()

    def watching() -> None:
        while not stop.wait(POLL_S):
            watch.poll()

    thread = threading.Thread(target=watching)
    thread.start()
    try:
        status = process.wait()
    finally:
        stop.set()
        thread.join()
    if status:
        sys.exit(f"the run ended with exit code {status}")
    return time.monotonic() - began, watch


def stored_bytes(session: Session) -> dict[str, float]:
    """Committed bytes by stage."""
    return {
        stage.name: sum(
            record["manifest"]["bytes"]
            for record in session.done([u for u, _ in stage.units(session.outline)]).values()
        )
        for stage in session.recipe.working
    }


def compare(planned: Plan, session: Session, watch: Watch, wall_s: float) -> None:
    """A line per stage: seconds, their ratio, shares, the ratio at the same share, bytes."""
    spent = {note["stage"]: note for note in session.times()}
    stored = stored_bytes(session)
    print(f"{'stage':<12} planned  actual  ratio   share  actual  ratio    MB planned  actual")
    total = [0.0, 0.0, 0.0]
    for stage in planned.stages:
        if stage.stage not in spent:
            continue
        note = spent[stage.stage]
        share = watch.share(note["began"], note["began"] + note["seconds"])
        same = note["seconds"] * share / planned.share if share == share else note["seconds"]
        for place, value in enumerate((stage.seconds, note["seconds"], same)):
            total[place] += value
        print(
            f"{stage.stage:<12} {stage.seconds:7.1f} {note['seconds']:7.1f} "
            f"{note['seconds'] / stage.seconds:6.2f} {planned.share:7.2f} {share:7.2f} "
            f"{same / stage.seconds:6.2f} {stage.bytes / 1e6:13.2f} "
            f"{stored.get(stage.stage, 0.0) / 1e6:7.2f}"
        )
    print(
        f"{'all':<12} {total[0]:7.1f} {total[1]:7.1f} {total[1] / total[0]:6.2f} "
        f"{'':>15} {total[2] / total[0]:6.2f}   (aim: within {AIM}; command {wall_s:.0f} s)"
    )
    peak, most = max(watch.peaks.values()), max(stage.memory for stage in planned.stages)
    print(f"peak of a worker: {most / 1e9:.2f} GB planned, {peak / 1e9:.2f} GB actual")
    driver = sum(planned.driver.values()), watch.driver_peak
    print(f"peak of the driver: {driver[0] / 1e9:.2f} GB planned, {driver[1] / 1e9:.2f} GB actual")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    parser.add_argument("--out", required=True, help="a folder that is not there yet")
    options = parser.parse_args()
    config = load(options.config, [*options.overrides, f"out={options.out}"])
    planned = plan(config)
    print("\n".join(planned.notes), flush=True)
    wall_s, watch = carry_out(options.config, options.overrides, options.out)
    compare(planned, reopen(options.out), watch, wall_s)


if __name__ == "__main__":
    main()
