"""How far a run is, from its agenda and ledger alone: no task, no model and no torch is needed, and
it works while the run works and when its cluster is gone."""

import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich.console import Group
from rich.table import Table

from distinf.engine.heartbeat import FINISHED, RUNNING, STOPPED, last_heartbeat
from distinf.errors import InputError
from distinf.runtime import Agenda, Ledger, Part
from distinf.runtime.ledger import no_collecting
from distinf.runtime.records import Lowered, amount, lowered_in
from distinf.store import Blobs
from distinf.terminal import Terminal

Ledgers = dict[str, Ledger]  # by stage
PAGE = "report/index.html"


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is; `left_s` is None until there is a rate to go by.

    is_planned  `total` is what was planned at the start: how many there are hangs on stages before
    rate        units a second, pauses between a kill and a resume left out
    quarantined rows that have no score, as their loss or gradient is not finite
    hours       of workers (in a gang, of all its ranks), and of GPUs that they held
    lowered     where memory ran out, and what was done about it
    """

    stage: str
    words: str
    done: int
    total: int
    retries: int
    left_s: float | None
    is_planned: bool = False
    rate: float | None = None
    quarantined: int = 0
    worker_hours: float = 0.0
    gpu_hours: float = 0.0
    lowered: Sequence[Lowered] = ()

    @property
    def is_complete(self) -> bool:
        return not self.is_planned and self.done == self.total


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    state   finished, running, or stopped
    report  where its page is, None where there is none yet
    words   the same in a sentence, with what to do next
    is_orphaned  stopped without a word: its driver was killed, and another may take its place
    """

    run: str
    state: str
    words: str
    report: str | None
    stages: Sequence[StageStatus]
    is_orphaned: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def status_of(folder: str, blobs: Blobs, ledgers: Ledgers | None = None) -> RunStatus:
    """By the ledger what is done, by the driver's last word who works on it.

    folder: the run's, as its user names it. ledgers: for who asks again, what was read before
    """
    stages = stages_of(blobs, ledgers)
    page = f"{blobs.root}/{PAGE}" if PAGE in blobs.names("report") else None
    last = last_heartbeat(blobs.root)
    named = shlex.quote(folder)
    if stages[-1].is_complete:
        words = f"report at {page}" if page else f"its page is gone: distinf report {named}"
        return RunStatus(folder, FINISHED, f"finished: {words}", page, stages)
    place = _place(stages)
    so_far = f"an earlier report at {page}" if page else "no report yet"
    if last is not None and last.is_alive:
        who = f"process {last.process} on {last.host}, seen {time.time() - last.at:.0f} s ago"
        words = f"running: {place}; {so_far} ({who})"
        return RunStatus(folder, RUNNING, words, page, stages)
    if last is not None and last.state == RUNNING:
        gone = f"{last.process} on {last.host} is gone"
        words = f"stopped, no driver is alive: {place}; {so_far} ({gone})"
        return RunStatus(folder, STOPPED, f"{words}; {_go_on(named)}", page, stages, True)
    why = f" ({last.why})" if last is not None and last.why else ""
    words = f"stopped {place}; {so_far}{why}; {_go_on(named)}"
    return RunStatus(folder, STOPPED, words, page, stages)


def _go_on(named: str) -> str:
    return f"to go on: distinf run {named}"


def stages_of(blobs: Blobs, ledgers: Ledgers | None = None) -> list[StageStatus]:
    """Every stage of the run and its variations, in order."""
    try:
        parts = Agenda(blobs).parts()
    except KeyError:
        raise InputError(
            f"{blobs.root}: does not say what the run has to do (it was begun by an earlier "
            f"version, or agenda/ was deleted); distinf run {shlex.quote(blobs.root)} says it anew"
        ) from None
    ledgers = {} if ledgers is None else ledgers
    for part in parts:
        ledgers.setdefault(part.stage, Ledger(blobs, part.stage))
    with no_collecting():
        return [_stage_status(part, ledgers[part.stage]) for part in parts]


