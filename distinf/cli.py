"""The command line: parse, call, print. What a user can mend is one line and an exit code."""

import argparse
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from distinf.errors import ClusterEnded, CorruptionError, DistinfError, InputError, Interrupted
from distinf.printable import one_line, shortened
from distinf.saying import Voice

if TYPE_CHECKING:
    from distinf.config import RunConfig
    from distinf.engine.verifying import Verification
    from distinf.runtime import Part, Unit
    from distinf.store import Blobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a bug of ours, 2 bad config or input, 3 corrupted, 4 resumable."""
    options = _parser().parse_args(arguments)
    sys.path.append(os.getcwd())  # a user's `task: module:function` lies where they are
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _terminate)
    options.voice = voice = Voice()
    try:
        return int(options.call(options) or 0)
    except ClusterEnded as error:
        code = _fail(f"error: {error}", error.exit_code)
        voice.rest()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except DistinfError as error:
        if os.environ.get("DISTINF_TRACE"):
            raise
        return _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command to resume", Interrupted.exit_code)
    except BaseException as error:  # sys.exit in a task among them
        return _told(error)
    finally:
        voice.rest()


def _told(error: BaseException) -> int:
    """One line for what is the user's or may pass; a bug of ours is raised, with its traceback."""
    from distinf.runtime import faults

    whose = faults.whose(error)
    if whose == "ours" or os.environ.get("DISTINF_TRACE"):
        raise error
    if whose == "user":
        return _fail(f"error: the task failed {faults.told(error)}", InputError.exit_code)
    what = faults.told(error)
    if isinstance(error, OSError) and error.strerror:  # a disk that is full, a folder that went
        what = error.strerror + (f": {error.filename}" if error.filename else "")
    return _fail(f"error: {what}; run the same command to resume", Interrupted.exit_code)


def _fail(line: str, code: int) -> int:
    _print(shortened(line), file=sys.stderr)
    return code


