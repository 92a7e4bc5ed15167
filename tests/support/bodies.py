"""Scripted bodies for runtime tests: they count their calls on disk and fail as told."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distinf.errors import InputError
from distinf.microbatch import MICROBATCHES, rows_at_once
from distinf.runtime import Ledger, Unit, Work
from distinf.runtime.activity import COLLECTIVE, HERE
from distinf.store import open_root, write_group


def prepare(context: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    blobs = open_root(context["root"])
    calls = Path(context["root"], "calls")
    calls.mkdir(parents=True, exist_ok=True)
    (calls / f"prepare-{os.getpid()}-{time.time_ns()}").touch()
    return {"blobs": blobs, "calls": calls, "script": context.get("script", {}), "device": device}


def work(root: str, body: str, **script: Any) -> Work:
    """`script`: call number of a unit or rank -> what it does."""
    return Work(
        f"tests.support.bodies:{body}",
        "tests.support.bodies:prepare",
        {"root": root, "script": script},
    )


def calls(root: str, name: str) -> int:
    return len(list(Path(root, "calls").glob(f"{name}-call-*")))


def _count(state: Mapping[str, Any], name: str) -> int:
    """This call's number, counting from 1, over all processes."""
    number = 1
    while True:
        try:
            (state["calls"] / f"{name}-call-{number}").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def _act(action: str | None) -> None:
    if action == "raise":
        raise RuntimeError(f"scripted failure at {time.time_ns()}")  # never twice the same
    if action == "fail":
        raise RuntimeError("scripted failure")
    if action == "memory":
        raise MemoryError("scripted failure")
    if action == "exit":
        raise SystemExit(0)
    if action == "refuse":
        raise InputError("scripted bad input; change the script")
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if action == "hang":  # in a sum that none leaves
        with HERE.doing(COLLECTIVE):
            time.sleep(1_000)
    if action == "work":  # for long, and saying so
        for _ in range(30):
            time.sleep(0.5)
            HERE.report()
    if action and action.startswith("sleep"):
        time.sleep(float(action.removeprefix("sleep")))


def greedy(state: Mapping[str, Any], unit: Unit, attempt: str) -> dict[str, Any]:
    """In the control group that the script names, takes 10 MiB for each row of a batch of 64, and
    commits how many rows it took at once."""
    Path(state["script"]["group"], "cgroup.procs").write_text(str(os.getpid()))
    rows = rows_at_once("greedy.rows", 64)
    _count(state, f"row{unit.start}")
    held = [bytearray(b"1") * (10 << 20) for _ in range(rows)]
    content = {"rows": len(held), "lowered": MICROBATCHES.lowered}
    return Ledger(state["blobs"], unit.stage).commit(unit, 1, content)


def square(state: Mapping[str, Any], unit: Unit, attempt: str) -> dict[str, Any]:
    """Commits start squared; acts by the script of its row and call before or after."""
    number = _count(state, f"row{unit.start}")
    script = state["script"].get(str(unit.start), {})
    _act(script.get(f"before{number}"))
    value = torch.tensor([float(unit.start) ** 2]).numpy()
    manifest = write_group(state["blobs"], f"square.zarr/{unit.id}/{attempt}", {"value": value})
    content = {"manifest": manifest, "node": Path.cwd().name}
    content |= HERE.spent("square")
    record = Ledger(state["blobs"], "square").commit(unit, 1, content)
    _act(script.get(f"after{number}"))
    return record


def ordered_mean(state: Mapping[str, Any], collective: Any, attempt: str) -> list[float]:
    """A gang body: sums fixed shards in order; may die on a rank at its nth start."""
    number = _count(state, f"rank{collective.rank}")
    parts = []
    for shard in collective.owned(8):
        generator = torch.Generator().manual_seed(shard)
        parts.append(torch.randn(5, generator=generator) * 10.0 ** (shard - 4))
    local = torch.stack(parts) if parts else torch.zeros(0, 5)
    _act(state["script"].get(str(collective.rank), {}).get(f"before{number}"))
    total = collective.ordered_sum(local)
    gathered = collective.all_gather(torch.full((collective.rank + 1,), float(collective.rank)))
    reduced = collective.all_reduce(torch.ones(1))
    collective.barrier()
    return [*total.tolist(), float(collective.size), float(gathered.sum()), float(reduced)]


