"""The faults: each disturbs a run that has begun, at a moment that the seed draws."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from distinf.cli import main
from distinf.errors import Interrupted
from distinf.runtime.records import seal, unseal
from tests.faults.trials import PATIENCE_S, Fault, Run, blobs_of
from tests.support.runs import ROOT, command, workers_of

STAGES = {"train": 12, "curvature": 8, "gradients": 40, "actions": 24}  # how many units each has


def somewhere(run: Run, draw: random.Random) -> None:
    """Wait for a moment of the run: a stage, some of its units, and a few milliseconds."""
    stage = draw.choice([*STAGES])
    run.at(stage, draw.randrange(1, STAGES[stage]))
    time.sleep(draw.uniform(0, 0.3))
    run.refuse_ended()


def signalled(number: signal.Signals) -> Fault:
    """The driver gets a signal."""

    def fault(run: Run, draw: random.Random) -> float | None:
        somewhere(run, draw)
        began = time.monotonic()
        run.process.send_signal(number)
        run.ended()
        return time.monotonic() - began

    return fault


def killed_at_a_random_time(run: Run, draw: random.Random) -> float | None:
    """SIGKILL after some seconds, in whatever the driver is at, imports among it."""
    time.sleep(draw.uniform(0.5, 8 if run.route == "in process" else 20))
    run.refuse_ended()
    run.process.kill()
    return None


def killed_thrice(run: Run, draw: random.Random) -> float | None:
    """SIGKILL, and again amid two of the resumptions."""
    for _ in range(3):
        somewhere(run, draw)
        run.process.kill()
        run.ended()
        run.begin()
    return None


def frozen(run: Run, draw: random.Random) -> float | None:
    """SIGSTOP for 15 s, then SIGCONT; a second command in between is refused."""
    somewhere(run, draw)
    run.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    second = subprocess.run(
        command("run", str(run.folder / "points.yaml"), "--out", str(run.out)),
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    noticed = time.monotonic() - began
    alive = run.process.poll() is None
    time.sleep(max(0.0, 15.0 - noticed))
    run.process.send_signal(signal.SIGCONT)
    assert second.returncode == 2 or not alive or second.returncode == 0, second.stderr
    return None


def taken_over(run: Run, draw: random.Random) -> float | None:
    """SIGSTOP; as its lease names another machine, a second command takes over after 25 s. Then
    SIGCONT: the first leaves the run to the second."""
    somewhere(run, draw)
    first = run.process
    first.send_signal(signal.SIGSTOP)
    for lease in (run.out / "driver").glob("*.json"):
        lease.write_text(json.dumps({**json.loads(lease.read_text()), "machine": "another"}))
    began = time.monotonic()
    run.begin()
    run.wait(lambda: max(int(p.stem) for p in (run.out / "driver").glob("*.json")) > 1)
    noticed = time.monotonic() - began
    first.send_signal(signal.SIGCONT)
    assert first.wait(PATIENCE_S) in (0, Interrupted.exit_code), run.said
    return noticed


def full_disk(run: Run, draw: random.Random) -> float | None:
    """The run lies on a small file system that somebody else fills; then there is room again."""
    run.process.kill()
    run.ended()
    shutil.rmtree(run.out, ignore_errors=True)
    run.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", run.out], check=True)
    run.begin()
    somewhere(run, draw)
    filler = run.out / "filler"
    began = time.monotonic()
    with open(filler, "wb") as file:
        try:
            while True:
                file.write(b"0" * (1 << 20))
                file.flush()
        except OSError:
            pass
    run.ended()
    noticed = time.monotonic() - began
    filler.unlink(missing_ok=True)
    kept = run.folder / "kept"
    shutil.copytree(run.out, kept)
    subprocess.run(["umount", run.out], check=True)
    shutil.rmtree(run.out)
    kept.rename(run.out)
    return noticed


def moved_away(run: Run, draw: random.Random) -> float | None:
    """The run's folder gets another name for a while."""
    somewhere(run, draw)
    away = run.folder / "away"
    began = time.monotonic()
    run.out.rename(away)
    code = run.ended()
    noticed = time.monotonic() - began
    if run.out.exists() and code != 0:  # what was made there is no run's
        assert not (run.out / "config.yaml").exists()
        shutil.rmtree(run.out)
    if not run.out.exists():
        away.rename(run.out)
    return noticed


