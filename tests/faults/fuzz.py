"""Hostile configurations, records, agendas and metadata of stores, checksums made to fit:

    python -m tests.faults.fuzz [--executions N] [--seed S] [--only WORD]

runs N of them and prints how many of each kind ended in nothing but a clean error, as a table in
Markdown. The first that does not ends the command, with what it was.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from distinf.config import resolve
from distinf.config_file import read
from distinf.engine.standing import stages_of
from distinf.engine.verifying import verify
from distinf.errors import CorruptionError, DistinfError, InputError
from distinf.printable import one_line, shortened
from distinf.runtime.records import unseal
from distinf.store import Blobs
from tests.faults.torn import Configurations, Folder
from tests.runtime import test_hostile_records
from tests.store import test_hostile_groups
from tests.support.hostile import ANYTHING, changed, signed
from tests.support.runs import POINTS, merged, run_points
from tests.test_hostile_run import only_clean_errors as of_a_whole_run

MEMORY_BYTES = 12 << 30  # of addresses: what asks for more fails
RAW = merged(
    POINTS,
    {
        "settings": {"rows": 240},
        "variations": {"other": {"targets.count": 1}},
        "actions": {"also": {"more": {"steps": 1}}, "selections": ["random", "helpful"]},
        "report": {"title": "a title"},
    },
)
Kind = Callable[[Any], None]


def configuration(data: Any) -> None:
    """A file with other values in it is taken, or refused in one line."""
    raw = data.draw(changed(RAW))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mine.yaml")
        text = json.dumps(raw) if data.draw(st.booleans()) else _yaml(raw)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        _one_line(lambda: resolve(read(str(file), out=str(Path(folder, "run"))), str(file)))


def _one_line(call: Callable[[], Any]) -> None:
    """Nothing but an InputError may be raised, which is one line on the screen."""
    said = ""
    try:
        call()
    except InputError as error:
        said = str(error)
    said = shortened(one_line(said))  # as the command line prints it
    assert "\n" not in said, said


def _yaml(raw: Any) -> str:
    try:
        return str(yaml.safe_dump(raw))
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(raw)


def overrides(data: Any) -> None:
    """As `configuration`, by --set."""
    keys = ["seed", "train.steps", "scores", "actions.also", "variations", "a"]
    override = f"{data.draw(st.sampled_from(keys))}={json.dumps(data.draw(ANYTHING))}"
    _one_line(lambda: resolve({**read("mine:task", [override]), "task": POINTS["task"]}))


class Memory(dict[str, bytes]):
    """A run's folder without the disk, for thousands of looks."""

    root = "memory"

    def get(self, key: str, most: int | None = None) -> bytes:  # type: ignore[override]
        if most is not None and len(self[key]) > most:
            raise CorruptionError(f"{key} is too large")
        return self[key]

    def size(self, key: str) -> int:
        return len(self[key])

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self if name.startswith(f"{prefix}/"))


def folder_of(blobs: Blobs) -> Memory:
    """What `status` and `verify` read of a run, but for its arrays' chunks."""
    names = [
        name
        for part in ("agenda", "handed", "ledger/scores", "ledger/report", "report", "scores.zarr")
        for name in blobs.names(part)
    ]
    return Memory({name: blobs.get(name) for name in [*names, "config.yaml", "model.safetensors"]})


def look(whole: Memory) -> Kind:
    """Status and verify of a run in which a sealed file says something else."""
    names = [n for n in whole if n.partition("/")[0] in ("agenda", "handed", "ledger")]

    def kind(data: Any) -> None:
        name = data.draw(st.sampled_from(names))
        blobs = Memory(whole)
        blobs[name] = signed(data.draw(changed(unseal(whole[name], name))))
        for looking in (stages_of, verify):
            try:
                looking(blobs)  # type: ignore[arg-type]
            except DistinfError:
                continue

    return kind


def diced(case: Callable[[random.Random], None]) -> Kind:
    """A case of dice, whose seed is drawn."""
    return lambda data: case(random.Random(data.draw(st.integers(0, 2**63))))


def kinds(folder: Path) -> dict[str, tuple[float, Kind]]:
    """By name: its share of all executions, and what it tries."""
    run = run_points(folder / "run")
    torn, whole = Configurations(folder), Folder(Path(run.blobs.root))
    return {
        "metadata of groups": (0.25, test_hostile_groups.only_clean_errors),
        "commit records and segments": (0.25, test_hostile_records.only_clean_errors),
        "configuration files": (0.1, configuration),
        "configurations of every key": (0.14, diced(torn.tree)),
        "torn text of configurations": (0.08, diced(torn.text)),
        "overrides": (0.02, overrides),
        "torn overrides": (0.05, diced(torn.override)),
        "agenda, sums and records, by status and verify": (0.09, look(folder_of(run.blobs))),
        "any file of a run, by status and verify": (0.012, diced(whole.look)),
        "the same, by what verify --repair sets aside": (0.003, diced(whole.repair)),
        "the same, by report": (0.001, diced(whole.report)),
        "whole runs, by status, verify and report": (
            0.004,
            lambda data: of_a_whole_run(run.blobs, data),
        ),
    }


def fuzz(kind: Kind, executions: int, first: int) -> int:
    """Try that many; the first failure is raised -> how many were tried."""
    count = 0

    def once(data: Any) -> None:
        nonlocal count
        count += 1
        kind(data)

    quiet = list(HealthCheck)
    tried = settings(
        max_examples=executions, deadline=None, database=None, suppress_health_check=quiet,
        phases=[Phase.generate, Phase.shrink],
    )(given(data=st.data())(once))  # fmt: skip
    seed(first)(tried)()
    return count


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", default="", help="kinds that have this in their name")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    total = 0
    print(f"seed {options.seed}\n\n| kind | executions | s |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="distinf-fuzz-") as folder:
        for name, (share, kind) in kinds(Path(folder)).items():
            if options.only not in name:
                continue
            began = time.monotonic()
            count = fuzz(kind, max(1, round(share * options.executions)), options.seed)
            print(f"| {name} | {count:,} | {time.monotonic() - began:.0f} |", flush=True)
            total += count
    print(f"| all | {total:,} | |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