def _stage_status(part: Part, ledger: Ledger) -> StageStatus:
    if part.units is None:
        return StageStatus(part.title, part.words, 0, part.planned, 0, None, is_planned=True)
    mine = set(part.units)
    records = [record for unit, record in ledger.read().items() if unit in mine]
    retries = sum(int(record["attempt"]) - 1 for record in records)
    rate, total = _rate(records), len(part.units)
    left = None if part.is_over or rate is None else (total - len(records)) / rate
    summaries = [record.get("summary", {}) for record in records]
    gone = [summary.get("quarantined") for summary in summaries]
    hours = [
        amount(record.get("seconds")) * max(1.0, amount(summary.get("ranks"))) / 3600
        for record, summary in zip(records, summaries, strict=True)
    ]
    gpus = [amount(record.get("gpus")) for record in records]
    return StageStatus(
        part.title, part.words, len(records), total, retries, left,
        rate=rate,
        quarantined=sum(len(rows) for rows in gone if isinstance(rows, list)),
        worker_hours=sum(hours),
        gpu_hours=sum(each * held for each, held in zip(hours, gpus, strict=True)),
        lowered=lowered_in(records),
    )  # fmt: skip


def _rate(records: Collection[Mapping[str, Any]]) -> float | None:
    """Units a second, pauses between a kill and a resume left out."""
    times = sorted(record["committed"] for record in records)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if not gaps:
        return None
    usual = [gap for gap in gaps if gap <= 10 * (gaps[len(gaps) // 2] + 1.0)]
    return len(usual) / max(sum(usual), 1e-9)  # type: ignore[no-any-return]


def _place(stages: Sequence[StageStatus]) -> str:
    """The first stage that is not done."""
    at = next((stage for stage in stages if not stage.is_complete), stages[-1])
    units = f"{at.done} of {at.total} unit{'s' if at.total != 1 else ''}"
    return f"at {at.words}, {units}{' planned' if at.is_planned else ''}"


CELLS: Mapping[str, Callable[[StageStatus], str]] = {
    "done": lambda s: str(s.done),
    "of": lambda s: f"{s.total} planned" if s.is_planned else str(s.total),
    "retries": lambda s: str(s.retries),
    "quarantined": lambda s: str(s.quarantined or ""),
    "units/s": lambda s: "" if s.rate is None else f"{s.rate:.3g}",
    "left": lambda s: "" if s.left_s is None else f"{s.left_s:.0f} s",
    "worker h": lambda s: f"{s.worker_hours:.3f}" if s.worker_hours else "",
    "GPU h": lambda s: f"{s.gpu_hours:.3f}" if s.gpu_hours else "",
}
NEEDED = 2  # columns of a table: without done and of, lines say it
TELLING = ("quarantined", "GPU h")  # columns that are left out where they say nothing


def status_table(found: RunStatus, console: Terminal | None = None) -> None:
    out = console or Terminal()
    out.print(status_view(found, out), soft_wrap=True)


def status_view(found: RunStatus, out: Terminal) -> Group:
    """How far each stage is, and what follows from it. Of columns the first that have room; a
    number that is cut off reads as another."""
    shown = [s for s in found.stages if s.total or s.is_planned]  # else nothing to do, by settings
    columns = {name: [cell(s) for s in shown] for name, cell in CELLS.items()}
    kept = [name for name in CELLS if name not in TELLING or any(columns[name])]
    while len(kept) >= NEEDED and _least_width(_table(shown, columns, kept), out) > out.width:
        kept.pop()
    whole: list[Any] = [_table(shown, columns, kept)]
    if len(kept) < NEEDED:
        whole = [f"{s.stage}: {s.done} of {CELLS['of'](s)}" for s in shown]
    memory = [f"out of memory: {s.stage}: {each}" for s in shown for each in s.lowered]
    return Group(*whole, *memory, found.words)


def _table(
    shown: Sequence[StageStatus], columns: Mapping[str, Sequence[str]], kept: Sequence[str]
) -> Table:
    table = Table("stage", title="Status", title_justify="left")
    for name in kept:
        table.add_column(name, justify="right")
    for place, stage in enumerate(shown):
        table.add_row(stage.stage, *(columns[name][place] for name in kept))
    return table


def _least_width(table: Table, out: Terminal) -> int:
    """In which no word is cut."""
    return out.measure(table, options=out.options.update(width=1_000)).minimum
