"""How far a run is, from its agenda and ledger alone: no task, no model and no torch is needed, and
it works while the run works and when its cluster is gone."""

import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich.table import Table

from distinf.engine.heartbeat import FINISHED, RUNNING, STOPPED, last_heartbeat
from distinf.errors import InputError
from distinf.runtime import Agenda, Ledger, Part
from distinf.store import Blobs
from distinf.terminal import Terminal

PAGE = "report/index.html"


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is; `left_s` is None until there is a rate to go by.

    is_planned  `total` is what was planned at the start: how many there are hangs on stages before
    """

    stage: str
    words: str
    done: int
    total: int
    retries: int
    left_s: float | None
    is_planned: bool = False

    @property
    def is_complete(self) -> bool:
        return not self.is_planned and self.done == self.total


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    state   finished, running, or stopped
    report  where its page is, None where there is none yet
    words   the same in a sentence, with what to do next
    """

    run: str
    state: str
    words: str
    report: str | None
    stages: Sequence[StageStatus]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def status_of(folder: str, blobs: Blobs) -> RunStatus:
    """By the ledger what is done, by the driver's last word who works on it.

    folder: the run's, as its user names it.
    """
    stages = stages_of(blobs)
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
    why = f" ({last.why})" if last is not None and last.why else ""
    words = f"stopped {place}; {so_far}{why}; to go on: distinf run {named}"
    return RunStatus(folder, STOPPED, words, page, stages)


def stages_of(blobs: Blobs) -> list[StageStatus]:
    """Every stage of the run and its variations, in order."""
    try:
        parts = Agenda(blobs).parts()
    except KeyError:
        raise InputError(
            f"{blobs.root}: does not say what the run has to do (it was begun by an earlier "
            f"version, or agenda/ was deleted); distinf run {shlex.quote(blobs.root)} says it anew"
        ) from None
    ledgers = {part.stage: Ledger(blobs, part.stage) for part in parts}
    return [_stage_status(part, ledgers[part.stage]) for part in parts]


def _stage_status(part: Part, ledger: Ledger) -> StageStatus:
    if part.units is None:
        return StageStatus(part.title, part.words, 0, part.planned, 0, None, is_planned=True)
    mine = set(part.units)
    records = [record for unit, record in ledger.read().items() if unit in mine]
    retries = sum(int(record["attempt"]) - 1 for record in records)
    left = None if part.is_over else _left(records, len(part.units))
    return StageStatus(part.title, part.words, len(records), len(part.units), retries, left)


def _left(records: Collection[Mapping[str, Any]], total: int) -> float | None:
    """Seconds until `total` units are done, pauses between a kill and a resume left out."""
    times = sorted(record["committed"] for record in records)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if not gaps:
        return None
    usual = [gap for gap in gaps if gap <= 10 * (gaps[len(gaps) // 2] + 1.0)]
    return (total - len(times)) * sum(usual) / len(usual)  # type: ignore[no-any-return]


def _place(stages: Sequence[StageStatus]) -> str:
    """The first stage that is not done."""
    at = next((stage for stage in stages if not stage.is_complete), stages[-1])
    units = f"{at.done} of {at.total} unit{'s' if at.total != 1 else ''}"
    return f"at {at.words}, {units}{' planned' if at.is_planned else ''}"


def status_table(found: RunStatus, console: Terminal | None = None) -> None:
    """How far each stage is, and what follows from it."""
    out = console or Terminal()
    table = Table("stage", title="Status", title_justify="left")
    for name in ("done", "of", "retries", "left"):
        table.add_column(name, justify="right")
    for s in found.stages:
        if not (s.total or s.is_planned):
            continue  # nothing to do, by the settings
        left = "" if s.left_s is None else f"{s.left_s:.0f} s"
        total = f"{s.total} planned" if s.is_planned else str(s.total)
        table.add_row(s.stage, str(s.done), total, str(s.retries), left)
    out.print(table)
    out.print(found.words, soft_wrap=True)