def unmounted(run: Run, draw: random.Random) -> float | None:
    """The run's file system goes for a while."""
    run.process.kill()
    run.ended()
    shutil.rmtree(run.out, ignore_errors=True)
    kept = run.folder / "kept"
    for folder in (run.out, kept):
        folder.mkdir()
    subprocess.run(["mount", "--bind", kept, run.out], check=True)
    run.begin()
    somewhere(run, draw)
    began = time.monotonic()
    subprocess.run(["umount", "-l", run.out], check=True)
    run.ended()
    noticed = time.monotonic() - began
    assert not (run.out / "config.yaml").exists()  # it was not begun anew
    shutil.rmtree(run.out)
    kept.rename(run.out)
    return noticed


CLOCK = """
import time
_now, _began = time.time, time.time()
time.time = lambda: _now() - (3600.0 if _now() - _began > {after} else 0.0)
"""


def clock_set_back(run: Run, draw: random.Random) -> float | None:
    """By an hour, some seconds after the start, for driver and workers."""
    run.process.kill()
    run.ended()
    shutil.rmtree(run.out, ignore_errors=True)
    site = run.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK.format(after=draw.uniform(3, 9)))
    run.environment = {"PYTHONPATH": f"{site}:{ROOT}"}
    run.begin()
    return None


def worker(number: signal.Signals, stage: str, count: int = 1) -> Fault:
    """Workers get a signal amid a stage: of a pool, of a grid, or ranks of a gang."""

    def fault(run: Run, draw: random.Random) -> float | None:
        run.at(stage, draw.randrange(1, 6))
        found = run.workers()
        said = len(run.said)
        began = time.monotonic()
        for pid in draw.sample(found, min(count, len(found))):
            os.kill(pid, number)
        if number != signal.SIGSTOP:
            return None
        if run.wait(lambda: "another one takes its work" in run.said[said:]) is None:
            return None  # the run ended first: it had no more work for that one
        return time.monotonic() - began

    return fault


def server(name: str) -> Fault:
    """A server of the run's own cluster is killed."""

    def fault(run: Run, draw: random.Random) -> float | None:
        somewhere(run, draw)
        began = time.monotonic()
        for pid in workers_of(run.process.pid, name.encode()):
            os.kill(pid, signal.SIGKILL)
        run.ended()
        return time.monotonic() - began

    return fault


# -- damage to a finished run: found by `verify`, made again by `verify --repair` -----------------


def _flip(run: Run, name: str) -> None:
    data = bytearray(blobs_of(run).get(name))
    data[len(data) // 2] ^= 1
    Path(run.out, name).write_bytes(bytes(data))


def _some(run: Run, draw: random.Random, folder: str, has: str = "") -> str:
    return draw.choice([name for name in blobs_of(run).names(folder) if has in name])


def bit_of_an_array(run: Run, draw: random.Random) -> None:
    _flip(run, _some(run, draw, draw.choice(["gradients.zarr", "train.zarr", "jobs"]), "/c/"))


def array_cut_short(run: Run, draw: random.Random) -> None:
    name = Path(run.out, _some(run, draw, "gradients.zarr", "/c/"))
    name.write_bytes(name.read_bytes()[:7])


def array_deleted(run: Run, draw: random.Random) -> None:
    blobs_of(run).delete(_some(run, draw, draw.choice(["scores.zarr", "curvature.zarr"]), "/c/"))


def group_in_anothers_place(run: Run, draw: random.Random) -> None:
    groups = sorted({n.rsplit("/", 1)[0] for n in blobs_of(run).names("gradients.zarr")})
    chunks = [g for g in groups if g.endswith("/c/0")] or groups
    one, other = draw.sample(chunks, 2)
    for name in os.listdir(run.out / one):
        if (run.out / other / name).is_file():
            shutil.copy(run.out / one / name, run.out / other / name)


def bit_of_a_record(run: Run, draw: random.Random) -> None:
    _flip(run, _some(run, draw, "ledger"))


def records_swapped(run: Run, draw: random.Random) -> None:
    one, other = draw.sample(blobs_of(run).names(f"ledger/{draw.choice([*STAGES])}"), 2)
    kept = blobs_of(run).get(one)
    shutil.copy(run.out / other, run.out / one)
    Path(run.out, other).write_bytes(kept)


def record_signed_anew(run: Run, draw: random.Random) -> None:
    name = _some(run, draw, "ledger/gradients")
    record = unseal(blobs_of(run).get(name), name)
    record["stop"] += 1
    Path(run.out, name).write_bytes(seal(record))


def ledger_of_a_stage_deleted(run: Run, draw: random.Random) -> None:
    shutil.rmtree(run.out / "ledger" / draw.choice([*STAGES, "scores", "report"]))


def record_deleted(run: Run, draw: random.Random) -> None:
    blobs_of(run).delete(_some(run, draw, "ledger"))


def group_deleted(run: Run, draw: random.Random) -> None:
    units = sorted((run.out / draw.choice(["gradients.zarr", "train.zarr", "jobs"])).iterdir())
    shutil.rmtree(draw.choice(units))


def bit_of_an_arrays_metadata(run: Run, draw: random.Random) -> None:
    _flip(run, _some(run, draw, "gradients.zarr", "/zarr.json"))


def table_deleted(run: Run, draw: random.Random) -> None:
    blobs_of(run).delete(_some(run, draw, "report"))


def table_altered(run: Run, draw: random.Random) -> None:
    _flip(run, _some(run, draw, "report"))


def weights_altered(run: Run, draw: random.Random) -> None:
    _flip(run, "model.safetensors")


def agenda_altered(run: Run, draw: random.Random) -> None:
    name = _some(run, draw, "agenda")
    if draw.random() < 0.5:
        _flip(run, name)
    else:
        blobs_of(run).delete(name)


def configuration_torn(run: Run, draw: random.Random) -> None:
    file = run.out / "config.yaml"
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data) - 1)])


