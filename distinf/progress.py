"""What a person sees while a run works: a live line in a terminal, plain lines elsewhere."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from distinf.engine.evaluating import Evaluation
from distinf.engine.recipe import Answer
from distinf.engine.rewriting import page_path
from distinf.engine.session import Session
from distinf.planning import Plan
from distinf.printable import printable
from distinf.report.formats import number
from distinf.report.worth import remark
from distinf.runtime import Part, Unit
from distinf.saying import alongside, own_stderr
from distinf.terminal import Terminal, by_query_table, fitted

POLL_S = 0.5
SOON_S = 2.0  # the first plain line of a stage that takes longer
PLAIN_S = 10.0
QUERIES = 5  # whose rows are shown; their tables have all


class Reporter:
    """Shows each stage as the ledger fills up: the units that it counts are committed. A share
    beside them is what workers tell of those that they are at."""

    def __init__(self, console: Terminal | None = None):
        self._console = console or Terminal(file=own_stderr())

    @contextmanager
    def __call__(
        self, part: Part, units: Sequence[Unit], done: Callable[[], float]
    ) -> Iterator[None]:
        began = time.monotonic()
        start = done()
        show = self._live if self._console.is_terminal else self._plain
        with alongside(partial(show, part.words, len(units), start, done)):
            yield
        count = len(units)
        seconds = time.monotonic() - began
        kept = f", {int(start)} were done before" if start >= 1 else ""
        self._console.print(
            Text.assemble(
                ("done", "green"),
                printable(f" {part.words:<26} {count} unit{'s' if count != 1 else ''}"),
                f" in {seconds:.1f} s{kept}",
            )
        )

    def _live(
        self, words: str, total: int, start: float, done: Callable[[], float], stop: threading.Event
    ) -> None:
        columns = (
            TextColumn("     {task.description:<26}", markup=False),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(printable(words), total=total, completed=int(start))
            while not stop.wait(POLL_S):
                bar.update(task, completed=done())

    def _plain(
        self, words: str, total: int, start: float, done: Callable[[], float], stop: threading.Event
    ) -> None:
        began = time.monotonic()
        wait_s = min(SOON_S, PLAIN_S)
        while not stop.wait(wait_s):
            wait_s = PLAIN_S
            now = done()
            elapsed = time.monotonic() - began
            left = (total - now) * elapsed / (now - start) if now > start else None
            about = f", about {left:.0f} s left" if left is not None else ""
            self._console.print(
                f"     {words}: {_of(now, total)} after {elapsed:.0f} s{about}",
                soft_wrap=True,
            )


def _of(done: float, total: int) -> str:
    share = "" if done == int(done) else f" ({done / total:.0%} with those begun)"
    return f"{int(done)} of {total} unit{'s' if total != 1 else ''}{share}"


def summary(session: Session, seconds: float, console: Terminal | None = None) -> None:
    """The answer in a few lines, and where the report is."""
    out = console or Terminal()
    for line in session.recipe.summary(session):
        out.print(line, soft_wrap=True)
    out.print(f"finished in {seconds:.0f} s")
    report = f"report: {page_path(session)}"
    out.print(report, soft_wrap=True)


def query_table(answer: Answer, top: int, console: Terminal | None = None) -> None:
    """The first queries' most helpful and most harmful training rows, or candidates."""
    out, count = console or Terminal(), len(answer.queries)
    shown = replace(answer, scores_QN=answer.scores_QN[:QUERIES], queries=answer.queries[:QUERIES])
    title = f"{answer.scored} by query {answer.cell}".strip()
    out.print(by_query_table(title, list(shown.extremes(top))), soft_wrap=True)
    if count > QUERIES:
        out.print(f"the first {QUERIES} of {count} queries; the others are in the tables")


WITH_COST = 90  # columns of a terminal from which on an evaluation's table has its scores' cost


