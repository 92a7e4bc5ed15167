"""Each kind of failure is one line with the exit code that says whose it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from torch import nn

from distinf import cli
from distinf.config import resolve
from distinf.config_file import read
from distinf.engine.heartbeat import HEARTBEAT, last_heartbeat
from distinf.engine.run import execute, reopen
from distinf.errors import CorruptionError, InputError, Interrupted
from distinf.naming import CONFIG
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.runs import POINTS, REPOSITORY, command, merged, run_points, silent

LOCAL = ["--set", "runtime.kind=local"]
TENFOLD = "".join(f"b{k}: &b{k} [{', '.join([f'*b{k - 1}'] * 10)}]\n" for k in range(1, 9))
HOSTILE = {
    "brackets": "[" * 5_000,
    "braces": "{a: " * 5_000,
    "a value inside itself": "task: a:b\nsettings: &a {x: *a}",
    "millions of a few lines": f"b0: &b0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n{TENFOLD}",
    "bytes": "\x00\x01",
    "another type": "!!python/object:os.system {}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_configuration_is_one_line(tmp_path, case):
    file = tmp_path / "mine.yaml"
    file.write_text(HOSTILE[case])
    with pytest.raises(InputError) as raised:
        read(str(file))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("text", ["[" * 5_000, "&a [*a]"])
def test_a_hostile_override_is_one_line(text):
    with pytest.raises(InputError, match="the value is not valid YAML"):
        read("mine:task", [f"settings.x={text}"])


@pytest.mark.parametrize("recipe", [[None], {}, {"a": 1}, 7, "x" * 5_000, ["gram"]])
def test_a_recipe_that_is_none_is_one_line(recipe):
    if not recipe:
        assert resolve({**POINTS, "recipe": recipe}).recipe == "spectral"
        return
    with pytest.raises(
        InputError, match=r"recipe: .*(is unknown; use one of spectral, gram|is no name)"
    ) as raised:
        resolve({**POINTS, "recipe": recipe})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[" * 5_000, CorruptionError),
        ("\x00", CorruptionError),
        ("- 1", CorruptionError),
        ("provenance: 3", CorruptionError),
        ("provenance: {fingerprint: [1]}", CorruptionError),
        ("provenance: null", InputError),
    ],
)
def test_a_damaged_configuration_of_a_run_is_one_line(tmp_path, text, code):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(code):
        reopen(str(tmp_path))
    with pytest.raises((CorruptionError, InputError)):
        execute(resolve({**POINTS, "out": str(tmp_path)}), silent)


@pytest.mark.parametrize("train", [{"steps": 10**400}, {"steps": 10**7, "checkpoint_every": 1}])
def test_a_number_of_any_size_is_refused_in_one_line(train):
    with pytest.raises(InputError, match=r"train: steps: .* are more than 1000000 commits"):
        resolve(merged(POINTS, {"train": train}))
    with pytest.raises(InputError, match="scores: top: inf must be a share"):
        resolve({"task": POINTS["task"], "recipe": "gram", "scores": {"top": float("inf")}})


# -- files that say how far a run is ------------------------------------------------------------

DAMAGE = (
    "", "{", "null", "[]", "3", "[" * 5_000, "\x00\xff", '{"stage": null, "seconds": 1}',
    '{"stage": "scores", "began": "x", "seconds": 1, "busy_s": 1}',
    '{"stage": "scores", "began": 1, "seconds": 1e400, "busy_s": 1}', "-1e400",
    '{"stage": "scores", "began": 1, "seconds": NaN, "busy_s": 1}', '{"process": -1}',
)  # fmt: skip


def plain(settings: dict, seed: int) -> TensorTask:
    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    return TensorTask(lambda: nn.Linear(4, 2), data, {"own": loss}, seed=seed)


def test_damaged_progress_and_times_stop_no_report_and_no_status(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["score", f"{__name__}:plain", "--out", str(out), *LOCAL]) == 0
    page = (out / "report" / "index.html").read_text()
    for place, text in enumerate(DAMAGE):
        (out / "timing" / f"scores-{place}.json").write_text(text)
        (out / "told" / "gradients").mkdir(parents=True, exist_ok=True)
        (out / "told" / "gradients" / f"{place:020d}").write_text(text)
        (out / HEARTBEAT).write_text(text)
        assert last_heartbeat(str(out)) is None or text == DAMAGE[-1]
        assert cli.main(["status", str(out)]) == 0
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report" / "index.html").read_text() == page
    assert cli.main(["score", f"{__name__}:plain", "--out", str(out), *LOCAL]) == 0
    session = reopen(str(out))
    assert session.told("gradients", {f"{place:020d}" for place in range(len(DAMAGE))}) == 0.0
    assert all(note["seconds"] < 1e6 for note in session.times())


@pytest.mark.slow
def test_a_stale_word_of_a_process_below_1_is_of_no_living_driver(tmp_path):
    out = tmp_path / "run"
    run_points(out)
    said = json.loads((out / HEARTBEAT).read_text())
    for process in (0, -1):
        (out / HEARTBEAT).write_text(json.dumps({**said, "state": "running", "process": process}))
        assert not last_heartbeat(str(out)).is_alive


# -- a folder that goes away --------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", [*(pytest.param(s, marks=pytest.mark.slow) for s in ("evaluate", "scores")), "report"]
)
def test_a_folder_that_vanished_stops_the_run_and_is_not_made_anew(tmp_path, stage):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    config = resolve({**POINTS, "out": str(out)})

    @contextmanager
    def moving(part, units, done):
        if part.title == stage:
            out.rename(elsewhere)
        yield

    with pytest.raises(Interrupted, match=r"run is gone, or its config.yaml .* put it back"):
        execute(config, moving)
    assert not out.exists()
    elsewhere.rename(out)
    shutil.rmtree(out / "driver", ignore_errors=True)
    execute(config, silent)
    assert (out / "report" / "index.html").exists()


# -- a task that leaves -------------------------------------------------------------------------

CALLS: Counter[str] = Counter()  # of a member of the task, by all sessions of this process
MEMBERS = ("model", "rows", "batch", "evaluate", "describe", "optimizer", "digests", "shapes")


@dataclass(frozen=True)
class Leaving:
    """where: the member of the task that leaves; after: how many of its calls go well."""

    where: str = ""
    after: int = 0


class LeavingTask(TensorTask):
    """Leaves by sys.exit in a member of its own."""

    asked = Leaving()

    def leave(self, member: str) -> None:
        CALLS[member] += 1
        if member == self.asked.where and CALLS[member] > self.asked.after:
            sys.exit()


def _leaving(member: str):
    def called(self, *arguments, **more):
        self.leave(member)
        return getattr(TensorTask, member)(self, *arguments, **more)

    return called


for name in MEMBERS:
    setattr(LeavingTask, name, _leaving(name))


def leaving(settings: Leaving, seed: int) -> TensorTask:
    if settings.where == "factory":
        sys.exit("enough")

    def own(model: nn.Module, batch: dict):
        task.leave("loss")
        return loss(model, batch)

    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    task = LeavingTask(lambda: nn.Linear(4, 2), data, {"own": own})
    task.asked = settings
    return task


def scored(out, where: str, after: int) -> int:
    CALLS.clear()
    words = ["--set", f"settings.where={where}", "--set", f"settings.after={after}", *LOCAL]
    return cli.main(["score", f"{__name__}:leaving", "--out", str(out), *words])


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, int]:
    """How often a whole run calls each member."""
    assert scored(tmp_path_factory.mktemp("whole") / "run", "nowhere", 0) == 0
    return dict(CALLS)


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("where", ["factory", "loss", *MEMBERS])
def test_a_task_that_leaves_anywhere_is_told(tmp_path, capfd, calls, where, when):
    after = calls.get(where, 1) - 1 if when == "last" else 0
    assert scored(tmp_path / "run", where, after) == 2
    *_, last = said = capfd.readouterr().err.splitlines()
    assert "test_error_classes.py:" in last
    assert "sys.exit(" in last
    assert not any("Traceback" in line for line in said)


# -- signals ------------------------------------------------------------------------------------

SLOW = """
import time, torch, distinf
from tests.support.blobs_task import loss, points
def slow(model, batch):
    if len(batch["label"]) > 8:
        time.sleep(1.0)
    return loss(model, batch)
def task(settings, seed):
    data = {"train": points(60, 1), "evaluation": points(12, 2)}
    return distinf.TensorTask(lambda: torch.nn.Linear(4, 2), data, {"own": slow}, seed=seed)
"""


def hung_up(tmp_path, ignored: bool) -> tuple[int, str]:
    """Exit code and words of a run that gets SIGHUP at work."""
    (tmp_path / "slow_task.py").write_text(SLOW)
    before = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = subprocess.Popen(
        command("score", "slow_task:task", "--out", "run", *LOCAL), cwd=tmp_path, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, before),
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run" / HEARTBEAT).exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=100)
    return process.returncode, said


@pytest.mark.slow
def test_a_closed_terminal_stops_a_run_as_a_kill_does(tmp_path):
    code, said = hung_up(tmp_path, ignored=False)
    assert code == 4, said
    assert said.splitlines()[-1] == "stopped; run the same command to resume"


@pytest.mark.slow
def test_a_run_that_ignores_hang_ups_from_the_start_goes_on(tmp_path):
    code, said = hung_up(tmp_path, ignored=True)
    assert code == 0, said
    assert (tmp_path / "run" / "report" / "index.html").exists()
