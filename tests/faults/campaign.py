"""The fault campaign by one command:

    python -m tests.faults.campaign [--trials N] [--seed S] [--only PATTERN] [--out FILE.md]

Every fault, on each route where it can be, N times; a table in Markdown of how often the run
survived with the same bits, how soon the driver noticed and how soon the run was whole, and what
the user read. Exit code 1 if any did not survive. A trial goes again by its --only and --seed.
"""

import argparse
import contextlib
import io
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.kinds import DAMAGES, FAULTS, found_and_repaired
from tests.faults.trials import RUNTIMES, Run, Trial, results, trial

HEAD = (
    "| fault | route | survived, same bits | noticed after, s: median (most) "
    "| whole after, s: median (most) | exit codes | what the user read |\n"
    "|---|---|---|---|---|---|---|"
)  # fmt: skip


def undisturbed(route: str, folder: Path) -> Run:
    """A run of that route, whole."""
    folder.mkdir(parents=True)
    run = Run(folder, route)
    run.begin()
    assert run.ended() == 0, run.said
    return run


def damaged(damage: Any, whole: Run, seed: int, folder: Path, golden: Mapping[Any, Any]) -> Trial:
    """A finished run, damaged; found by `verify`, made again by `verify --repair`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.out, folder / "run")
    run = Run(folder, whole.route)
    damage(run, random.Random(seed))
    began = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        problems, code = found_and_repaired(run)
    took = time.monotonic() - began
    same = bool(problems) and code == 0 and results(run.out) == golden
    return Trial(same, None, took, (3 if problems else 0, code), (problems or ["intact"])[0], seed)


def row(fault: str, route: str, trials: Sequence[Trial]) -> str:
    """One line of the table."""
    same = sum(each.same for each in trials)
    noticed = _seconds([each.notice_s for each in trials if each.notice_s is not None])
    whole = _seconds([each.recover_s for each in trials])
    codes = ", ".join(sorted({" ".join(map(str, each.codes)) for each in trials}))
    said = min((each.message for each in trials), key=len)
    said = said.replace("|", "/").replace("`", "'")
    shown = f"{same} of {len(trials)}"
    bold = shown if same == len(trials) else f"**{shown}**"
    return f"| {fault} | {route} | {bold} | {noticed} | {whole} | {codes} | {said[:160]} |"


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({max(values):.1f})" if values else ""


def campaign(trials: int, seed: int, only: str, say: Any = print) -> list[Trial]:
    """All trials, said as the rows of a table."""
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="distinf-faults-", ignore_cleanup_errors=True) as base:
        whole = {route: undisturbed(route, Path(base, route)) for route in RUNTIMES}
        golden = {route: results(run.out) for route, run in whole.items()}
        assert golden["in process"] == golden["Ray"]
        say(HEAD)
        for name, (routes, fault) in FAULTS.items():
            for route in routes:
                if re.search(only, f"{name}, {route}"):
                    found = [
                        trial(fault, route, seed + i, Path(base, "trial"), golden[route])
                        for i in range(trials)
                    ]
                    say(row(name, route, found))
                    done += found
        for damage in DAMAGES:
            name = f"damage: {damage.__name__.replace('_', ' ')}"
            if re.search(only, f"{name}, in process"):
                run = whole["in process"]
                found = [
                    damaged(damage, run, seed + i, Path(base, "damaged"), golden["in process"])
                    for i in range(trials)
                ]
                say(row(name, "in process", found))
                done += found
    return done


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 if a run did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name and route match")
    parser.add_argument("--out", help="a file that the table is appended to")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, flush=True)
        if options.out:
            with open(options.out, "a") as file:
                file.write(f"{line}\n")

    done = campaign(options.trials, options.seed, options.only, say)
    failed = [each for each in done if not each.same]
    for each in failed:
        print(f"did not survive: {each}", file=sys.stderr)
    print(f"{len(done) - len(failed)} of {len(done)} trials survived", file=sys.stderr)
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
