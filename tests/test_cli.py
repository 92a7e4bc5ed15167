"""The command line as a user meets it: exit codes, one line, no traceback."""

import os
import random
import signal
import subprocess
import time

import pytest
import yaml

from distinf import __version__
from distinf.cli import main
from distinf.run import reopen
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
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.smoke
def test_the_commands_of_a_whole_run(config, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["plan", str(config), "--out", out, "--gflops", "10"]) == 0
    assert "curvature" in capsys.readouterr().out
    assert not os.path.exists(out)
    assert main(["run", str(config), "--out", out]) == 0
    assert f"report: {out}/report/index.html" in capsys.readouterr().out
    assert main(["status", out]) == 0
    assert "gradients" in capsys.readouterr().out
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


def test_ctrl_c_is_exit_code_4_and_says_how_to_resume(tmp_path):
    changed = tmp_path / "long.yaml"
    changed.write_text(yaml.safe_dump(merged(POINTS, {"train": {"steps": 100_000}})))
    process = subprocess.Popen(
        command("run", str(changed), "--out", str(tmp_path / "run")),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "ledger").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "stopped; run the same command to resume" in err
    assert "Traceback" not in err
