"""Commands that ask a finished run: about other rows, and what its scores are worth."""

import argparse
from collections.abc import Sequence
from typing import Any

from distinf.cli.looking import look_for_run
from distinf.errors import InputError
from distinf.printable import show


def query(options: argparse.Namespace) -> None:
    look_for_run(options)
    if options.top < 1:
        raise InputError(f"--top {options.top}: give at least 1")
    from distinf.config_file import override_of
    from distinf.engine.query import ask
    from distinf.progress import Reporter, query_table

    changes, candidates = [override_of(each) for each in options.set], None
    if options.candidates == "":
        changes, candidates = [], changes
    if options.queries is not None:
        changes.append((_file_setting(options, "queries"), options.queries))
    if options.candidates is not None:
        setting = _file_setting(options, "candidates", options.candidates == "")
        candidates = candidates or [(setting, options.candidates)]
    options.voice.rest()
    asked = ask(
        options.run, changes, Reporter(),
        candidates=candidates, ranking=options.ranking, top=options.top,
    )  # fmt: skip
    for answer in asked.answers:
        query_table(answer, options.top)
        if answer.note:
            show(answer.note)
    show(f"by {asked.name}; all scores and these tables: {asked.root}")


def evaluate(options: argparse.Namespace) -> None:
    look_for_run(options)
    from distinf.engine.evaluating import evaluate
    from distinf.engine.trainings import Design
    from distinf.progress import Reporter, evaluation_table

    names = (
        "subsets", "repeats", "shares", "ones", "fraction", "patch", "independent", "unrolled"
    )  # fmt: skip
    given = {name: getattr(options, name) for name in names}
    design = Design(**{name: value for name, value in given.items() if value is not None})
    if options.plan:
        _print_evaluation_plan(options.run, design, options.others)
        return
    options.voice.rest()
    found = evaluate(options.run, design, Reporter(), options.others)
    evaluation_table(found)
    show(f"{found.trainings} trainings; these numbers as CSV and JSON: {found.root}")


def _print_evaluation_plan(run: str, design: Any, others: Sequence[str]) -> None:
    from distinf.engine.evaluation_plan import plan
    from distinf.report.formats import count, duration

    found = plan(run, design, others)
    show(
        f"{count(found.trainings)} trainings, {count(found.done)} of them done; the others are "
        f"{found.wholes:.3g} times the work of one on all rows"
    )
    if found.whole_s is None:
        show("the run has no note of what its training took, so there is no time to tell")
    else:
        show(
            f"the run's own training took {duration(found.whole_s)} of one worker: about "
            f"{duration(found.seconds)} on {found.workers} worker{'s' * (found.workers > 1)}"
        )
    if found.steps:
        show(f"and {count(found.steps)} single steps")
    if found.unrolled:
        show(f"and its training unrolled {count(found.unrolled)} times, each about two trainings")


def _file_setting(options: argparse.Namespace, rows: str, by_set: bool = False) -> str:
    """The task's setting that takes a file of these rows; "" where they are given by --set.
    InputError for what the task cannot have."""
    from distinf.config import load
    from distinf.engine.query import asks_of
    from distinf.tasks.task import setting_of_file

    config = load(options.run)
    asks_of(config, options.run, options.candidates is not None)
    setting, flag = setting_of_file(config.task, rows), f"--{rows}"
    if by_set and setting:
        raise InputError(f"{flag}: give the FILE that has them; the task of this run reads one")
    if by_set and not options.set:
        raise InputError(
            f"{flag}: say by --set which of the task's settings makes others of its training rows"
        )
    if not by_set and not setting:
        way = "" if rows == "queries" else f"{flag} without a file and "
        kind = "evaluation" if rows == "queries" else "training"
        raise InputError(
            f"{flag} {getattr(options, rows)}: the task of this run reads none from a file; say by "
            f"{way}--set which of its settings makes its {kind} rows others"
        )
    return setting