def evaluation_table(found: Evaluation, console: Terminal | None = None) -> None:
    """A table for each measure: every ranking's value and interval, the best first."""
    out = console or Terminal()
    roomy = out.width >= WITH_COST
    for measure in dict.fromkeys(row["measure"] for row in found.rows):
        rows = [row for row in found.rows if row["measure"] == measure]
        rows.sort(key=lambda row: (row["cell"], -row["value"]))
        with_top = any(_known(row.get("ceiling")) for row in rows)
        with_cost = roomy and any(row.get("gradients") is not None for row in rows)
        table = Table(title=measure, title_justify="left", box=None)
        table.add_column("ranking", overflow="fold")
        for key in ("value", "95 % interval", *(("of a possible",) if with_top else ()),
                    *(("gradients",) if with_cost else ())):  # fmt: skip
            table.add_column(key, justify="right", no_wrap=True)
        for row in rows:
            span = f"{row['low']:.3g} to {row['high']:.3g}" if _known(row["low"]) else ""
            top = [_digits(row.get("ceiling"))] if with_top else []
            top += [number(row["gradients"], 2)] if with_cost else []
            name = " ".join(filter(None, (row["cell"], row["ranking"])))
            table.add_row(fitted(name), _digits(row["value"]), span, *top)
        out.print(table)
        if remark(rows):
            out.print(remark(rows), soft_wrap=True)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _digits(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and math.isfinite(value) else ""


def plan_table(plan: Plan, console: Terminal | None = None) -> None:
    """What each stage will take, the sums, and what the times rest on; nothing is cut off."""
    out = console or Terminal()
    table = Table(title=f"Plan for {plan.where}", title_justify="left")
    table.add_column("stage", overflow="fold")
    sharing = "GPUs" if plan.workers == plan.gpus else "workers"
    on_gpus = any(p.gpu_memory for p in plan.stages)
    peaks = ("host/worker", "GPU/worker") if on_gpus else ("peak/worker",)
    moves = {"stored": plan.bytes, "read": sum(p.read for p in plan.stages)}
    if any(p.network for p in plan.stages):
        moves["network"] = sum(p.network for p in plan.stages)
    for name in ("units", "FLOP", *moves, *peaks, sharing, "time"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("bound by", overflow="fold")
    for p in plan.stages:
        if p.units:
            held = [_bytes(p.memory), _bytes(p.gpu_memory)][: len(peaks)]
            moved = [_bytes(size) for size in (p.bytes, p.read, p.network)][: len(moves)]
            cells = (f"{p.flops:.3g}", *moved, *held, str(p.workers))
            table.add_row(p.stage, str(p.units), *cells, _duration(p.seconds), p.bound)
    table.add_section()
    most_gpu = max(p.gpu_memory for p in plan.stages)
    table.add_row(
        "all",
        str(sum(p.units for p in plan.stages)),
        f"{sum(p.flops for p in plan.stages):.3g}",
        *map(_bytes, moves.values()),
        *[_bytes(max(p.memory for p in plan.stages)), _bytes(most_gpu)][: len(peaks)],
        str(plan.workers),
        _duration(plan.seconds),
    )
    if not out.is_terminal:  # a file or a pipe has no width
        needed = out.measure(table, options=out.options.update(width=1_000)).maximum
        out.width = max(out.width, needed)
    out.print(table)
    hours = plan.seconds / 3600
    summed = (plan.gpus, "GPU") if plan.gpus else (plan.workers, "worker")
    total = f"{hours:.3g} h, {hours * summed[0]:.3g} {summed[1]}-hours"
    if plan.idle_seconds and plan.idle_seconds < 0.9 * plan.seconds:
        total += f"; about {_duration(plan.idle_seconds)} on an idle machine"
    out.print(total)
    largest = sorted(plan.parts.items(), key=lambda part: -part[1])[:3]
    shares = [f"{name} ({seconds / plan.seconds:.0%} of the time)" for name, seconds in largest]
    out.print(f"bound by {', then '.join(shares)}")
    for line in _peaks(plan):
        out.print(line, soft_wrap=not out.is_terminal)
    for note in plan.notes:
        out.print(note, soft_wrap=not out.is_terminal)


def _peaks(plan: Plan) -> Iterator[str]:
    """Of the stages that take most, and of the driver, what the memory consists of."""
    for where, size, parts in (
        ("GPU", "gpu_memory", "gpu_parts"),
        ("host", "memory", "memory_parts"),
    ):
        stage = max(plan.stages, key=lambda stage: float(getattr(stage, size)))
        if getattr(stage, size):
            yield f"most of a worker's {where}, in {stage.stage}: {_parts(getattr(stage, parts))}"
    if plan.driver:
        yield f"the driver's host: {_parts(plan.driver)}"


def _parts(parts: Mapping[str, float]) -> str:
    """38 GB (activations 23 GB, weights 15 GB)"""
    largest = sorted(parts.items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {_bytes(size)}" for name, size in largest if size)
    return f"{_bytes(sum(parts.values()))} ({told})"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5940 else f"{seconds / 3600:.3g} h"
