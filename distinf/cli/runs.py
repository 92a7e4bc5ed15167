"""Commands that carry a configuration out, plan it, or write one."""

import argparse
import copy
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from distinf.errors import InputError
from distinf.printable import show
from distinf.saying import Voice

if TYPE_CHECKING:
    from distinf.config import RunConfig
    from distinf.planning import Plan
    from distinf.runtime import Part, Unit


def run(options: argparse.Namespace) -> None:
    raw = _read(options)
    began = _announce(options, str(raw["out"]))
    from distinf.config import resolve

    carry_out(resolve(raw, options.config), options.accept, began, options.voice)


def score(options: argparse.Namespace) -> None:
    raw = _read(options, "score")
    began = _announce(options, str(raw["out"]))
    from distinf.config import recipe_in, resolve
    from distinf.config_file import assign

    if recipe_in(raw, options.config) != "gram":
        raise InputError(f"{options.config}: score is the Gram recipe; use distinf run for it")
    assign(raw, "actions.configurations", [], options.config)
    if options.queries is not None:
        _ask_about(raw, options)
    if options.tokens:
        assign(raw, "report.tokens", True, "--tokens")
        if not raw["report"].get("per_query"):
            raise InputError("--tokens: are of each query's rows; give --query FILE too")
    try:
        config = resolve(raw, options.config)
    except InputError:
        task = _task_of_another_recipe(options)
        if task is None:
            raise
        way = f"; rank its task by: distinf score {task}" if ":" in task else ""
        raise InputError(f"{options.config}: is for distinf run{way}") from None
    carry_out(config, options.accept, began, options.voice)


def plan(options: argparse.Namespace) -> None:
    if options.gpus is not None and options.gpu is None:
        raise InputError(f"--gpus {options.gpus}: say of which kind, as in --gpu h100")
    if options.gpu is not None and options.gflops is not None:
        raise InputError("--gflops: leave it out with --gpu, which has its own rates")
    raw = _read(options)
    options.voice.say(f"{options.config}: loading torch and the task")
    from distinf.config import resolve
    from distinf.config_file import assign
    from distinf.planning import fitted, plan
    from distinf.progress import plan_table

    options.voice.say("estimating" if options.gpu or options.gflops else "measuring this machine")
    gpus = 1 if options.gpus is None else options.gpus

    def planned(changes: Mapping[str, Any]) -> "Plan":
        changed = copy.deepcopy(raw)
        for key, value in changes.items():
            assign(changed, key, value, "--fit")
        config = resolve(changed, options.config)
        return plan(config, gflops=options.gflops, gpu=options.gpu, gpus=gpus)

    found, changes = fitted(planned) if options.fit else (planned({}), {})
    if options.json:
        more = {"set": changes} if options.fit else {}
        print(json.dumps({**found.as_json(), **more}, indent=1))
        return
    if options.fit:
        sets = " ".join(f"--set {key}={value}" for key, value in changes.items())
        show(f"fits with: {sets}" if sets else "fits as it is")
    plan_table(found)


def init(options: argparse.Namespace) -> None:
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
    show(f"{file}: every key at its default; next: distinf {verb} {shlex.quote(file)}")


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


def _read(options: argparse.Namespace, verb: str = "run") -> dict[str, Any]:
    from distinf.config_file import read

    raw = read(options.config, options.overrides, verb, options.out)
    if not raw.get("task"):
        raise InputError(
            f"{options.config}: names no task; write 'task: mine:task' for your own (a function "
            "task in mine.py), or the name of a study"
        )
    return raw


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


def carry_out(
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
        show(f"what was done before was not read again: distinf verify {shlex.quote(out)} does")