def crowded_gang(state: Mapping[str, Any], collective: Any, attempt: str) -> list[int]:
    """A gang body whose last rank holds two of 32 rows -> the rows that each rank took at once."""
    _count(state, f"rank{collective.rank}")
    rows = rows_at_once("gang.rows", 32)
    if collective.rank == collective.size - 1 and rows > state["script"]["holds"]:
        raise MemoryError("scripted failure")
    return [int(n) for n in collective.all_gather(torch.tensor([float(rows)]))]


def shared_out(state: Mapping[str, Any], collective: Any, attempt: str) -> int:
    """A gang body: its share of the units "shared_out" 0 to 5, each committed with who was at it
    and when; the gang that has unit 0 may die at its nth start."""
    ledger = Ledger(state["blobs"], "shared_out")
    wanted = [Unit("shared_out", "key", i, i + 1) for i in range(6)]
    for unit in wanted:
        if collective.share is None or unit.id in collective.share:
            began = time.time()
            time.sleep(state["script"].get("seconds", 0.0))
            if collective.rank == 1 and unit.start == 0:
                _act(state["script"].get("0", {}).get(f"before{_count(state, 'gang0')}"))
            ranks = collective.all_gather(torch.tensor([float(os.getpid())])).tolist()
            if collective.rank == 0:
                about = {"ranks": ranks, "began": began, "ended": time.time()}
                ledger.commit(unit, 1, about)
    collective.barrier()
    return collective.size


def shared_records(runtime: Any, root: str, ranks: int, **script) -> list[dict]:
    """The records of units 0 to 5, which gangs of so many ranks shared."""
    wanted = [Unit("shared_out", "key", i, i + 1) for i in range(6)]
    ledger = Ledger(open_root(root), "shared_out")
    runtime.gang(work(root, "shared_out", **script), ranks, ledger, wanted)
    runtime.gang(work(root, "shared_out", **script), ranks, ledger, wanted)  # which has nothing
    records = ledger.read(wanted)
    return [records[unit.id] for unit in wanted]


def at_once(one: dict, other: dict) -> bool:
    return one["began"] < other["ended"] and other["began"] < one["ended"]


def where(state: Mapping[str, Any], unit: Unit, attempt: str) -> dict[str, Any]:
    """Commits what this worker was given, once as many workers as are to be together are here."""
    content = {
        "device": str(state["device"]),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
        "node": Path.cwd().name,
        "mode": os.environ.get("RAY_AUTH_MODE", ""),
    }
    here = state["calls"].with_name("here")
    here.mkdir(exist_ok=True)
    (here / str(os.getpid())).touch()
    until = time.monotonic() + 200
    while len([*here.iterdir()]) < state["script"].get("together", 1):
        assert time.monotonic() < until, "the other workers never came"
        time.sleep(0.05)
    return Ledger(state["blobs"], unit.stage).commit(unit, 1, content)


def visible_of_ranks(state: Mapping[str, Any], collective: Any, attempt: str) -> list[int]:
    """A gang body: the device that each rank may see, in rank order; -1: none."""
    visible = int(os.environ.get("CUDA_VISIBLE_DEVICES") or -1)
    return [int(x) for x in collective.all_gather(torch.tensor([visible]).to(state["device"]))]


def slow_gang(state: Mapping[str, Any], collective: Any, attempt: str) -> list[float]:
    """A gang body that lasts two seconds: every rank adds one, and one."""
    time.sleep(2.0)
    return [float(n) for n in collective.all_reduce(torch.ones(2))]
