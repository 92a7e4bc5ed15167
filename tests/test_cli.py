"""The command line as a user meets it: exit codes, one line, no traceback."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import yaml

from distinf import __version__
from distinf.cli import main
from distinf.engine.heartbeat import Heartbeat
from distinf.engine.run import reopen
from tests.support.runs import (
    POINTS,
    ROOT,
    all_scores,
    command,
    distinf,
    merged,
    run_points,
    same_bits,
)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump(POINTS))
    return file


def last_line(capsys) -> str:
    """The error: nothing follows it, and nothing of a traceback is above it."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.smoke
def test_the_commands_of_a_whole_run(config, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["plan", str(config), "--out", out, "--gflops", "10"]) == 0
    assert "curvature" in capsys.readouterr().out
    assert not os.path.exists(out)
    assert main(["run", str(config), "--out", out]) == 0
    assert f"report: {out}/report/index.html" in capsys.readouterr().out
    assert main(["status", out]) == 0
    shown = capsys.readouterr().out
    assert "gradients" in shown
    assert shown.splitlines()[-1] == f"finished: report at {out}/report/index.html"
    assert main(["verify", out]) == 0
    assert capsys.readouterr().out.startswith("intact: ")
    assert main(["report", out]) == 0
    assert capsys.readouterr().out.strip() == f"{out}/report/index.html"


def test_bad_config_is_exit_code_2_and_leaves_nothing(config, tmp_path, capsys):
    out = tmp_path / "run"
    code = main(["run", str(config), "--out", str(out), "--set", "train.step=4"])
    assert code == 2
    assert "did you mean 'steps'?" in last_line(capsys)
    assert not out.exists()


@pytest.mark.parametrize("verb", ["status", "verify", "report"])
def test_a_folder_that_is_no_run_is_exit_code_2(tmp_path, capsys, verb):
    assert main([verb, str(tmp_path)]) == 2
    assert "give the folder of a run" in last_line(capsys)


def test_corruption_is_exit_code_3_and_is_named(tmp_path, capsys):
    session = run_points(tmp_path / "run")
    chunk = next(n for n in session.blobs.names("gradients.zarr") if "/ritz/c/" in n)
    data = bytearray(session.blobs.get(chunk))
    data[3] ^= 1
    session.blobs.put(chunk, bytes(data))
    assert main(["verify", str(tmp_path / "run")]) == 3
    assert f"{chunk} is not what was committed" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unfinished_run_has_no_report_to_make_anew(tmp_path, capsys):
    session = run_points(tmp_path / "run")
    for name in session.blobs.names("ledger/actions"):
        session.blobs.delete(name)
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "stage 'actions' is not done" in last_line(capsys)


def test_version_and_help_are_quick_and_need_no_ray():
    began = time.monotonic()
    shown = distinf("--version")
    assert shown.stdout.strip() == f"distinf {__version__}"
    assert time.monotonic() - began < 20


def kill_at(moment: float, arguments: list[str]) -> int:
    """Start the command line, SIGKILL it after `moment` seconds -> its exit status."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait()


def killed_and_resumed(config, tmp_path, runtime, moments):
    """The scores of a run killed at each moment in turn and then left to finish."""
    changed = tmp_path / "killed.yaml"
    changed.write_text(yaml.safe_dump(merged(POINTS, {"runtime": runtime})))
    arguments = ["run", str(changed), "--out", str(tmp_path / "killed")]
    statuses = [kill_at(moment, arguments) for moment in moments]
    finished = distinf(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert distinf("verify", str(tmp_path / "killed")).returncode == 0
    return statuses, all_scores(reopen(str(tmp_path / "killed")))


def test_a_driver_killed_twice_resumes_to_the_same_bits(config, tmp_path):
    golden = all_scores(run_points(tmp_path / "golden"))
    statuses, found = killed_and_resumed(config, tmp_path, {"kind": "local"}, [3.2, 3.6])
    assert -signal.SIGKILL in statuses
    assert same_bits(found, golden)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("seed", range(4))
def test_a_driver_on_ray_killed_at_random_resumes_to_the_same_bits(config, tmp_path, seed):
    golden = all_scores(run_points(tmp_path / "golden"))
    moments = [random.Random(seed).uniform(6, 16) for _ in range(2)]
    runtime = {"kind": "ray", "workers": 2, "dashboard": False}
    _, found = killed_and_resumed(config, tmp_path, runtime, moments)
    assert same_bits(found, golden)


@pytest.mark.timeout(600)
def test_ctrl_c_is_exit_code_4_and_says_how_to_resume(tmp_path, capsys):
    changed = tmp_path / "long.yaml"
    changed.write_text(yaml.safe_dump(merged(POINTS, {"train": {"steps": 100_000}})))
    process = subprocess.Popen(
        command("run", str(changed), "--out", str(tmp_path / "run")),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "ledger").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert main(["status", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"running: at train, \d+ of \d+ units?; no report yet", shown), shown
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 4
    assert "stopped; run the same command to resume" in err
    assert "Traceback" not in err
    assert main(["status", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        r"stopped at train, .*; no report yet \(by hand\); to go on: distinf run", shown
    )


# -- the first line ----------------------------------------------------------------------------

WITHOUT_HEAVY_IMPORTS = """
import sys
for name in ("torch", "numpy", "ray", "zarr", "pydantic", "rich", "importlib.metadata"):
    sys.modules[name] = None