DAMAGES = (
    bit_of_an_array, array_cut_short, array_deleted, group_in_anothers_place, bit_of_a_record,
    records_swapped, record_signed_anew, record_deleted, group_deleted, bit_of_an_arrays_metadata,
    ledger_of_a_stage_deleted, table_altered, table_deleted, weights_altered, agenda_altered,
    configuration_torn,
)  # fmt: skip


def found_and_repaired(run: Run) -> tuple[list[str], int]:
    """What `verify` lists, and the exit code of `verify --repair`."""
    from distinf.engine.verifying import verify

    return verify(blobs_of(run)).problems, main(["verify", "--repair", str(run.out)])


FAULTS: dict[str, tuple[tuple[str, ...], Fault]] = {
    "driver: SIGKILL in a stage": (("in process", "Ray"), signalled(signal.SIGKILL)),
    "driver: SIGKILL at any time": (("in process", "Ray"), killed_at_a_random_time),
    "driver: SIGKILL three times": (("in process", "Ray"), killed_thrice),
    "driver: SIGTERM": (("in process", "Ray"), signalled(signal.SIGTERM)),
    "driver: SIGHUP": (("in process",), signalled(signal.SIGHUP)),
    "driver: Ctrl-C": (("in process", "Ray"), signalled(signal.SIGINT)),
    "driver: stopped for 15 s, a second command meanwhile": (("in process", "Ray"), frozen),
    "driver: stopped, another machine takes over": (("in process", "Ray"), taken_over),
    "disk full": (("in process", "Ray"), full_disk),
    "folder moved away": (("in process", "Ray"), moved_away),
    "folder unmounted": (("in process",), unmounted),
    "clock set back by an hour": (("in process", "Ray"), clock_set_back),
    "rank of a gang: SIGKILL": (("Ray",), worker(signal.SIGKILL, "train")),
    "worker of a pool: SIGKILL": (("Ray",), worker(signal.SIGKILL, "gradients")),
    "worker of a grid: SIGKILL": (("Ray",), worker(signal.SIGKILL, "actions")),
    "all workers: SIGKILL": (("Ray",), worker(signal.SIGKILL, "curvature", 2)),
    "rank of a gang: SIGSTOP": (("Ray",), worker(signal.SIGSTOP, "train")),
    "worker of a pool: SIGSTOP": (("Ray",), worker(signal.SIGSTOP, "gradients")),
    "worker of a grid: SIGSTOP": (("Ray",), worker(signal.SIGSTOP, "actions")),
    "raylet: SIGKILL": (("Ray",), server("raylet")),
    "gcs: SIGKILL": (("Ray",), server("gcs_server")),
}
