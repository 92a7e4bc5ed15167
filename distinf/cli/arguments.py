"""What each command takes."""

import argparse
from typing import Any

from distinf.cli import asking, looking, runs

Commands = Any  # argparse's, of a parser


def parser() -> argparse.ArgumentParser:
    """Its namespace has `call`, which takes the namespace."""
    from distinf import __version__

    made = argparse.ArgumentParser(
        prog="distinf",
        description="Which training samples made this model do that, and what if we act on it?",
    )
    made.add_argument("--version", action="version", version=f"distinf {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for add in (_run, _score, _query, _evaluate, _plan, _init, _looking):
        add(commands)
    return made


def _run(commands: Commands) -> None:
    run = commands.add_parser("run", help="carry a run out, or resume it")
    _configurable(run)
    run.add_argument(
        "--accept", action="append", default=[], metavar="KEY",
        help="resume although this key of the fingerprint differs; recorded in the run",
    )  # fmt: skip
    run.set_defaults(call=runs.run)


def _score(commands: Commands) -> None:
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
    score.add_argument(
        "--tokens", action="store_true",
        help="and what each token of these rows does to the query (of the task sft)",
    )  # fmt: skip
    score.add_argument("--accept", action="append", default=[], metavar="KEY", help="as in run")
    score.set_defaults(call=runs.score)


def _query(commands: Commands) -> None:
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
    query.set_defaults(call=asking.query)


def _evaluate(commands: Commands) -> None:
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
    evaluate.set_defaults(call=asking.evaluate)


def _plan(commands: Commands) -> None:
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
    plan.add_argument(
        "--fit", action="store_true",
        help="where it does not fit, lower what its stages say can be lowered, and print the --set "
        "that then fits",
    )  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print numbers instead of a table")
    plan.set_defaults(call=runs.plan)


def _init(commands: Commands) -> None:
    init = commands.add_parser("init", help="write a configuration with every key, explained")
    init.add_argument("task", metavar="TASK", help="a study, or your own task's module:function")
    init.add_argument("file", metavar="FILE", nargs="?", help="default: by the task; - prints it")
    init.add_argument("--recipe", metavar="NAME", help="spectral, or gram for `distinf score`")
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.set_defaults(call=runs.init)


def _looking(commands: Commands) -> None:
    for name, call, text in (
        ("status", looking.status, "how far a run is, from its ledger"),
        ("report", looking.report, "make a run's report anew"),
        ("verify", looking.verify, "check every committed byte of a run"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", metavar="RUN", help="the run's folder or URL")
        command.set_defaults(call=call)
        if name == "status":
            command.add_argument("--json", action="store_true", help="print JSON, not a table")
            command.add_argument(
                "--watch", type=float, nargs="?", const=5.0, metavar="SECONDS",
                help="again every so often (default 5), until the run ends",
            )  # fmt: skip
        if name == "verify":
            command.add_argument(
                "--repair", action="store_true",
                help="set aside what is damaged and make it again, with what depends on it",
            )  # fmt: skip


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