def _print(line: str, file: TextIO | None = None) -> None:
    """One line of text, whatever names and paths are in it, if there is a terminal to read it."""
    with contextlib.suppress(OSError):
        print(one_line(line), file=file, flush=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    from distinf import __version__

    parser = argparse.ArgumentParser(
        prog="distinf",
        description="Which training samples made this model do that, and what if we act on it?",
    )
    parser.add_argument("--version", action="version", version=f"distinf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="carry a run out, or resume it")
    _configurable(run)
    run.add_argument(
        "--accept", action="append", default=[], metavar="KEY",
        help="resume although this key of the fingerprint differs; recorded in the run",
    )  # fmt: skip
    run.set_defaults(call=_run)

    score = commands.add_parser(
        "score",
        help="rank a task's training rows, most detrimental first; none is left out",
    )
    _configurable(score)
    score.add_argument(
        "--query", "--queries", dest="queries", metavar="FILE",
        help="rows to ask about, as the task reads them: shows each one's most helpful and most "
        "harmful training rows",
    )  # fmt: skip
    score.add_argument(
        "--top", type=int, default=5, metavar="K", help="of each, so many rows (default 5)"
    )
    score.add_argument("--accept", action="append", default=[], metavar="KEY", help="as in run")
    score.set_defaults(call=_score)

    query = commands.add_parser(
        "query", help="ask a finished run about query rows that it did not have"
    )
    query.add_argument("run", metavar="RUN", help="the folder or URL of a finished run")
    query.add_argument(
        "--queries", metavar="FILE", help="rows to ask about, as the task reads them"
    )
    query.add_argument(
        "--candidates", metavar="FILE", nargs="?", const="",
        help="score rows that were not trained on, instead of the training rows: those of FILE, or "
        "without one the training rows that --set gives the task",
    )  # fmt: skip
    query.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="another setting of the task that changes its evaluation rows, or candidates",
    )  # fmt: skip
    query.add_argument(
        "--top", type=int, default=10, metavar="K",
        help="show each query's K most helpful and most harmful rows (default 10)",
    )  # fmt: skip
    query.add_argument("--ranking", default="", metavar="NAME", help="as in datainf/all")
    query.set_defaults(call=_query)

    evaluate = commands.add_parser(
        "evaluate",
        help="train a finished run again on parts of its rows: what are its scores worth",
    )
    evaluate.add_argument("run", metavar="RUN", help="the folder or URL of a finished run")
    for name, kind, text in (
        ("subsets", int, "random halves to train on (default 30; 0: none)"),
        ("repeats", int, "trainings of each half, by seeds of their own (default 2)"),
        ("shares", int, "random subsets without the fraction (default 10; 0: none)"),
        ("ones", int, "rows to leave out one at a time (default 0)"),
        ("fraction", float, "of rows left out of a share (default 0.01)"),
        ("patch", int, "highest scored rows for one step more (default 10; 0: none)"),
    ):
        evaluate.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    evaluate.add_argument(
        "--independent", action="store_true",
        help="each half starts from weights of its own, and goes through an order of its own",
    )  # fmt: skip
    evaluate.add_argument(
        "--unrolled", action="store_true",
        help="beside the stored scores exact ones, by unrolling the run's own training: small "
        "models, without dropout or batch norms",
    )  # fmt: skip
    evaluate.add_argument(
        "--with", nargs="+", default=[], metavar="RUN", dest="others",
        help="finished runs that differ in their seed alone: the mean of all runs' scores beside "
        "those of the first",
    )  # fmt: skip
    evaluate.add_argument(
        "--plan", action="store_true",
        help="say how many trainings it will take and how long, without one",
    )  # fmt: skip
    evaluate.set_defaults(call=_evaluate)

    plan = commands.add_parser("plan", help="what a run will take, without running it")
    _configurable(plan)
    plan.add_argument(
        "--gpu", metavar="KIND",
        help="times on this kind of GPU (h100, a100, ...), by a roofline instead of measured here",
    )  # fmt: skip
    plan.add_argument(
        "--gpus", type=int, metavar="N", help="how many of them, a worker each (default 1)"
    )
    plan.add_argument(
        "--gflops", type=float, metavar="N",
        help="measure nothing: a worker computes this much per second, in 10^9",
    )  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print numbers instead of a table")
    plan.set_defaults(call=_plan)

    init = commands.add_parser("init", help="write a configuration with every key, explained")
    init.add_argument("task", metavar="TASK", help="a study, or your own task's module:function")
    init.add_argument("file", metavar="FILE", nargs="?", help="default: by the task; - prints it")
    init.add_argument("--recipe", metavar="NAME", help="spectral, or gram for `distinf score`")
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.set_defaults(call=_init)

    for name, call, text in (
        ("status", _status, "how far a run is, from its ledger"),
        ("report", _report, "make a run's report anew"),
        ("verify", _verify, "check every committed byte of a run"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", metavar="RUN", help="the run's folder or URL")
        command.set_defaults(call=call)
        if name == "status":
            command.add_argument("--json", action="store_true", help="print JSON, not a table")
        if name == "verify":
            command.add_argument(
                "--repair", action="store_true",
                help="set aside what is damaged and make it again, with what depends on it",
            )  # fmt: skip
    return parser


def _configurable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="a YAML file, a run's folder to replay, a task's module:function, or JSON lines to "
        "fine-tune a language model on",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override one key, as in --set train.steps=100; may be given again",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="folder or URL of the run")


def _read(options: argparse.Namespace, verb: str = "run") -> dict[str, Any]:
    from distinf.config_file import read

    raw = read(options.config, options.overrides, verb, options.out)
    if not raw.get("task"):
        raise InputError(
            f"{options.config}: names no task; write 'task: mine:task' for your own (a function "
            "task in mine.py), or the name of a study"
        )
    return raw


def _run(options: argparse.Namespace) -> None:
    raw = _read(options)
    began = _announce(options, str(raw["out"]))
    from distinf.config import resolve

    _carry_out(resolve(raw, options.config), options.accept, began, options.voice)


def _announce(options: argparse.Namespace, out: str) -> float:
    """Say at once what is about to be done, as imports alone take seconds -> when it began."""
    began = time.monotonic()
    options.voice.say(f"{options.config} -> {out} ({_how_begun(out)})", again=False)
    options.voice.say("loading torch and the task")
    return began


def _how_begun(out: str) -> str:
    from distinf.engine.heartbeat import FINISHED, is_begun, last_heartbeat

    if not is_begun(out):
        return "new"
    last = last_heartbeat(out)
    if last is None:
        return "resumed"
    if last.is_alive:
        return f"at work already, in process {last.process} on {last.host}"
    if last.state == FINISHED:
        return "finished before"
    return f"resumed: {last.stages_done} of {last.stages} stages done"


class _Spoken(logging.Handler):
    """Says what the package logs on its way."""

    def __init__(self, voice: Voice):
        super().__init__()
        self._voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        self._voice.say(record.getMessage(), again=record.levelno < logging.WARNING)


def _carry_out(
    config: "RunConfig", accept: Sequence[str], began: float, voice: Voice, looks: bool = False
) -> None:
    """Run, with progress and the answer; `looks` if what was done before is read again after it."""
    from distinf.engine.heartbeat import is_begun
    from distinf.engine.run import execute
    from distinf.progress import Reporter, summary

    log, spoken, reporter = logging.getLogger("distinf"), _Spoken(voice), Reporter()
    out = str(config.out)
    unread = is_begun(out) and not looks

    def watch(
        part: "Part", units: Sequence["Unit"], done: Callable[[], float]
    ) -> AbstractContextManager[None]:
        voice.rest()
        return reporter(part, units, done)

    log.addHandler(spoken)
    log.setLevel(logging.INFO)
    try:
        session = execute(config, watch, accept)
    finally:
        log.removeHandler(spoken)
    summary(session, time.monotonic() - began)
    if unread:
        _print(f"what was done before was not read again: distinf verify {shlex.quote(out)} does")


def _score(options: argparse.Namespace) -> None:
    raw = _read(options, "score")
    began = _announce(options, str(raw["out"]))
    from distinf.config import recipe_in, resolve
    from distinf.config_file import assign

    if recipe_in(raw, options.config) != "gram":
        raise InputError(f"{options.config}: score is the Gram recipe; use distinf run for it")
    assign(raw, "actions.configurations", [], options.config)
    if options.queries is not None:
        _ask_about(raw, options)
    try:
        config = resolve(raw, options.config)
    except InputError:
        task = _task_of_another_recipe(options)
        if task is None:
            raise
        way = f"; rank its task by: distinf score {task}" if ":" in task else ""
        raise InputError(f"{options.config}: is for distinf run{way}") from None
    _carry_out(config, options.accept, began, options.voice)


def _ask_about(raw: dict[str, Any], options: argparse.Namespace) -> None:
    """The task's queries come from --query FILE, and the report has each one's rows."""
    from distinf.config_file import assign
    from distinf.tasks.task import setting_of_file

    if options.top < 1:
        raise InputError(f"--top {options.top}: give at least 1")
    setting = setting_of_file(raw["task"], "queries")
    if not setting:
        raise InputError(
            f"--query {options.queries}: the task {raw['task']} reads none from a file"
        )
    own = "" if setting.partition(".")[0] in raw else "settings."  # as the configuration has it
    assign(raw, f"{own}{setting}", options.queries, "--query")
    assign(raw, "report.per_query", options.top, "--query")


def _task_of_another_recipe(options: argparse.Namespace) -> str | None:
    """The task of a configuration that `distinf run` would take; None if it takes it neither."""
    from distinf.config import resolve

    try:
        return resolve(_read(options), options.config).task
    except InputError:
        return None


def _query(options: argparse.Namespace) -> None:
    _look_for_run(options)
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
            _print(answer.note)
    _print(f"by {asked.name}; all scores and these tables: {asked.root}")


def _evaluate(options: argparse.Namespace) -> None:
    _look_for_run(options)
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
    _print(f"{found.trainings} trainings; these numbers as CSV and JSON: {found.root}")


def _print_evaluation_plan(run: str, design: Any, others: Sequence[str]) -> None:
    from distinf.engine.evaluation_plan import plan
    from distinf.report.formats import count, duration

    found = plan(run, design, others)
    _print(
        f"{count(found.trainings)} trainings, {count(found.done)} of them done; the others are "
        f"{found.wholes:.3g} times the work of one on all rows"
    )
    if found.whole_s is None:
        _print("the run has no note of what its training took, so there is no time to tell")
    else:
        _print(
            f"the run's own training took {duration(found.whole_s)} of one worker: about "
            f"{duration(found.seconds)} on {found.workers} worker{'s' * (found.workers > 1)}"
        )
    if found.steps:
        _print(f"and {count(found.steps)} single steps")
    if found.unrolled:
        _print(f"and its training unrolled {count(found.unrolled)} times, each about two trainings")


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


def _init(options: argparse.Namespace) -> None:
    module, _, function = options.task.partition(":")
    stem = module if function in ("", "task") else f"{module}-{function}"
    file = options.file or f"{stem}.yaml"
    if file != "-" and not options.force and os.path.exists(file):
        raise InputError(f"{file}: is there already; name another FILE, or give --force")
    options.voice.say("loading torch and the task")
    from distinf.keys import starting_config

    text = starting_config(options.task, options.recipe or "")
    if file == "-":
        print(text, end="")
        return
    try:
        with open(file, "w", encoding="utf-8") as made:
            made.write(text)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; name another FILE") from None
    verb = "score" if options.recipe == "gram" and function else "run"
    _print(f"{file}: every key at its default; next: distinf {verb} {shlex.quote(file)}")


def _plan(options: argparse.Namespace) -> None:
    if options.gpus is not None and options.gpu is None:
        raise InputError(f"--gpus {options.gpus}: say of which kind, as in --gpu h100")
    if options.gpu is not None and options.gflops is not None:
        raise InputError("--gflops: leave it out with --gpu, which has its own rates")
    raw = _read(options)
    options.voice.say(f"{options.config}: loading torch and the task")
    from distinf.config import resolve
    from distinf.planning import plan
    from distinf.progress import plan_table

    config = resolve(raw, options.config)
    options.voice.say("estimating" if options.gpu or options.gflops else "measuring this machine")
    gpus = 1 if options.gpus is None else options.gpus
    found = plan(config, gflops=options.gflops, gpu=options.gpu, gpus=gpus)
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        plan_table(found)


def _status(options: argparse.Namespace) -> None:
    _look_for_run(options)
    from distinf.engine.standing import status_of, status_table
    from distinf.store import open_root

    found = status_of(options.run, open_root(options.run))
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        status_table(found)


def _look_for_run(options: argparse.Namespace) -> None:
    """InputError at once where no run lies, before anything heavy is imported."""
    from distinf.engine.heartbeat import is_begun
    from distinf.naming import CONFIG

    if not is_begun(options.run):
        raise InputError(f"{options.run}: no {CONFIG} there; give the folder of a run")
    options.voice.say(f"reading {options.run}")
    from distinf.engine.format import refuse_other_format
    from distinf.store import open_root

    refuse_other_format(open_root(options.run))


def _report(options: argparse.Namespace) -> None:
    _look_for_run(options)
    from distinf.engine.run import reopen, rewrite_report

    _print(rewrite_report(reopen(options.run)))


def _verify(options: argparse.Namespace) -> int:
    _look_for_run(options)
    from distinf.engine.verifying import verify
    from distinf.store import open_root

    blobs = open_root(options.run)
    found = verify(blobs)
    lost = _asked_again(options, found)
    run = shlex.quote(options.run)
    remedy = f"distinf verify --repair {run} makes it again" if found.by_run else "; ".join(lost)
    code = _told_verification(found, remedy)
    if not options.repair or not found.problems:
        return code
    _repair(options, blobs, found)
    for line in lost:
        _print(line)
    return _told_verification(verify(blobs), "")


def _asked_again(options: argparse.Namespace, found: "Verification") -> list[str]:
    """What to do about damaged files that a run does not make."""
    from distinf.engine.verifying import EVALUATION, QUERY, folder_of

    verbs, run = {QUERY: "query", EVALUATION: "evaluate"}, shlex.quote(options.run)
    return [
        f"{folder_of(kind)} comes from a command of its own: give distinf {verb} {run} … again"
        for start, verb in verbs.items()
        for kind in sorted(found.handed)
        if kind.startswith(start)
    ]


def _repair(options: argparse.Namespace, blobs: "Blobs", found: "Verification") -> None:
    """Set aside what is damaged, then carry the run out: it makes that again, and what is left."""
    options.voice.say("loading torch and the task")
    from distinf.config import load
    from distinf.engine.lease import held
    from distinf.engine.run import checked_session
    from distinf.engine.verifying import set_aside

    config = load(options.run)
    checked_session(config)  # nothing is moved that cannot be made again
    with held(blobs):
        count = set_aside(blobs, found)
    units = f"{count} unit{'s' if count != 1 else ''}"
    _print(f"set aside under {options.run}/damaged: {units}, and files that are no unit's")
    _carry_out(config, [], time.monotonic(), options.voice, looks=True)


def _told_verification(found: "Verification", remedy: str) -> int:
    for problem in found.problems:
        _print(problem, file=sys.stderr)
    counted = f"{found.records} records, {found.files} files, {found.bytes / 1e6:.1f} MB"
    if found.problems:
        count = len(found.problems)
        told = f"{count} problem{'s' if count > 1 else ''} in {counted}"
        _print(f"{told}; {remedy}" if remedy else told, file=sys.stderr)
        return CorruptionError.exit_code
    _print(f"intact: {counted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