from distinf.cli import main
sys.exit(main(sys.argv[1:]))
"""


def before_imports(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where nothing heavy can be imported: what it says, it says before."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY_IMPORTS, *arguments], cwd=folder, check=False,
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "a.yaml"], "a.yaml -> runs/a (new)"),
        (["run", "a.yaml", "--out", "x [y]"], "a.yaml -> x [y] (new)"),
        (["run", "a.yaml", "--set", "out=z"], "a.yaml -> z (new)"),
        (["score", "a.yaml"], "a.yaml -> runs/a-score (new)"),
        (["score", "mine:task"], "mine:task -> runs/mine-score (new)"),
        (["run", "b.yaml"], "b.yaml -> runs/b (resumed: 4 of 10 stages done)"),
        (["run", "runs/b"], "runs/b -> runs/b (resumed: 4 of 10 stages done)"),
        (["run", "runs/c"], "runs/c -> runs/c (resumed)"),
        (["plan", "a.yaml"], "a.yaml: loading torch and the task"),
        (["status", "runs/b"], "reading runs/b"),
        (["verify", "runs/b"], "reading runs/b"),
        (["report", "runs/b"], "reading runs/b"),
    ],
)
def test_what_is_about_to_be_done_is_said_before_anything_heavy_is_imported(
    tmp_path, arguments, line
):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("task: mine:task\n")
    for name in ("b", "c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("task: mine:task\nprovenance: {}\n")
    said = Heartbeat(state="stopped", stages_done=4, stages=10)
    (tmp_path / "runs" / "b" / "heartbeat.json").write_text(json.dumps(asdict(said)))
    done = before_imports(tmp_path, *arguments)
    assert done.stderr.splitlines()[0] == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "no.yaml"], "error: no.yaml: No such file or directory; give the path"),
        (["run", "bad.yaml"], "error: bad.yaml: line 1 "),
        (["run", "date.yaml"], "error: date.yaml: not valid YAML: month must be"),
        (["run", "deep.yaml"], "error: deep.yaml: not valid YAML: nested too deep"),
        (["score", "bad.yaml"], "error: bad.yaml: line 1 "),
        (["plan", "bad.yaml"], "error: bad.yaml: line 1 "),
        (["run", "no.yaml", "--set", "seed"], "error: no.yaml: "),
        (["run", "empty.yaml"], "error: empty.yaml: names no task; write 'task: mine:task' for"),
        (["plan", "keys.yaml"], "error: keys.yaml: names no task; write 'task: mine:task' for"),
        (["run", "mine:task", "--set", "seed"], "error: --set seed: write it as key=value"),
        (["status", "runs/no"], "error: runs/no: no config.yaml there; give the folder of a run"),
    ],
)
def test_what_cannot_be_read_is_told_as_soon(tmp_path, arguments, line):
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("{}")
    (tmp_path / "keys.yaml").write_text("task:\ntrain: {steps: 3}")
    (tmp_path / "date.yaml").write_text("a: 2024-13-45")
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    done = before_imports(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(line), done.stderr


@pytest.mark.parametrize("command", [["run"], ["run", "points.yaml", "--out"], ["score"]])
def test_a_path_that_no_file_can_have_is_no_stop_to_resume(config, monkeypatch, capsys, command):
    monkeypatch.chdir(config.parent)
    assert main([*command, "x" * 300]) == 2
    assert last_line(capsys).startswith("error: File name too long: ")


def test_a_folder_that_is_gone_and_a_url_of_no_bucket_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status", "http://here/run"]) == 2
    assert "cannot open http://here/run: it is no bucket, as s3://" in last_line(capsys)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["status", "run"]) == 2
    assert last_line(capsys) == "error: the folder that you are in was deleted; cd to another"


# -- ways out that errors name -----------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a configuration and of its finished run, which has an odd name."""
    folder = tmp_path_factory.mktemp("a[bold]b") / "t[" / "x]"
    folder.mkdir(parents=True)
    (folder / "points.yaml").write_text(yaml.safe_dump(POINTS))
    assert main(["run", str(folder / "points.yaml"), "--out", str(folder / "run")]) == 0
    return folder


def test_a_folder_is_shown_by_its_name(finished, capsys):
    assert main(["run", str(finished / "points.yaml"), "--out", str(finished / "run")]) == 0
    page = f"{finished}/run/report/index.html"
    assert f"report: {page}" in capsys.readouterr().out
    assert main(["status", str(finished / "run")]) == 0
    assert f"finished: report at {page}" in capsys.readouterr().out


MANY = ["seed=1", "train.steps=9", "targets.count=1", "curvature.keep=3", "scores.damping=0.1"]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "way"), [(["seed=1"], "out"), (MANY, "accept")])
def test_the_ways_out_of_anothers_folder_work_as_they_are_printed(
    finished, tmp_path, capsys, changes, way
):
    out = tmp_path / "my run"
    shutil.copytree(finished / "run", out)
    command = ["run", str(finished / "points.yaml"), "--out", str(out)]
    for change in changes:
        command += ["--set", change]
    assert main(command) == 2
    line = last_line(capsys)
    assert "…" not in line
    accepts, other = (
        re.search(r"or (--accept .*) to go on", line),
        re.search(r"(--out .*), or", line),
    )
    named = shlex.split((accepts if way == "accept" else other)[1])
    assert main([*command, *named]) == 0
    assert (tmp_path / "my run-2").exists() == (way == "out")


def test_status_of_a_stopped_run_names_a_command_that_goes_on(finished, tmp_path, capsys):
    out = tmp_path / "my run"
    shutil.copytree(finished / "run", out)
    for stage in ("actions", "report"):
        shutil.rmtree(out / "ledger" / stage)
    (out / "report" / "index.html").unlink()
    assert main(["status", str(out)]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown.startswith("stopped at fine-tune, 0 of 12 units; no report yet"), shown
    assert main(shlex.split(shown.partition("to go on: distinf ")[2])) == 0
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "finished"
    assert found["report"] == f"{out}/report/index.html"
    assert {stage["stage"]: stage["done"] for stage in found["stages"]}["actions"] == 12
